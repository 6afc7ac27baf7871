"""Old names lead to the new ones, and say so."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from meltr import AIDFP, Bilevel, CentralDifference, LinearCombiner, UserError

MOVED = {
    "meltr.data.media": ("meltr.video.frames.media", "decode"),
    "meltr_vision.folders": ("meltr_vision.data.folders", "read_square"),
    "meltr_univl.feature_files": ("meltr_univl.features.files", "open_features"),
}


def made(**names: str) -> Bilevel:
    combiner = LinearCombiner(2)
    return Bilevel(nn.Linear(2, 2), combiner, torch.optim.SGD(combiner.parameters(), 0.1), **names)


@pytest.mark.parametrize("old", MOVED)
def test_a_module_that_moved_is_found_under_its_old_name(old):
    new, name = MOVED[old]
    pytest.importorskip(new.partition(".")[0])
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        found = getattr(importlib.import_module(old), name)
    assert found is getattr(importlib.import_module(new), name)
    with pytest.raises(AttributeError):
        _ = importlib.import_module(old).no_such_name


def test_schemes_and_estimators_are_found_by_the_keywords_that_took_names():
    with pytest.warns(DeprecationWarning, match=r"scheme=meltr.AIDFP\(\)"):
        assert made(scheme_name="aid-fp").scheme == AIDFP()
    with pytest.warns(DeprecationWarning, match=r"estimator=meltr.CentralDifference\(\)"):
        assert isinstance(made(estimator_name="difference").estimator, CentralDifference)
    with pytest.raises(UserError, match=r"(?s)estimator_name='exact' is unknown.*auto, difference"):
        made(estimator_name="exact")
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        made(other="name")
