"""Seeds of steps and examples: the same numbers as at the start of a run, and no work for devices that nobody uses."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from meltr.seeding import seed_again, seed_everything


def draws(generator):
    return [random.random(), np.random.rand(), float(torch.rand(())), float(torch.rand((), generator=generator))]


def test_seeding_again_gives_the_same_numbers():
    generator = torch.Generator()
    seed_everything(3, generator)
    expected = draws(generator)
    assert draws(generator) != expected
    seed_again(3, generator)
    assert draws(generator) == expected
    seed_again(4, generator)
    assert not set(draws(generator)) & set(expected)


@pytest.mark.parametrize("used", [True, False])
def test_a_device_is_seeded_once_it_is_in_use(monkeypatch, used):
    seeds = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seed_again(7)
    assert seeds == [7] * used
