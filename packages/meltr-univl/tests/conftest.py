from __future__ import annotations

import pytest
import torch

from places import golden_sets, optional
from univl_goldens import Goldens


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test for every golden set in both types, and where it asks for a `trajectory`, for each of the set's."""
    if "golden" not in metafunc.fixturenames:
        return
    sets = [Goldens(folder, dtype) for folder in golden_sets("univl") for dtype in (torch.float32, torch.float64)]
    if "trajectory" not in metafunc.fixturenames:
        metafunc.parametrize("golden", sets, ids=[golden.name for golden in sets])
        return
    recorded = [
        pytest.param(golden, given, id=f"{golden.name}-{given['name']}")
        for golden in sets
        for given in golden.config.get("trajectories", ())
    ]
    metafunc.parametrize(("golden", "trajectory"), optional(recorded, "no golden set has trajectories", values=2))
