from __future__ import annotations

import pytest
import torch

from univl_goldens import Goldens, golden_folders


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test for every golden set in both types, and where it asks for a `trajectory`, for each of the set's."""
    if "golden" not in metafunc.fixturenames:
        return
    sets = [Goldens(folder, dtype) for folder in golden_folders() for dtype in (torch.float32, torch.float64)]
    if "trajectory" not in metafunc.fixturenames:
        metafunc.parametrize("golden", sets, ids=[golden.name for golden in sets])
        return
    pairs = [(golden, given) for golden in sets for given in golden.config.get("trajectories", ())]
    metafunc.parametrize(
        ("golden", "trajectory"), pairs, ids=[f"{golden.name}-{each['name']}" for golden, each in pairs]
    )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
