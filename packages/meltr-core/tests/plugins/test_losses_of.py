"""Losses that depend on the run (`BackboneTask.losses_of`): chosen from what the function returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meltr.errors import PluginError, UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import RunSpec

PLUGIN = """
from pydantic import Field
import meltr
from meltr.specs import Info

class Options(Info):
    parts: int = Field(2, ge=1)

@meltr.hookimpl
def register_tasks():
    return [meltr.TaskInfo(name="sort", summary="Sort.", metrics=("right",))]

@meltr.hookimpl
def register_datasets():
    return [meltr.DatasetInfo(name="shapes", summary="Shapes.", tasks=("sort",), embedded=True)]

@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="sort", losses=("main", "part"), datasets=("shapes",), losses_of=f"{__name__}:names",
                              default_losses=DEFAULT)
    return [meltr.BackboneInfo(name="b", summary="B.", adapter=f"{__name__}:B", options=f"{__name__}:Options",
                               tasks=(task,))]

def names(spec, options):
    assert (spec.task, spec.losses, spec.train.epochs) == ("sort", ("main", "part"), 7)
    RESULT

class B:
    pass
"""
FOUND = 'return ["main", *(f"part{number}" for number in range(options.parts))]'


def losses_of(tmp_path: Path, result: str = FOUND, default: tuple[str, ...] = (), **flags: Any) -> tuple[str, ...]:
    file = tmp_path / f"losses_of_{abs(hash((str(tmp_path), result, default)))}.py"
    file.write_text(PLUGIN.replace("RESULT", result).replace("DEFAULT", repr(default)), encoding="utf-8")
    spec: RunSpec = resolve(discover([file]), backbone="b", flags={"train.epochs": 7, **flags})
    return spec.losses


def test_the_losses_follow_the_settings(tmp_path: Path) -> None:
    assert losses_of(tmp_path) == ("main", "part0", "part1")
    assert losses_of(tmp_path, **{"options.parts": 3}) == ("main", "part0", "part1", "part2")
    assert losses_of(tmp_path, losses=["part1", "main"]) == ("main", "part1")
    assert losses_of(tmp_path, primary="part1", losses=["part1", "main"]) == ("part1", "main")
    assert losses_of(tmp_path, default=("main", "part"), combiner="sum") == ("main",)


def test_a_loss_that_this_run_lacks_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no loss 'part2' for task 'sort' in this run") as refused:
        losses_of(tmp_path, losses=["main", "part2"])
    assert "Valid choices: main, part0, part1" in str(refused.value.hint)
    with pytest.raises(UserError, match="parts = 0"):
        losses_of(tmp_path, **{"options.parts": 0})


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("return []", r"must return the different names of one or more losses, but returned \[\]"),
        ('return ["a", "a"]', "different names"),
        ('return "main"', "different names"),
        ("return 1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_function_that_fails_is_named(tmp_path: Path, result: str, message: str) -> None:
    with pytest.raises(PluginError, match=message) as refused:
        losses_of(tmp_path, result)
    assert ":names" in refused.value.message
    with pytest.raises(UserError, match="the file is gone"):
        losses_of(tmp_path, 'raise meltr.UserError("the file is gone")')
