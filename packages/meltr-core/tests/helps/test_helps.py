"""The test beds: known truth, runs side by side that equal runs alone, and statistics."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from command_line import assert_stopped, call
from meltr.combiners.dwa import DynamicWeightAverage
from meltr.combiners.torchjd_ import from_options as torchjd
from meltr.errors import UserError
from meltr.helps import show
from meltr.helps.made import MADE, made
from meltr.helps.methods import METHODS
from meltr.helps.record import Record
from meltr.helps.side_by_side import side_by_side
from meltr.helps.trial import Trial, train
from meltr.helps.verdicts import against, holm, mean_ranks, noise_floor, with_choices


def short(name: str, seeds: list[int], epochs: int = 2):
    return dataclasses.replace(made(name, seeds), epochs=epochs)


def trial(*scores: float) -> Trial:
    return Trial([*scores], [*scores], [1.0, 1.0], 1.0)


@pytest.mark.parametrize(
    "name", ["sum", "meltr, shares", "linear, held out", "auto-lambda", "uncertainty", "dwa", "famo"]
)
def test_seeds_side_by_side_train_as_they_do_alone(name):
    bed, method = short("mixed", [3, 8]), METHODS[name]
    together, alone = train(bed, method), train(bed, dataclasses.replace(method, side_by_side=False))
    assert together.weights == pytest.approx(alone.weights, rel=2e-3)
    assert together.test == pytest.approx(alone.test, abs=5e-3)


def test_every_seed_has_the_regulariser_of_its_own_sum():
    """A large gamma moves the weights by far more than the tolerance; alone, it is `Bilevel` that regularises."""
    bed, method = short("mixed", [3, 8], epochs=1), dataclasses.replace(METHODS["meltr"], gamma=30.0, outer_lr=1e-2)
    found = train(bed, method).weights
    assert found == pytest.approx(train(bed, dataclasses.replace(method, side_by_side=False)).weights, rel=1e-4)
    assert found[0] < train(bed, dataclasses.replace(method, gamma=0.0)).weights[0] - 0.2


def test_gradnorm_side_by_side_sees_the_gradient_norms_of_its_own_seed():
    bed = short("shown", [3, 8], epochs=1)
    method = METHODS["gradnorm"]
    together, alone = train(bed, method), train(bed, dataclasses.replace(method, side_by_side=False))
    assert together.weights == pytest.approx(alone.weights, rel=2e-3)


def test_a_rule_of_task_gradients_is_refused_side_by_side():
    copies = [torchjd(["a", "b"], method="UPGrad", method_options={})] * 2
    with pytest.raises(UserError, match="one after another"):
        side_by_side(copies)


def test_every_copy_sees_its_own_epoch():
    copies = [DynamicWeightAverage(["a", "b"]) for _ in range(2)]
    both = side_by_side(copies)
    for losses in ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.25], [1.0, 1.0, 1.0, 0.25]):

        class Step:
            pass

        step = Step()
        step.losses = torch.tensor(losses)
        both.own_gradients(step)
        both.end_epoch()
    assert copies[0].history.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert copies[1].history.tolist() == [[1.0, 0.25], [1.0, 0.25]]


def test_beds_do_what_they_say():
    """One weight per truth: helpers that show the concepts help a lot, foreign and contrary ones hurt a lot."""
    seeds = [0, 1]
    mean = {
        (bed, name): sum(train(made(bed, seeds), METHODS[name]).test) / len(seeds)
        for bed in ("shown", "foreign", "contrary")
        for name in ("primary", "sum")
    }
    assert mean["shown", "sum"] < mean["shown", "primary"] - 0.04
    assert mean["foreign", "sum"] > mean["foreign", "primary"] + 0.1
    assert mean["contrary", "sum"] > mean["contrary", "primary"] + 0.1


def test_a_seed_has_the_same_data_in_any_company():
    alone, together = made("mixed", [5]), made("mixed", [2, 5])
    assert torch.equal(alone.inputs[0], together.inputs[1])
    assert torch.equal(alone.network().weights[0][0], together.network().weights[0][1])
    first, second = next(alone.batches(1)), next(together.only(1).batches(1))
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.labelled, second.labelled)


def test_another_order_changes_the_order_alone():
    bed = made("random", [0])
    one, other = ([batch.rows for batch in bed.batches(0, order)] for order in (0, 1))
    assert not torch.equal(torch.cat(one, 1), torch.cat(other, 1))
    assert torch.equal(torch.cat(one, 1).sort().values, torch.cat(other, 1).sort().values)


def test_holm_agrees_with_a_worked_example():
    # 0.01 * 4, 0.02 * 3 = 0.06, 0.03 * 2 = 0.06, 0.04 * 1 = 0.04 -> not below the one before: 0.06.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_agrees_with_a_paired_test_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    results = {"bed": {"primary": trial(0.5, 0.6, 0.55), "sum": trial(0.4, 0.5, 0.52), "new": trial(0.3, 0.45, 0.41)}}
    found = against(results, "new")["bed"]
    raw = [stats.ttest_rel(results["bed"]["new"].test, results["bed"][name].test).pvalue for name in ("primary", "sum")]
    low, high = sorted(raw)
    expected = {raw.index(low): min(1, 2 * low), raw.index(high): max(2 * low, high)}
    assert [found["primary"].p, found["sum"].p] == pytest.approx([expected[0], expected[1]])
    assert found["sum"].mean == pytest.approx(-0.0866667)


def test_the_noise_floor_covers_95_of_100_equal_comparisons():
    generator = torch.Generator().manual_seed(0)
    floor = noise_floor(
        {"sum": trial(*[0.0] * 400), "sum, other order": trial(*torch.randn(400, generator=generator).tolist())}
    )
    means = torch.randn(2000, 400, generator=generator).mean(1).abs()
    assert 0.93 < float((means < floor).double().mean()) < 0.97
    assert noise_floor({"sum": trial(0.0, 1.0)}) is None


def test_a_choice_takes_the_method_that_is_best_on_validation_for_each_seed():
    def of(test: list[float], validation: list[float], seconds: float) -> Trial:
        return Trial(test, test, [1.0, 1.0], seconds, validation)

    trials = {"primary": of([0.1, 0.2, 0.3], [0.5, 0.1, 0.3], 2.0), "sum": of([0.4, 0.5, 0.6], [0.4, 0.2, 0.3], 3.0)}
    found = with_choices({"bed": trials})["bed"]
    assert found["best of primary, sum"].test == [0.4, 0.2, 0.3]
    assert found["best of primary, sum"].seconds == 5.0
    assert set(found) == {*trials, "best of primary, sum"}  # shares are not there
    without = {"primary": trials["primary"], "sum": trial(0.1, 0.2, 0.3)}
    assert with_choices({"bed": without})["bed"] == without


def test_the_price_of_a_choice_is_that_of_all_its_trainings():
    """Two auxiliary losses: primary and sum to the end, and four candidates, of which two and then one go on."""
    of = {name: Trial([0.1, 0.2], [0.1, 0.2], [1.0] * 3, 1.0, [0.1, 0.2]) for name in ("primary", "sum", "one helper")}
    prices = {row[0]: row[-1] for row in show.rows({"bed": of})}
    assert prices["best of primary, sum"] == "2.00 (steps)"
    assert prices["one helper"] == f"{4 * 0.25 + 2 * 0.25 + 0.5:.2f} (steps)"
    assert prices["best of primary, sum, one helper"] == "4.00 (steps)"
    assert prices["primary"] == "1.00"  # its time


def test_ranks_share_a_place_and_skip_methods_that_miss_a_bed():
    results = {
        "one": {"a": trial(0.1), "b": trial(0.2), "c": trial(0.2), "d": trial(0.0)},
        "two": {"a": trial(0.3), "b": trial(0.2), "c": trial(0.1)},
    }
    assert mean_ranks(results) == {"c": 1.75, "a": 2.0, "b": 2.25}


def test_the_command_goes_on_where_it_stopped_and_shows_again(tmp_path, monkeypatch):
    monkeypatch.setattr("meltr.helps.catalogue.build", short)
    record, page = tmp_path / "helps.json", tmp_path / "page.md"
    words = ["helps", "--bed", "random", "--seeds", "0,1", "--json", str(record)]
    assert call(*words, "--method", "primary").exit_code == 0
    first = json.loads(record.read_text())["trials"]["random"]["primary"]
    result = call(*words, "--method", "primary", "--method", "sum", "--markdown", page)
    assert result.exit_code == 0, result.output
    trials = json.loads(record.read_text())["trials"]["random"]
    assert trials["primary"] == first
    assert set(trials) == {"primary", "sum"}
    assert "| sum |" in page.read_text()
    shown = call("helps", "--show", "--json", record)
    assert shown.exit_code == 0
    assert f"{sum(first['test']) / 2:.3f}" in shown.stdout


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--bed", "shwn"], ["unknown bed 'shwn'", *MADE]),
        (["--method", "meltt"], ["unknown method 'meltt'", "meltr"]),
        (["--seeds", "3"], ["at least two seeds"]),
        (["--seeds", "3-1"], ["not a range"]),
        (["--seeds", "1,1"], ["names a seed twice"]),
        (["--seeds", "a"], ["not a list of numbers"]),
        (["--show"], ["--show needs a record"]),
        (["--show", "--json", "missing.json"], ["missing.json cannot be read"]),
    ],
)
def test_wrong_words_stop_with_an_error(words, messages):
    assert_stopped(call("helps", *words), *messages)


def test_a_record_that_is_not_one_is_refused(tmp_path):
    path = tmp_path / "record.json"
    for text in (
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "seeds": [1], "where": {}, "trials": {"a": {"b": {}}}}',
        "[" * 9999,
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=r"record\.json"):
            Record.load(path)


def test_a_record_of_other_seeds_is_not_mixed_in(tmp_path):
    path = tmp_path / "record.json"
    Record([4, 5, 6], {}).save(path)
    with pytest.raises(UserError, match="of seeds 4-6, not 1,7"):
        Record.begin(path, [1, 7], {})
