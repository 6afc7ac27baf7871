"""What a trained network says about texts: classes, further columns, and texts that it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.texts import TextItem
from meltr_hf.data.columns import Column
from meltr_hf.data.encoding import TextEncoder
from meltr_hf.model.network import Network
from meltr_hf.options import HfOptions


def features_of(
    model: Network, encoder: TextEncoder, texts: Sequence[str], options: HfOptions, device: torch.device
) -> Tensor:
    """Return the features of texts, (number of texts, D)."""
    found = []
    for part in _parts(texts, options.eval_batch_size):
        batch = encoder.texts(part)
        found.append(model.texts(batch["ids"].to(device), batch["mask"].to(device)))
    return torch.cat(found)


def write(
    model: Network,
    encoder: TextEncoder,
    texts: Sequence[str],
    options: HfOptions,
    device: torch.device,
    *,
    top: int = 1,
) -> list[list[str]]:
    """Return what the model writes for every text, best first: as many outputs as `top`, at most one for each beam."""
    count = min(top, options.beams)
    settings = {
        "num_beams": options.beams,
        "num_return_sequences": count,
        "max_new_tokens": encoder.target_length,
        "pad_token_id": encoder.marks.pad,
        "eos_token_id": encoder.marks.end,
    }
    outputs: list[str] = []
    for part in _parts(texts, options.eval_batch_size):
        batch = encoder.prompts(part) if encoder.kind == "decoder" else encoder.texts(part)
        ids = model.write(batch["ids"].to(device), batch["mask"].to(device), **settings)
        outputs += [text.strip() for text in encoder.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return [outputs[start : start + count] for start in range(0, len(outputs), count)]


def about_columns(
    model: Network, features: Tensor, items: Sequence[TextItem], columns: Sequence[Column]
) -> dict[str, dict[str, Any]]:
    """Return how well every further column is told, for the details of a result.

    A column of classes has its ``accuracy`` in percent, one of numbers its ``mae`` in its own unit. Empty cells are
    skipped, and classes that training does not have.
    """
    found: dict[str, dict[str, Any]] = {}
    for column, head in zip(columns, model.columns, strict=True):
        outputs = head(features).float().cpu()
        right = torch.tensor([column.value(item.columns.get(column.name)) for item in items])
        known = ~right.isnan()
        if not known.any():
            continue
        if column.kind == "classes":
            hits = outputs.argmax(1)[known] == right[known].long()
            found[column.name] = {"accuracy": 100 * float(hits.double().mean()), "count": int(known.sum())}
        else:
            error = (outputs[known, 0] - right[known]).abs().double().mean() * column.deviation
            found[column.name] = {"mae": float(error), "count": int(known.sum())}
    return found


def _parts(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
