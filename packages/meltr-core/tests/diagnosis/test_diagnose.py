"""`meltr diagnose`: the statistics, verdicts on curves that are made, one's own loop, runs, and the command."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import meltr
from command_line import assert_stopped, command_line
from meltr.diagnosis import curves, truth
from meltr.diagnosis.effects import crossed, of_mean, quantile
from meltr.diagnosis.experiment import Budget, Measured, arms, measure
from meltr.diagnosis.hit_rate import TRUTHS, HitRate
from meltr.diagnosis.subject import rows_of
from meltr.diagnosis.verdicts import WORDS, judge
from meltr.errors import UserError
from meltr.helps.made import made
from meltr.seeding import derive
from places import TOY


def test_the_quantile_and_the_interval_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 5, 40):
        assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    values = [0.3, -0.1, 0.4, 0.2]
    found, expected = of_mean(values), stats.ttest_1samp(values, 0)
    low, high = expected.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue))


def table(draw: random.Random, *, rows: float, columns: float, cells: float, size: tuple[int, int] = (6, 10)):
    by_row = [draw.gauss(0, rows) for _ in range(size[0])]
    by_column = [draw.gauss(0, columns) for _ in range(size[1])]
    return [[r + c + draw.gauss(0, cells) for c in by_column] for r in by_row]


@pytest.mark.parametrize("spread", [{"rows": 1, "columns": 0}, {"rows": 0, "columns": 1}, {"rows": 1, "columns": 1}])
def test_the_interval_covers_what_branches_and_examples_share(spread):
    """95 of 100 intervals must contain the truth, 0, whether branches or examples differ; never fewer."""
    draw = random.Random(1)
    found = [crossed(table(draw, **spread, cells=0.5)) for _ in range(600)]
    assert sum(each.low <= 0 <= each.high for each in found) / 600 > 0.93
    alone = [of_mean([sum(row) / len(row) for row in table(draw, rows=0, columns=1, cells=0.5)]) for _ in range(300)]
    assert sum(each.low <= 0 <= each.high for each in alone) / 300 < 0.6  # branches alone do not see the examples


def made_up(alone: list[float], added: list[float], *, price: float = 1.2, noise: float = 1e-3) -> Measured:
    """Return branches whose curves are these, with a little noise."""
    draw, names = random.Random(0), ("main", "other")
    found = Measured(names, [10 * (mark + 1) for mark in range(len(alone))])

    def scores(line):
        return [[[value + draw.gauss(0, noise) for _ in range(8)] for value in line] for _ in range(6)]

    found.scores = {("main",): scores(alone), names: scores(added)}
    found.seconds = {("main",): [1.0] * 6, names: [price] * 6}
    found.mebibytes = {("main",): 100.0, names: 150.0}
    found.vectors = [[[[4.0, 1.0, -1.0], [1.0, 4.0, 0.5], [-1.0, 0.5, 1.0]]]] * 6
    return found


SETTLING = [2.0, 1.5, 1.2, 1.05, 1.01, 1.0, 1.0, 1.0]
FALLING = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3]


@pytest.mark.parametrize(
    ("alone", "added", "price", "verdict", "words"),
    [
        (SETTLING, [0.9 * value for value in SETTLING], 1.5, "helps", "lower with it, -10.0 %"),
        (SETTLING, [1.2 * value for value in SETTLING], 1.0, "hurts", "higher with it, +20.0 %"),
        (SETTLING, SETTLING, 1.5, "costs more than it gives", "1.50 times as long"),
        (SETTLING, SETTLING, 1.0, "cannot be told from noise", "More branches"),
        # Slower so far, and both still fall: the end cannot be known.
        (FALLING, [value + 0.1 for value in FALLING], 1.0, "cannot be told from noise", "too short"),
        # So much slower that more steps would not change the answer.
        (FALLING, [2.0, 1.97, 1.94, 1.91, 1.88, 1.85, 1.82, 1.79], 1.0, "hurts", "still falling"),
        # Ahead after the same steps, behind after the same time; and ahead in both.
        (FALLING, [value - 0.1 for value in FALLING], 2.0, "costs more than it gives", "needs 70 steps"),
        (FALLING, [value - 0.1 for value in FALLING], 1.1, "helps", "still falling"),
    ],
)
def test_every_verdict_has_its_curves(alone, added, price, verdict, words):
    (found,) = judge(made_up(alone, added, price=price))
    assert found.verdict == verdict, found.sentence
    assert words in found.sentence
    assert found.sentence.startswith(f"other {verdict}: ")
    assert (found.time, found.memory) == (price, 1.5)
    assert found.alignment.mean == pytest.approx(-0.5)  # -1 / sqrt(4 * 1), of v and the row of 'other'


def test_a_loss_that_others_replace_is_told_so():
    """Two losses that bring the same: each helps alone, and brings nothing beside the other."""
    better = [0.9 * value for value in SETTLING]
    one = made_up(SETTLING, better)
    names = ("main", "other", "twin")
    found = dataclasses.replace(one, losses=names, scores={**one.scores}, vectors=[[[[1.0] * 4] * 4]] * 6)
    found.scores[("main", "twin")] = found.scores[names] = one.scores[("main", "other")]
    found.seconds = dict.fromkeys(found.scores, [1.0] * 6)
    found.mebibytes = dict.fromkeys(found.scores)
    first, second = judge(found)
    assert first.verdict == second.verdict == "helps"
    assert "Beside twin it brings 10" in first.sentence
    assert first.sentence.endswith("% less.")
    assert first.company.mean == pytest.approx(0)


def test_curves_settle_and_are_reached_between_marks():
    assert curves.settled(SETTLING)
    assert not curves.settled(FALLING)
    assert not curves.settled([1.0, 1.0, 1.0])
    assert curves.reached([4.0, 2.0], [10, 20], 3.0) == 15
    assert curves.reached([4.0, 2.0], [10, 20], 1.0) is None


def test_arms_are_each_loss_added_and_each_taken_away():
    assert arms(("p", "a")) == [("p",), ("p", "a")]
    assert arms(("p", "a", "b")) == [("p",), ("p", "a"), ("p", "b"), ("p", "a", "b")]
    assert len(arms(tuple("pabc"))) == 8


class OneBed:
    """A bed of one seed, branch by branch, as a subject."""

    device = torch.device("cpu")

    def __init__(self, name: str, seed: int) -> None:
        self.bed = made(name, [seed])
        self.losses, self.seed = self.bed.losses, seed

    def begin(self, branch, wanted):
        bed = dataclasses.replace(self.bed, seeds=[derive(self.seed, "branch", branch)])
        network = bed.network()
        optimizer = torch.optim.AdamW(network.parameters(), bed.lr, weight_decay=bed.weight_decay)
        batches = (batch for epoch in range(99) for batch in bed.batches(epoch))
        weights = torch.tensor([float(name in wanted) for name in bed.losses])

        class Arm:
            def steps(self, number):
                for _ in range(number):
                    optimizer.zero_grad()
                    (bed.task_losses(network, next(batches)) * weights).sum().backward()
                    optimizer.step()

            def held_out(self):
                return truth.held_out(bed, network)[0].tolist()

            def gradients(self, point):
                size = bed.validation // truth.PARTS
                first = bed.training + size * (point % truth.PARTS)
                rows, parameters = torch.arange(first, first + size)[None], list(network.parameters())
                primary = bed.tasks[0].loss(network(bed.inputs[:, rows[0]]), rows)
                (v,) = rows_of({"v": primary.sum()}, parameters)
                losses = bed.task_losses(network, next(bed.batches(point, order=1)))[0]
                return v, rows_of(dict(zip(bed.losses, losses, strict=True)), parameters)

        return Arm()


def test_seeds_side_by_side_show_what_each_shows_alone():
    budget = Budget(steps=16, branches=2, looks=2)
    alone, together = measure(OneBed("mixed", 4), budget), truth.measured("mixed", [3, 4], budget)[1]
    assert list(alone.scores) == list(together.scores)
    for names, scores in alone.scores.items():
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(together.scores[names]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.tensor(alone.vectors), torch.tensor(together.vectors), atol=1e-4, rtol=2e-3)


def own_loop():
    """Return a model, losses and batches: 32 labels of a line; the other loss shows its opposite."""
    generator = torch.Generator().manual_seed(0)
    line = torch.randn(8, generator=generator)
    points = torch.randn(8 * 48, 8, generator=generator)
    side = (points @ line).sign()
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 1))

    def losses(batch, names):
        number = batch
        own = points[32 * number : 32 * number + 32]
        wanted = side[32 * number : 32 * number + 32]
        values = {
            "side": lambda: F.soft_margin_loss(model(own)[:, 0], wanted),
            "other": lambda: F.soft_margin_loss(model(points[:128])[:, 0], -side[:128]),
        }
        return {name: values[name]() for name in names or values}

    def optimizer():
        return torch.optim.Adam(model.parameters(), 0.02)

    return model, losses, [0], list(range(4, 12)), optimizer


def test_a_loop_of_ones_own_is_diagnosed_and_left_as_it_was():
    torch.manual_seed(3)
    model, losses, train, held_out, optimizer = own_loop()
    losses(0, None)["side"].backward()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [each.grad.clone() for each in model.parameters()]
    state, python = torch.get_rng_state(), random.getstate()
    words = {"optimizer": optimizer, "steps": 40, "branches": 4, "looks": 8, "seed": 5}
    found = meltr.diagnose(model, losses, train, held_out, **words)
    assert found["other"].verdict == "hurts", str(found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a.grad, b) for a, b in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model[3].training
    assert model[1].training
    assert random.getstate() == python
    again = meltr.diagnose(model, losses, train, held_out, **words)
    assert again.curves == found.curves
    assert found.keep == ("side",)
    assert found.settings == "--combiner primary"


def test_branches_differ_by_their_start():
    model, losses, train, held_out, optimizer = own_loop()
    begun = []

    def start(seed):
        begun.append(seed)
        for each in model.parameters():
            nn.init.normal_(each, std=0.1)

    meltr.diagnose(model, losses, train, held_out, optimizer=optimizer, steps=2, branches=2, looks=1, start=start)
    assert len(set(begun)) == 2  # the arms of a branch have the same weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"held_out": [4]}, "held_out has 1 batches"),
        ({"train": []}, "train has no batches"),
        ({"branches": 1}, "at least 2"),
        ({"losses": lambda batch: {"side": torch.zeros(())}}, "at least one other"),
        ({"losses": lambda batch: torch.zeros(2)}, "must return a mapping"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(change, message):
    model, losses, train, held_out, optimizer = own_loop()
    words = {"losses": losses, "train": train, "held_out": held_out, "branches": 2, **change}
    with pytest.raises(UserError, match=message):
        meltr.diagnose(model, optimizer=optimizer, steps=2, **words)


RUN = ("--set", "losses=ce,denoise", "--batch-size", "32")
SHORT = ("--steps", "9", "--branches", "2", "--looks", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the command line and the folder of a finished run with held-out examples."""
    folder, meltr_ = tmp_path_factory.mktemp("diagnose"), command_line(TOY)
    words = ("--backbone", "toy", *RUN, "--epochs", "1", "--set", "outer_batch=held_out", "--plugin", TOY)
    done = meltr_("run", *words, "--output-dir", folder, "--name", "run", "--combiner", "sum")
    assert done.exit_code == 0, done.output
    return meltr_, folder / "run"


def test_a_run_is_diagnosed_from_its_checkpoint_and_not_changed(run):
    meltr_, folder = run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = meltr_("diagnose", folder, "--trust", "--from", "best", *SHORT)
    assert result.exit_code == 0, result.output
    content = json.loads((folder / "diagnose.json").read_text())
    (verdict,) = content["verdicts"]
    assert (verdict["task"], verdict["verdict"] in WORDS) == ("denoise", True)
    assert verdict["sentence"] in result.stdout
    assert content["settings"] in result.stdout
    assert content["start"] == "checkpoint best of run"
    assert verdict["time"] > 0
    assert verdict["memory"] > 1  # it evaluates the model twice
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path in before}
    assert {path.name for path in folder.rglob("*") if path not in before and path.is_file()} == {"diagnose.json"}


def test_the_primary_arm_of_a_run_trains_as_the_engine_does(run, tmp_path):
    """The first branch has the seed of the run: its primary arm is a run with ``--combiner primary``, bit for bit."""
    from meltr.diagnosis.of_run import RunSubject, steady
    from meltr.engine.built_run import build_run
    from meltr.engine.trainer import Trainer
    from meltr.plugins import discover
    from meltr.settings import resolve

    registry = discover([TOY])
    flags = {"losses": ["ce", "denoise"], "train.batch_size": 32, "device": "cpu", "train.epochs": 1}
    spec = resolve(registry, backbone="toy", task="classification", dataset="rings", flags=flags)
    subject = RunSubject(steady(registry, spec, held_out=None), registry, folder=None)
    arm = subject.begin(0, ("ce",))
    arm.steps(3)
    arm.steps(5)
    found = [each.detach().clone() for each in subject.model.parameters()]
    built = build_run(resolve(registry, config=spec.model_dump(mode="json"), flags={"combiner": "primary"}), registry)
    trainer = Trainer(
        built.hooks, built.context, dataclasses.replace(built.data, validation=None), model=built.model,
        combiner=built.combiner, scheme=built.scheme, estimator=built.estimator,
    )  # fmt: skip
    trainer.fit()
    assert trainer.step == 8
    assert all(torch.equal(a, b) for a, b in zip(built.model.parameters(), found, strict=True))
    again = subject.begin(1, ("ce",))
    assert not torch.equal(next(subject.model.parameters()), next(built.model.parameters()))
    assert len(again.held_out()) == 8


def test_a_new_diagnosis_has_a_folder_of_its_own(run, tmp_path):
    meltr_, _ = run
    for name in ("toy-classification-rings-diagnose", "toy-classification-rings-diagnose-2"):
        words = ("--backbone", "toy", *RUN, "--steps", "1", "--branches", "2", "--output-dir", tmp_path, "--json")
        result = meltr_("diagnose", *words)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == json.loads((tmp_path / name / "diagnose.json").read_text())


def test_wrong_words_stop_with_an_error(run, tmp_path):
    meltr_, folder = run
    assert_stopped(meltr_("diagnose", folder, "--backbone", "toy"), "RUN has its own settings")
    assert_stopped(meltr_("diagnose", "--backbone", "toy", "--from", "best"), "--from best needs a run")
    assert_stopped(meltr_("diagnose", folder), "--trust")
    held_out = ("--from", "best", "--held-out", "0.5", "--trust")
    assert_stopped(meltr_("diagnose", folder, *held_out), "trained on the examples that would be held out")
    assert_stopped(meltr_("diagnose", "--backbone", "toy", "--set", "losses=ce"), "no auxiliary one to diagnose")
    assert_stopped(meltr_("diagnose", tmp_path), "run")


def test_a_record_of_hit_rates_is_read_again(tmp_path):
    runs = truth.measured("echo", [0, 1], Budget(steps=8, branches=2, looks=2))
    record = HitRate([0, 1], {"date": "2026-01-01", "command": "c", "versions": {"torch": "2"}})
    record.add("echo", [(judge(each), 1.0) for each in runs])
    record.save(tmp_path / "record.json")
    assert HitRate.load(tmp_path / "record.json").markdown() == record.markdown()
    assert "| echo | echo | neither |" in record.markdown()
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UserError, match="not a record of hit rates"):
        HitRate.load(tmp_path / "record.json")


def test_every_loss_of_the_beds_has_a_truth():
    from meltr.helps.made import MADE

    assert {(bed, task[0]) for bed, spec in MADE.items() for task in spec[2]} == set(TRUTHS)
