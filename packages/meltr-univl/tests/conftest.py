from __future__ import annotations

import pytest
import torch

from univl_goldens import Goldens, golden_folders


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        pairs = [(folder, dtype) for folder in golden_folders() for dtype in (torch.float32, torch.float64)]
        names = [f"{folder.name}-{str(dtype).removeprefix('torch.')}" for folder, dtype in pairs]
        metafunc.parametrize("golden", [Goldens(*pair) for pair in pairs], ids=names)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
