"""Figures of what is measured at a checkpoint, on a backbone whose gradients are known in closed form."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn
from torch.utils.data import TensorDataset

import meltr
from command_line import assert_stopped, command_line
from meltr.data.loader import LoaderBatches
from meltr.engine.run import execute
from meltr.plugins import discover
from meltr.report import statistics
from meltr.settings import resolve

pytest.importorskip("matplotlib")

WEIGHTS = {"main": 1.0, "agrees": 2.0, "opposes": 0.5}


@meltr.hookimpl
def register_datasets():
    return [meltr.DatasetInfo(name="line", summary="Numbers.", tasks=("classification",), embedded=True)]


@meltr.hookimpl
def register_backbones():
    task = meltr.BackboneTask(task="classification", losses=(*WEIGHTS, "pairs"), datasets=("line",))
    return [meltr.BackboneInfo(name="linear", summary="x w.", adapter=f"{__name__}:Linear", tasks=(task,))]


class Linear:
    @meltr.hookimpl
    def build_data(self, context):
        x = torch.arange(1.0, 41.0)[:, None] / 10
        spec = context.spec
        return meltr.Data(train=LoaderBatches(TensorDataset(x), spec.train.batch_size, seed=0), validation=x)

    @meltr.hookimpl
    def build_model(self):
        return nn.Linear(1, 2, bias=False)

    @meltr.hookimpl
    def compute_task_losses(self, model, batch, context):
        (x,) = batch
        first, second = model.weight
        mean = x.mean()
        losses = {
            "main": (mean * first).sum() + 9,
            "agrees": (3 * mean * first).sum() + 9,
            "opposes": (mean * (second - first)).sum() + 9,
            "pairs": (x.std(correction=0) if len(x) > 1 else 0 * mean) + 0 * second.sum(),
        }
        return {name: losses[name] for name in context.losses}

    @meltr.hookimpl
    def evaluate(self, model, data, context):
        return meltr.Evaluation({"top1": 50.0, "top5": 100.0}, len(data))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A finished run, its command line, and its measured figures."""
    folder, registry = tmp_path_factory.mktemp("measured") / "run", discover([Path(__file__)])
    flags = {
        "device": "cpu",
        "train.max_steps": 3,
        "train.batch_size": 4,
        "combiner": "fixed",
        "losses": [*WEIGHTS],
        "combiner_options.weights": [*WEIGHTS.values()],
    }
    spec = resolve(registry, backbone="linear", task="classification", dataset="line", flags=flags)
    execute(spec, run_dir=folder, registry=registry)
    call = command_line(Path(__file__))
    chosen = [word for name in ("cosines", "shares", "6") for word in ("--figure", name)]
    result = call("plot", folder, "--plugin", __file__, *chosen, "--json")
    assert result.exit_code == 0, result.output
    return folder, call, json.loads(result.stdout)


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return [*csv.DictReader((folder / "plots" / f"{name}.csv").read_text().splitlines())]


def test_every_figure_has_its_numbers_beside_it(drawn):
    folder, _, said = drawn
    assert said["files"].keys() == {"example_losses", "gradient_cosines", "update_shares"}
    for name, files in said["files"].items():
        assert [Path(file).name for file in files] == [f"{name}.png", f"{name}.svg", f"{name}.csv"]
        assert all(Path(file).parent == folder / "plots" and Path(file).stat().st_size > 100 for file in files)


def test_the_cosines_are_those_of_the_gradients(drawn):
    """The gradients are mean(x) times (1, 0), (3, 0) and (-1, 1), on any batch."""
    expected = {
        ("main", "agrees"): 1.0,
        ("main", "opposes"): -np.sqrt(0.5),
        ("agrees", "opposes"): -np.sqrt(0.5),
        ("opposes", "opposes"): 1.0,
    }
    found = {(r["examples"], r["row"], r["column"]): float(r["cosine"]) for r in rows(drawn[0], "gradient_cosines")}
    for (row, column), cosine in expected.items():
        for examples in ("same", "other"):
            assert found[examples, row, column] == pytest.approx(cosine, abs=1e-6)
            assert found[examples, column, row] == pytest.approx(cosine, abs=1e-6)


def test_the_shares_are_the_projections_on_the_update(drawn):
    """u = a_0 (1, 0) + a_1 (3, 0) + a_2 (-1, 1) up to mean(x)."""
    gradients, weights = np.array([[1.0, 0], [3, 0], [-1, 1]]), np.array([*WEIGHTS.values()])
    update = weights @ gradients
    shares = 100 * weights * (gradients @ update) / (update @ update)
    found = {(r["loss"], r["what"]): float(r["mean"]) for r in rows(drawn[0], "update_shares")}
    for place, (name, weight) in enumerate(WEIGHTS.items()):
        assert found[name, "share"] == pytest.approx(shares[place], rel=1e-5)
        assert found[name, "weight"] == pytest.approx(weight)
    assert sum(shares) == pytest.approx(100)


def test_the_losses_are_those_of_single_examples(drawn):
    table = rows(drawn[0], "example_losses")
    assert {r["loss"] for r in table} == set(WEIGHTS)
    assert {r["examples_together"] for r in table} == {"1"}
    main, agrees = (np.array([float(r["value"]) for r in table if r["loss"] == name]) for name in ("main", "agrees"))
    assert len(main) == 40
    assert agrees - 9 == pytest.approx(3 * (main - 9), rel=1e-4)
    assert np.ptp(main) > 0


def test_a_run_with_one_loss_has_no_cosines(drawn, tmp_path):
    registry = discover([Path(__file__)])
    flags = {"device": "cpu", "train.max_steps": 2, "train.batch_size": 20, "combiner": "primary"}
    spec = resolve(registry, backbone="linear", task="classification", dataset="line", flags=flags)
    execute(spec, run_dir=tmp_path / "one", registry=registry)
    words = ("plot", tmp_path / "one", "--plugin", __file__, "--figure")
    assert_stopped(drawn[1](*words, "cosines"), "one loss", "--combiner sum")
    assert not (tmp_path / "one" / "plots").exists()


def test_the_interval_is_that_of_student():
    values = [0.3, 1.2, -0.7, 2.2, 0.9]
    low, high = student.interval(0.95, 4, loc=np.mean(values), scale=np.std(values, ddof=1) / np.sqrt(5))
    assert statistics.half_width(values) == pytest.approx((high - low) / 2, rel=1e-9)
    assert statistics.half_width([1.0]) is None
