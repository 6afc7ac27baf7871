"""Which recipe a run gets when none is asked for: the miniature's, that of the released code, or the default one."""

from __future__ import annotations

import importlib.metadata

import pytest

from meltr.errors import PluginError
from meltr.plugins import Registry, discover
from meltr.settings import resolve

PLUGIN = """
from meltr import BackboneInfo, BackboneTask, DatasetInfo, PresetInfo, TaskInfo, hookimpl

@hookimpl
def register_tasks():
    return [TaskInfo(name=name, summary="", metrics=("score",)) for name in ("sort", "count")]

@hookimpl
def register_datasets():
    return [DatasetInfo(name=name, summary="", tasks=("sort", "count")) for name in ("shapes", "letters")]

@hookimpl
def register_backbones():
    tasks = tuple(BackboneTask(task=name, losses=("main", "side"), datasets=("shapes", "letters"))
                  for name in ("sort", "count"))
    names = ("plain", "tiny", "tiny-sort", "code", "code-pair", "chosen", "seeks-release")
    presets = [PresetInfo(name=name, summary="", settings={}) for name in names]
    presets[-1] = PresetInfo(name="seeks-release", summary="", settings={"fidelity": "released"})
    return [BackboneInfo(name="toy", summary="", adapter="nowhere:A", tasks=tasks, presets=tuple(presets), TABLES)]
"""
TABLES = {
    "default_presets": {"sort": "plain", "count": "plain"},
    "sample_presets": {"letters": "tiny", "sort": "tiny-sort"},
    "released_presets": {"sort/shapes": "code-pair", "shapes": "code", "sort": "chosen"},
}


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])

    def make(**tables: dict[str, str]) -> Registry:
        file = tmp_path / "preset_plugin.py"
        file.write_text(PLUGIN.replace("TABLES", ", ".join(f"{name}={table!r}" for name, table in tables.items())))
        return discover([file])

    return make


def chosen(registry: Registry, task: str, dataset: str, **flags) -> str | None:
    return resolve(registry, backbone="toy", task=task, dataset=dataset, flags=flags).preset


@pytest.mark.parametrize(
    ("task", "dataset", "flags", "expected"),
    [
        ("sort", "shapes", {}, "plain"),
        # --sample: the miniature's, where there is one
        ("sort", "letters", {"sample": True}, "tiny"),  # the data set before the task
        ("sort", "shapes", {"sample": True}, "tiny-sort"),
        ("count", "letters", {"sample": True}, "tiny"),
        ("count", "shapes", {"sample": True}, "plain"),
        ("count", "shapes", {"sample": False}, "plain"),
        # --fidelity released: that of the code, where there is one
        ("sort", "shapes", {"fidelity": "released"}, "code-pair"),  # both before the data set
        ("count", "shapes", {"fidelity": "released"}, "code"),
        ("sort", "letters", {"fidelity": "released"}, "chosen"),
        ("count", "letters", {"fidelity": "released"}, "plain"),
        ("sort", "shapes", {"fidelity": "paper"}, "plain"),
        # both: the miniature's first
        ("sort", "shapes", {"sample": True, "fidelity": "released"}, "tiny-sort"),
        ("count", "shapes", {"sample": True, "fidelity": "released"}, "code"),
        # --preset before all of them
        ("sort", "shapes", {"sample": True, "fidelity": "released", "preset": "chosen"}, "chosen"),
        ("sort", "shapes", {"sample": True, "preset": "none"}, None),
    ],
)
def test_the_strongest_table_that_has_an_entry_wins(plugin, task, dataset, flags, expected):
    assert chosen(plugin(**TABLES), task, dataset, **flags) == expected


def test_sample_and_fidelity_count_wherever_they_are_written(plugin):
    registry = plugin(**TABLES)
    choice = {"backbone": "toy", "task": "sort", "dataset": "shapes"}
    assert resolve(registry, **choice, sets=["sample=true"]).preset == "tiny-sort"
    assert resolve(registry, **choice, sets=["fidelity=released"]).preset == "code-pair"
    assert resolve(registry, **choice, config={"sample": True}).preset == "tiny-sort"
    assert resolve(registry, **choice, config={"sample": True}, sets=["sample=false"]).preset == "plain"


def test_a_preset_that_asks_for_the_released_code_changes_no_preset(plugin):
    spec = resolve(plugin(**TABLES), backbone="toy", task="sort", dataset="shapes", preset="seeks-release")
    assert (spec.preset, spec.fidelity, spec.bilevel.outer_batch) == ("seeks-release", "released", "replay")


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"sort": "tinny"}, "names the unknown preset 'tinny'. Did you mean 'tiny'"),
        ({"sort/shape": "tiny"}, "is for no task and data set of this backbone. Did you mean 'sort/shapes'"),
        ({"shapes/sort": "tiny"}, "is for no task and data set of this backbone."),
    ],
)
def test_names_that_do_not_exist_break_the_plugin(plugin, kind, table, message):
    with pytest.raises(PluginError) as caught:
        plugin(**{**TABLES, kind: table})
    (key,) = table
    assert f"{kind}[{key!r}] {message}" in caught.value.message
