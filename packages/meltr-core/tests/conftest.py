from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def shared_reference() -> Path:
    """Folder of the golden sets beside the project; the test is skipped where there is none."""
    beside = Path(__file__).resolve().parents[4] / "shared"
    folder = Path(os.environ.get("MELTR_SHARED", beside)) / "reference"
    if not folder.is_dir():
        pytest.skip(f"no golden sets in {folder} (set MELTR_SHARED)")
    return folder
