"""Losses that the data cannot serve: the run goes on with the others and says so, or is refused where it cannot."""

from __future__ import annotations

import json

import pytest
import torch

from changed_toy import lacking, run_toy, toy_spec
from command_line import call
from measure_cases import CHOICE, SMALL
from meltr.engine.run import evaluate_run
from meltr.errors import UserError
from meltr.settings import load_spec
from meltr.verify.fixed_run import FixedRun

WHY = "there is no noise in these data"


def lines(folder, kind):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def test_a_run_goes_on_without_them_and_says_why(tmp_path):
    folder = tmp_path / "run"
    results = run_toy(lacking(tmp_path, denoise=WHY), folder)
    assert results["losses"] == results["spec"]["losses"] == ["ce", "norm"]
    assert json.loads((folder / "results.json").read_text())["losses"] == ["ce", "norm"]
    assert (folder / "log.txt").read_text().count(f"without the loss denoise: {WHY}\n") == 1
    assert json.loads((folder / "data.json").read_text())["left_out"] == {"denoise": WHY}
    assert {tuple(line["losses"]) for line in lines(folder, "train")} == {("ce", "norm")}
    outer = lines(folder, "outer")
    assert len(outer) == results["outer_steps"] > 0
    assert {tuple(line["gradient_products"]) for line in outer} == {("ce", "norm")}


@pytest.mark.parametrize("combiner", ["meltr", "sum"])
def test_it_is_the_run_on_the_losses_that_are_left(tmp_path, combiner):
    """Whether the user or the data leave a loss out, the combiner is built for the rest: the numbers are the same."""
    (tmp_path / "whole").mkdir()
    cut = run_toy(lacking(tmp_path, denoise=WHY), tmp_path / "cut", combiner=combiner)
    whole = run_toy(lacking(tmp_path / "whole"), tmp_path / "chosen", combiner=combiner, losses="ce,norm")
    assert cut["test"] == whole["test"]
    assert lines(tmp_path / "cut", "outer") == lines(tmp_path / "chosen", "outer")


def test_the_run_can_be_resumed_and_evaluated(tmp_path):
    plugin, folder = lacking(tmp_path, denoise=WHY), tmp_path / "run"
    whole = run_toy(plugin, folder, **{"train.checkpoint_every": 3})
    assert load_spec(folder / "run.yaml").losses == ("ce", "denoise", "norm")  # what the user asked for
    _, registry = toy_spec(plugin)
    assert evaluate_run(folder, registry=registry)["metrics"] == whole["test"]["metrics"]
    resumed = run_toy(plugin, folder, resume=True, **{"train.checkpoint_every": 3})
    assert (resumed["losses"], resumed["test"]) == (["ce", "norm"], whole["test"])


def test_without_the_primary_loss_there_is_no_run(tmp_path):
    with pytest.raises(
        UserError, match=f"primary loss cannot be computed from these data \\(ce: {WHY}; norm: no size\\)"
    ):
        run_toy(lacking(tmp_path, ce=WHY, norm="no size"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("combiner", ["meltr", "linear"])
def test_a_combiner_of_several_refuses_to_be_left_with_one(tmp_path, combiner):
    with pytest.raises(UserError, match=f"Only the primary loss 'ce' is left, but '{combiner}'") as caught:
        run_toy(lacking(tmp_path, denoise=WHY, norm="no size"), tmp_path / "run", combiner=combiner)
    assert WHY in caught.value.message
    assert "no size" in caught.value.message
    assert "--combiner primary" in caught.value.hint


@pytest.mark.parametrize("combiner", ["sum", "primary", "uncertainty", "gradnorm"])
def test_the_primary_loss_alone_is_enough_for_the_others(tmp_path, combiner):
    results = run_toy(lacking(tmp_path, denoise=WHY, norm="no size"), None, combiner=combiner)
    assert results["losses"] == ["ce"]
    assert results["steps"] == 8


def test_settings_for_all_losses_do_not_fit_the_rest(tmp_path):
    plugin = lacking(tmp_path, denoise=WHY)
    with pytest.raises(UserError, match="'fixed' cannot be built for the remaining losses, ce, norm") as caught:
        run_toy(plugin, None, combiner="fixed", **{"combiner_options.weights": [1, 0.5, 0.25]})
    assert WHY in caught.value.message
    assert "--set losses=ce,norm" in caught.value.hint
    chosen = {"losses": "ce,norm", "combiner_options.weights": [1, 0.25]}
    assert run_toy(plugin, None, combiner="fixed", **chosen)["losses"] == ["ce", "norm"]


def test_measurements_take_the_losses_that_are_left(tmp_path):
    spec, registry = toy_spec(lacking(tmp_path, denoise=WHY))
    problem = FixedRun(spec, registry)
    assert problem.describe()["losses"] == ["ce", "norm"]
    found = problem.stepper({"bilevel.estimator": "per_task"}).find()
    assert found.products.shape == (2,)
    assert bool(torch.isfinite(found.products).all())


@pytest.mark.parametrize(
    "command",
    [pytest.param(("verify", "--no-float64"), marks=pytest.mark.slow), ("bench", "--variants", "sum,difference")],
    ids=["verify", "bench"],
)
def test_verify_and_bench_name_them(tmp_path, command):
    name, *words = command
    where = ["--json"] if name == "verify" else ["--json", "-"]
    words = [name, "--plugin", str(lacking(tmp_path, denoise=WHY)), *CHOICE, *SMALL, "--repeat", "1", *words, *where]
    result = call(*words)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    run = content["run"] if name == "verify" else content["cases"][0]["run"]
    assert run["losses"] == ["ce", "norm"]
