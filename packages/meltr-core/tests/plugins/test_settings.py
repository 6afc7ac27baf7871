"""From defaults, preset, file, flags and --set to one checked description of a run."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import yaml

from meltr.errors import PluginError, UserError
from meltr.plugins import Registry, discover, load_object
from meltr.settings import difference, dump_yaml, load_spec, resolve

TOY = """
from typing import Literal
from pydantic import Field
from meltr import BackboneInfo, BackboneTask, DatasetInfo, PresetInfo, TaskInfo, hookimpl
from meltr.specs import Info

class Options(Info):
    '''Settings of the toy.

    Args:
        model: Which size.
        depth: How many layers,
            counted from below.
    '''
    model: Literal["small", "large"] = "small"
    depth: int = Field(2, ge=1)
    lr: float = 0.5
    tags: tuple[str, ...] = ()
    note: str = ""
    limit: int | None = 7

@hookimpl
def register_tasks():
    return [TaskInfo(name=name, summary="", metrics=("score",)) for name in ("sort", "count", "sing")]

@hookimpl
def register_datasets():
    return [DatasetInfo(name=name, summary="", tasks=("sort", "count")) for name in ("shapes", "letters")]

@hookimpl
def register_backbones():
    sort = BackboneTask(task="sort", losses=("main", "side", "extra"), datasets=("shapes", "letters"),
                        default_losses=("main", "side"))
    count = BackboneTask(task="count", losses=("main",), datasets=("shapes",))
    presets = (
        PresetInfo(name="big", summary="", settings={"options.model": "large", "train.lr": 0.25, "train.epochs": 3,
                                                     "combiner_options.width": 64, "outer_batch": "held_out"}),
        PresetInfo(name="letters", summary="", settings={"train": {"lr": 0.125}, "combiner": "linear"}),
        PresetInfo(name="bad", summary="", settings={"dataset": "letters"}),
    )
    other = BackboneTask(task="sort", losses=("main", "side"), datasets=("shapes",))
    return [
        BackboneInfo(name="toy", summary="", adapter="nowhere:Adapter", options=f"{__name__}:Options",
                     tasks=(sort, count), presets=presets,
                     default_presets={"letters": "letters", "count/shapes": "big"}),
        BackboneInfo(name="plain", summary="", adapter="nowhere:Adapter", tasks=(other,)),
        BackboneInfo(name="odd", summary="", adapter="nowhere:Adapter", tasks=(other,), options="pathlib:Path"),
    ]
"""

CHOICE = {"backbone": "toy", "task": "sort", "dataset": "shapes"}


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Registry:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    file = tmp_path / "toy_plugin.py"
    file.write_text(TOY)
    return discover([file])


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def refused(registry, **arguments) -> UserError:
    with pytest.raises(UserError) as caught:
        resolve(registry, **{**CHOICE, **arguments})
    return caught.value


def test_defaults_are_complete(registry):
    spec = resolve(registry, **CHOICE)
    assert spec.losses == ("main", "side")
    assert spec.options == {"model": "small", "depth": 2, "lr": 0.5, "tags": [], "note": "", "limit": 7}
    assert spec.combiner == "meltr"
    assert spec.combiner_options == load_object(registry.combiner("meltr").options)().model_dump()
    assert spec.preset is None


def test_each_layer_wins_over_the_one_before(registry, config):
    file = config("train:\n  lr: 0.75\n  epochs: 5\ndata.validation: 0.3\n")
    chosen = {**CHOICE, "preset": "big"}
    spec = resolve(registry, **chosen, config=file, flags={"train.epochs": 6, "batch_size": 4, "device": None})
    assert (spec.train.lr, spec.train.epochs, spec.train.batch_size) == (0.75, 6, 4)
    assert spec.options["model"] == "large"
    assert spec.data.validation == 0.3
    assert spec.combiner_options["width"] == 64
    spec = resolve(registry, **chosen, config=file, flags={"train.epochs": 6}, sets=["epochs=7", "model=small"])
    assert spec.train.epochs == 7
    assert spec.options["model"] == "small"


def test_fidelity_is_stronger_than_preset_and_weaker_than_set(registry):
    assert resolve(registry, **CHOICE, flags={"fidelity": "released"}).bilevel.outer_batch == "replay"
    assert resolve(registry, **CHOICE, preset="big").bilevel.outer_batch == "held_out"
    assert resolve(registry, **CHOICE, preset="big", sets=["fidelity=released"]).bilevel.outer_batch == "replay"
    chosen = resolve(registry, **CHOICE, sets=["fidelity=released", "outer_batch=shared"])
    assert chosen.bilevel.outer_batch == "shared"
    assert "fidelity = exact" in refused(registry, flags={"fidelity": "exact"}).message


def test_default_presets_by_data_set_and_by_task(registry):
    letters = resolve(registry, backbone="toy", task="sort", dataset="letters")
    assert (letters.preset, letters.train.lr, letters.combiner) == ("letters", 0.125, "linear")
    count = resolve(registry, backbone="toy", task="count", dataset="shapes", flags={"combiner": "primary"})
    assert (count.preset, count.train.lr) == ("big", 0.25)
    none = resolve(registry, backbone="toy", task="sort", dataset="letters", preset="none")
    assert (none.preset, none.combiner) == (None, "meltr")
    assert "Did you mean 'letters'?" in refused(registry, preset="leters").hint
    with pytest.raises(PluginError, match="sets dataset, which a recipe cannot"):
        resolve(registry, **CHOICE, preset="bad")


def test_the_options_of_another_combiner_in_a_preset_or_file_do_not_count(registry, config):
    spec = resolve(registry, **CHOICE, preset="big", flags={"combiner": "sum"})
    assert spec.combiner_options == {}
    file = config(dump_yaml(resolve(registry, **CHOICE, sets=["width=64"])))
    assert resolve(registry, config=file, flags={"combiner": "linear"}).combiner_options == {
        "start_weight": 1.0,
        "positive": True,
    }
    assert resolve(registry, config=file, backbone="plain").options == {}
    error = refused(registry, flags={"combiner": "sum"}, sets=["combiner_options.width=64"])
    assert "'meltr'" in error.hint


def test_a_run_yaml_is_a_config_and_reads_back(registry, config, tmp_path):
    spec = resolve(
        registry,
        **CHOICE,
        sets=["train.lr=3e-5", "train.betas=0.8,0.9", "milestones=[2, 4]", f"data_root={tmp_path}", "limit=none"],
        plugins=[tmp_path / "toy_plugin.py"],
    )
    file = config(dump_yaml(spec))
    assert load_spec(file) == spec
    assert resolve(registry, config=file) == spec
    assert yaml.safe_load(file.read_text())["plugins"] == [str(tmp_path / "toy_plugin.py")]


@pytest.mark.parametrize(
    ("text", "section", "name", "value"),
    [
        ("train.lr=3e-5", "train", "lr", 3e-5),
        ("epochs=1e1", "train", "epochs", 10),
        ("clip_norm=none", "train", "clip_norm", None),
        ("clip_norm=1", "train", "clip_norm", 1.0),
        ("train.betas=0.8,0.9", "train", "betas", (0.8, 0.9)),
        ("train.betas=[0.8,0.9]", "train", "betas", (0.8, 0.9)),
        ("milestones=80", "train", "milestones", (80,)),
        ("milestones=", "train", "milestones", ()),
        ("nesterov=yes", "train", "nesterov", True),
        ("every = 5", "bilevel", "every", 5),
        ("scheme=aid-fp-lite", "bilevel", "scheme", "aid-fp-lite"),
        ("validation=5000", "data", "validation", 5000),
    ],
)
def test_values_as_people_type_them(registry, text, section, name, value):
    assert getattr(getattr(resolve(registry, **CHOICE, sets=[text]), section), name) == value


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("note=123", "note", "123"),
        ("note=a=b", "note", "a=b"),
        ("note=none", "note", "none"),
        ("tags=red,blue", "tags", ["red", "blue"]),
        ("tags=red", "tags", ["red"]),
        ("limit=null", "limit", None),
        ("options.lr=2", "lr", 2.0),
    ],
)
def test_options_of_the_backbone(registry, text, name, value):
    assert resolve(registry, **CHOICE, sets=[text]).options[name] == value


def test_weights_are_a_list(registry):
    spec = resolve(registry, **CHOICE, flags={"combiner": "fixed"}, sets=["weights=1,0.5"])
    assert spec.combiner_options == {"weights": [1.0, 0.5]}


def test_unknown_and_ambiguous_settings(registry, config):
    error = refused(registry, sets=["epoch=3"])
    assert error.message == "unknown setting 'epoch' (--set)"
    assert "Did you mean 'train.epochs'" in error.hint
    assert "meltr config schema --backbone toy" in error.hint
    error = refused(registry, sets=["lr=3"])
    assert "ambiguous" in error.message
    assert "train.lr (core), options.lr (backbone 'toy')" in error.hint
    assert "'train.momentum'" in refused(registry, sets=["bilevel.momentum=3"]).hint
    assert "combiner 'fixed'" in refused(registry, sets=["weights=1,1"]).hint
    assert "settings.yaml" in refused(registry, config=config("train: {speed: 3}")).message
    assert "not of the form" in refused(registry, sets=["lr"]).message
    assert "not a valid value" in refused(registry, sets=["epochs=[1"]).message


def test_all_invalid_values_are_in_one_message(registry):
    error = refused(
        registry,
        flags={"train.epochs": 0, "device": "tpu"},
        sets=["train.lr=fast", "optimizer=sgdd", "model=huge", "width=9", "depth=0"],
    )
    lines = error.message.splitlines()
    assert lines[0] == "these settings are not valid:"
    assert len(lines) == 8
    for text in (
        "train.epochs = 0 (flags): Input should be greater than or equal to 1",
        "device = tpu",
        "train.lr = fast (--set): Input should be a valid number",
        "train.optimizer = sgdd (--set): Input should be 'sgd', 'adam', 'adamw' or 'bert_adam'",
        "options.model = huge (--set): Input should be 'small' or 'large'",
        "options.depth = 0",
        "width=9 is not a multiple of heads=8",
    ):
        assert any(text in line for line in lines), text
    assert "meltr config schema" in error.hint


def test_losses_can_be_chosen(registry):
    assert resolve(registry, **CHOICE, sets=["losses=extra,main"]).losses == ("main", "extra")
    assert resolve(registry, **CHOICE, flags={"losses": ["main", "side", "side"]}).losses == ("main", "side")
    error = refused(registry, sets=["losses=main,sid"])
    assert "no loss 'sid'" in error.message
    assert "Did you mean 'side'" in error.hint
    error = refused(registry, sets=["losses=side,extra"])
    assert error.message == "the primary loss 'main' cannot be removed"
    assert "losses=main,side,extra" in error.hint


def test_another_primary_loss_comes_first(registry: Registry) -> None:
    assert resolve(registry, **CHOICE, sets=["primary=side"]).losses == ("side", "main")
    assert resolve(registry, **CHOICE, sets=["primary=extra"]).losses == ("extra", "main", "side")
    assert resolve(registry, **CHOICE, sets=["primary=extra", "losses=main,extra"]).losses == ("extra", "main")
    assert "'side' cannot be removed" in refused(registry, sets=["primary=side", "losses=main,extra"]).message
    assert "no loss 'sid'" in refused(registry, sets=["primary=sid"]).message


def test_impossible_combinations(registry):
    error = refused(registry, task="sing")
    assert error.message == "backbone 'toy' does not support task 'sing'"
    assert "sort, count" in error.hint
    error = refused(registry, task="count", dataset="letters")
    assert "does not support data set 'letters' for task 'count'" in error.message
    assert "shapes" in error.hint
    error = refused(registry, task="count")
    assert "there is only one: main" in error.message
    assert "--combiner primary" in error.hint
    assert resolve(registry, **{**CHOICE, "task": "count"}, flags={"combiner": "primary"}).losses == ("main",)
    error = refused(registry, flags={"combiner": "fixed"}, sets=["weights=1,1,1"])
    assert "3 weights for 2 losses" in error.message
    assert "main, side" in error.hint
    assert "combiner_options.weights: is required" in refused(registry, flags={"combiner": "fixed"}).message
    error = refused(registry, task=None)
    assert (error.message, error.hint.split(".")[0]) == ("--task is missing", "Valid choices: count, sort")
    assert "'big'" not in refused(registry, backbone="toi").message
    assert "unknown combiner 'sun'" in refused(registry, flags={"combiner": "sun"}).message


def test_what_has_one_choice_may_be_unsaid(registry):
    flags = {"combiner": "primary"}
    assert resolve(registry, backbone="toy", task="count", flags=flags).dataset == "shapes"
    error = refused(registry, dataset=None)
    assert (error.message, error.hint.split(".")[0]) == ("--dataset is missing", "Valid choices: letters, shapes")
    assert resolve(registry, backbone="toy", task="count", config={"dataset": "shapes"}, flags=flags).task == "count"


def test_config_files_that_cannot_be_read(registry, config, tmp_path):
    assert "there is no file" in refused(registry, config=tmp_path / "absent.yaml").message
    assert "not valid YAML" in refused(registry, config=config("a: [1")).message
    assert "holds list" in refused(registry, config=config("- 1")).message
    assert "'train' must hold settings" in refused(registry, config=config("train: 3")).message
    assert resolve(registry, **CHOICE, config=config("train:\noptions:\nepochs: 2")).train.epochs == 2
    with pytest.raises(UserError, match=r"does not describe a run:\n  backbone: Field required"):
        load_spec(config("task: sort"))


def test_an_options_model_that_is_none(registry):
    with pytest.raises(PluginError, match="'pathlib:Path' is not a pydantic model"):
        resolve(registry, **{**CHOICE, "backbone": "odd"})


def test_difference_names_dotted_settings(registry):
    a = resolve(registry, **CHOICE)
    b = resolve(registry, **CHOICE, sets=["train.lr=2", "model=large", "seed=3", "combiner=sum"])
    changed = difference(a, b)
    assert {"train.lr", "options.model", "seed", "combiner", "combiner_options.width"} <= set(changed)
    assert "train.epochs" not in changed
    assert difference(a, a) == []
