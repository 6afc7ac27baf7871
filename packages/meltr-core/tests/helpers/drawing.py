"""Where the random numbers of an adapter's losses come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from meltr.context import RunContext


def assert_draws_come_from_the_context(adapter: Any, context: RunContext, one: str) -> None:
    """Assert that the losses of a batch follow from the generator of the context alone, and are drawn side by side.

    Args:
        adapter: The adapter.
        context: Context of a run whose losses draw random numbers.
        one: A loss that draws; alone it must have the value that it has among all.
    """
    generator = torch.Generator()
    context = replace(context, generator=generator)
    data = adapter.build_data(context)
    model, batch = adapter.build_model(context, data), next(iter(data.train.batches(0)))

    def losses(seed: int, *wanted: str) -> dict[str, float]:
        generator.manual_seed(seed)
        asked = context.with_losses(*wanted) if wanted else context
        return {name: loss.item() for name, loss in adapter.compute_task_losses(model, batch, asked).items()}

    first = losses(1)
    torch.rand(7)
    assert losses(1) == first
    assert losses(2) != first
    assert losses(1, one) == pytest.approx({one: first[one]})
