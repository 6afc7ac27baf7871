"""``meltr verify``: what a plugin author sees of a sound backbone, and of one that is wrong."""

from __future__ import annotations

import json

import pytest

from command_line import assert_stopped, call
from measure_cases import CHOICE, SMALL, TOY, only_agreement, spoilt
from meltr.specs import BilevelSpec

QUICK = [*CHOICE, *SMALL, "--repeat", "1"]


def verify(*words, plugin=TOY):
    return call("verify", "--plugin", plugin, *words)


def found(*words, plugin=TOY):
    result = verify(*QUICK, "--json", "--no-float64", *words, plugin=plugin)
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture
def agreement_alone(monkeypatch):
    only_agreement(monkeypatch)


def test_a_sound_backbone_passes():
    result = verify(*QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "OK: 5 of 5 estimators work here and agree"
    for name in ("forward", "difference", "per_task", "double_backward", "auto", "aid-cg", "stocbio", "sama"):
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert "exact: double_backward; against float64: off by " in result.stdout
    assert "OK    losses twice: bit-identical" in result.stdout
    assert "... g by forward" in result.stderr


def test_json_has_everything():
    code, content = found()
    assert code == 0
    assert content["ok"] is True
    assert content["problems"] == []
    assert content["run"]["losses"] == list(content["exact"]) == ["ce", "denoise", "norm"]
    assert [check["status"] for check in content["checks"]] == ["ok", "ok", "ok"]
    assert content["oracle"] == "double_backward"
    assert content["float64"] == "not requested"
    rows = {row["name"]: row for row in content["estimators"]}
    assert rows["auto"]["used"] == "per_task"
    for row in rows.values():
        assert row["agreement"]["error"] <= row["tolerance"] <= 1e-2
        assert row["agreement"]["signs"] == row["agreement"]["size"] == 3
        assert row["finite"] is row["repeatable"] is True
        assert row["traces"] == []
        assert row["time"] > 0
        assert row["memory"] > 0
    found_schemes = {row["name"]: row for row in content["schemes"]}
    assert set(found_schemes) == {"aid-fp-lite", "aid-fp", "aid-cg", "stocbio", "itd", "sama", "primary-step", "none"}
    assert next(iter(found_schemes)) == BilevelSpec().scheme
    assert found_schemes["aid-fp-lite"]["hessian"] < 1e-5
    assert content["milliseconds"] > 0
    assert content["versions"]["torch"]


@pytest.mark.usefixtures("agreement_alone")
def test_draws_from_a_state_of_its_own_are_caught(tmp_path):
    code, content = found(plugin=spoilt(tmp_path, "own_state"))
    assert code == 1
    assert content["checks"][0]["status"] == "fail"
    assert content["problems"][0].startswith("losses twice: 'denoise': ")
    assert "use context.generator" in content["problems"][0]


@pytest.mark.usefixtures("agreement_alone")
def test_changed_weights_are_caught(tmp_path):
    result = verify(*QUICK, "--no-float64", plugin=spoilt(tmp_path, "moves_weights"))
    assert result.exit_code == 1
    last = result.stdout.splitlines()[-1]
    assert last.startswith("FAILED: ")
    assert "compute_task_losses changes parameters of the model" in last


@pytest.mark.usefixtures("agreement_alone")
def test_draws_that_depend_on_the_losses_asked_for_are_a_warning(tmp_path):
    code, content = found(plugin=spoilt(tmp_path, "draws_by_losses"))
    assert code == 0
    check = content["checks"][2]
    assert (check["name"], check["status"]) == ("primary loss alone", "warn")
    assert "with the others" in check["found"]


@pytest.mark.usefixtures("agreement_alone")
def test_an_operation_without_forward_mode_is_named(tmp_path):
    result = verify(*QUICK, "--no-float64", plugin=spoilt(tmp_path, "no_forward_mode"))
    assert result.exit_code == 0, result.output
    assert "no forward mode: aten::_" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1].startswith("OK: ")


@pytest.mark.usefixtures("agreement_alone")
def test_without_second_derivatives_one_backward_per_task_is_the_oracle(tmp_path):
    code, content = found(plugin=spoilt(tmp_path, "once_only"))
    assert code == 0
    assert content["oracle"] == "per_task"
    assert content["oracle_cause"].startswith("not double_backward: silently wrong here: ")
    rows = {row["name"]: row for row in content["estimators"]}
    assert rows["double_backward"]["used"] is rows["forward"]["used"] is None
    assert "jvp" in rows["forward"]["cause"]
    assert rows["difference"]["agreement"]["error"] < 1e-2


@pytest.mark.usefixtures("agreement_alone")
def test_a_wrong_backward_is_caught_by_the_difference(tmp_path):
    result = verify(*QUICK, "--no-float64", plugin=spoilt(tmp_path, "wrong_backward"))
    assert result.exit_code == 1
    assert "; difference: g is off by " in result.stdout.splitlines()[-1]


@pytest.mark.usefixtures("agreement_alone")
def test_the_tolerance_is_the_users():
    code, content = found("--tolerance", "1e-12")
    assert code == 1
    assert any(line.startswith("difference: g is off by") for line in content["problems"])
    assert all(row["tolerance"] == 1e-12 for row in content["estimators"])


@pytest.mark.usefixtures("agreement_alone")
def test_low_precision_is_held_to_less():
    code, content = found("--set", "precision=bf16")
    assert code == 0
    rows = {row["name"]: row for row in content["estimators"]}
    assert rows["per_task"]["tolerance"] == 5e-2
    assert 1e-5 < rows["per_task"]["agreement"]["error"] < 5e-2  # against float32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*CHOICE, "--combiner", "sum"], "combiner 'sum' is not trained by a hypergradient"),
        (["--backbone", "toi", "--task", "classification", "--dataset", "rings"], "Did you mean 'toy'?"),
        (["--task", "classification"], "--backbone is missing"),
        ([*CHOICE, "--set", "estimatr=forward"], "Did you mean 'bilevel.estimator' or"),
    ],
)
def test_wrong_input_is_explained(words, message):
    assert_stopped(verify(*words), message)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_stopped(verify(*CHOICE), "Start it without torchrun.")
