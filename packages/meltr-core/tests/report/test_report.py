"""Reading runs, comparing them and drawing them, on run folders as the engine writes them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from command_line import call
from meltr.cli import compare as compare_command
from meltr.cli import plot as plot_command
from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.report import series, statistics, style, tables
from meltr.report.compare import compare
from meltr.report.plots import FIGURES, draw
from meltr.report.runs import load_group, load_run
from run_folders import LOSSES, make_run, make_seeds

# Reading


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "a", seed=3))
    assert (run.name, run.seed, run.losses, run.metric) == ("a", 3, LOSSES, "top1")
    assert (len(run.train), len(run.outer), len(run.evaluations)) == (20, 20, 4)


def test_a_killed_run_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", finished=False) / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    run = load_run(path.parent)
    assert run.results is None
    assert (len(run.train), len(run.evaluations)) == (20, 3)
    assert run.metric == "top1"


def test_strings_for_numbers_that_json_lacks_are_read_back(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a") / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1, "epoch": 0.1, "losses": {"ce": "NaN"}, "combined": "Infinity"}\n')
    line = load_run(path.parent).train[0]
    assert math.isnan(line["losses"]["ce"])
    assert line["combined"] == math.inf


def test_a_broken_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a") / "metrics.jsonl"
    path.write_text('{"kind": "tr\n' + path.read_text())
    with pytest.raises(UserError, match="line 1, is not valid JSON"):
        load_run(path.parent)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("test", [1, 2]),
        ("validation", "good"),
        ("metric", ["top1"]),
        ("seed", "x"),
        ("losses", "ce"),
        ("test", {"metrics": [1]}),
        ("test", {"metrics": {"top1": "high"}}),
    ],
)
def test_results_of_other_types_are_an_error_that_names_them(tmp_path: Path, name: str, value: Any) -> None:
    path = make_run(tmp_path / "a") / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    for read in (load_run, lambda path: RunFolder(path).read_results()):
        with pytest.raises(UserError, match=rf"results\.json does not hold the results of a run: .*'{name}'"):
            read(path.parent)


def test_seeds_are_read_in_numerical_order(tmp_path: Path) -> None:
    for seed in (10, 2, 0):
        make_run(tmp_path / "a" / f"seed-{seed}", seed=seed)
    group = load_group(tmp_path / "a")
    assert [run.seed for run in group.runs] == [0, 2, 10]
    assert group.runs[0].name == "a/seed-0"
    with pytest.raises(UserError, match="holds several seeds: seed-0, seed-2, seed-10"):
        load_run(tmp_path / "a")


def test_wrong_folders_are_named_with_the_runs_nearby(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    with pytest.raises(UserError, match="does not exist") as missing:
        load_group(tmp_path / "goood")
    assert "good" in str(missing.value.hint)
    with pytest.raises(UserError, match=r"not a run folder: it has none of run\.yaml, metrics\.jsonl, results\.json"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        load_run(tmp_path / "good" / "run.yaml")
    (tmp_path / "empty" / "seed-0").mkdir(parents=True)
    with pytest.raises(UserError, match="1 seeds, but none has"):
        load_group(tmp_path / "empty")
    (tmp_path / "good" / "results.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_run(tmp_path / "good")


# Statistics


@pytest.mark.parametrize("count", [2, 3, 5, 12, 40])
@pytest.mark.parametrize("shift", [0.0, 0.5, 5.0])
def test_p_values_agree_with_scipy(count: int, shift: float) -> None:
    oracle = pytest.importorskip("scipy.stats")
    differences = [float(value) for value in np.random.default_rng(count).normal(shift, 1, count)]
    assert statistics.paired_t(differences) == pytest.approx(oracle.ttest_1samp(differences, 0).pvalue, rel=1e-9)
    exact = oracle.wilcoxon(differences, method="exact").pvalue
    assert statistics.signed_rank(differences) == pytest.approx(exact, rel=1e-12)


def test_incomplete_beta_agrees_with_scipy() -> None:
    special = pytest.importorskip("scipy.special")
    for a in (0.5, 1.0, 4.5, 200.0):
        for x in (0.0, 1e-6, 0.3, 0.9, 1 - 1e-9, 1.0):
            assert statistics.incomplete_beta(a, 0.5, x) == pytest.approx(special.betainc(a, 0.5, x), rel=1e-9)


def test_p_values_of_degenerate_samples() -> None:
    assert statistics.paired_t([1.0]) is None
    assert statistics.paired_t([0.3, 0.3, 0.3]) is None
    assert statistics.signed_rank([0.0, 0.0]) is None
    assert statistics.signed_rank([1.0, 1.0, 1.0, -1.0]) == pytest.approx(10 / 16)
    assert statistics.signed_rank([1.0] * 5) == 2 / 2**5


# Comparing


def test_comparison_of_seeds(tmp_path: Path) -> None:
    first = make_seeds(tmp_path / "sum", [78.0, 79.0, 80.0], combiner="sum")
    second = make_seeds(tmp_path / "meltr", [79.0, 79.5, 82.0, 90.0])
    rows = compare([first, second]).rows
    assert (rows[0].mean, rows[0].std, rows[0].difference) == (79.0, 1.0, None)
    assert rows[1].values == {0: 79.0, 1: 79.5, 2: 82.0, 3: 90.0}
    assert (rows[1].difference, rows[1].pairs, rows[1].relative_seconds) == (pytest.approx(3.5 / 3), 3, 1.0)
    assert rows[1].p_t == pytest.approx(0.11808, rel=1e-3)
    assert rows[1].p_signed_rank == 0.25


def test_runs_that_differ_in_the_seed_only_become_one_row(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"a-s{seed}", seed=seed, value=80.0 + seed) for seed in (0, 1)]
    other = make_run(tmp_path / "b", combiner="sum", seed=7)
    again = make_run(tmp_path / "c", seed=1)
    comparison = compare([paths[0], other, paths[1], again, other])
    assert [(row.label, len(row.values)) for row in comparison.rows] == [("a", 2), ("b", 1), ("c", 1)]
    assert comparison.rows[1].pairs == 0
    assert comparison.rows[1].difference == pytest.approx(-0.5)
    assert any("given twice" in note for note in comparison.notes)
    assert any("untested" in note for note in comparison.notes)


def test_validation_stands_in_for_a_missing_test_and_says_so(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a", count=50), make_run(tmp_path / "b", tested=False, combiner="sum")]
    comparison = compare(paths)
    assert comparison.split == "validation"
    assert any("no test results in b" in note for note in comparison.notes)
    assert any("(100, 50)" in note for note in comparison.notes)
    with pytest.raises(UserError, match="No test results in: b"):
        compare(paths, split="test")
    with pytest.raises(UserError, match="Unknown split 'tets'") as error:
        compare(paths, split="tets")
    assert "Did you mean 'test'" in str(error.value)


@pytest.mark.parametrize("change", [{"dataset": "e"}, {"task": "qa"}, {"sample": True}, {"metric": "accuracy"}])
def test_what_cannot_be_compared_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", **change)]
    with pytest.raises(UserError, match=rf"differ in their .*{next(iter(change))}"):
        compare(paths)


def test_another_metric(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a"), make_run(tmp_path / "b", metric="accuracy", combiner="sum")]
    comparison = compare(paths, metric="top5")
    assert comparison.rows[0].mean == 90.0
    assert comparison.higher_is_better is None
    with pytest.raises(UserError, match="'top1' is missing in the test results of: b"):
        compare(paths, metric="top1")


def test_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    parent = make_seeds(tmp_path / "a", [80.0, 81.0])
    (parent / "seed-1" / "results.json").unlink()
    assert any("seed-1 has no results.json" in note for note in compare([parent]).notes)
    (parent / "seed-0" / "results.json").unlink()
    with pytest.raises(UserError, match="no results yet") as error:
        compare([parent])
    assert "meltr run --resume" in str(error.value)


def test_tables(tmp_path: Path) -> None:
    paths = [make_seeds(tmp_path / "a|b", [0.78, 0.79]), make_seeds(tmp_path / "c", [0.79, 0.81], combiner="sum")]
    markdown = tables.to_markdown(compare(paths))
    assert r"| a\|b | meltr | 2 | 0.7850 ± 0.0071 | reference |  |  | x1.00 |" in markdown
    assert "| c | sum | 2 | 0.8000 ± 0.0141 | +0.0150 | 0.205 | 0.500 | x1.00 |" in markdown
    assert "Losses: ce, rotation." in markdown
    assert tables.to_rich(compare(paths)).row_count == 2


# Drawing


def test_settings_that_differ_are_named(tmp_path: Path, app: typer.Typer) -> None:
    options = [{"width": 16}, {"width": 32}, {}]
    names = ("meltr", "meltr", "sum")
    paths = [
        make_run(tmp_path / f"r{i}", combiner=name, combiner_options=own, device=f"cuda:{i}")
        for i, (name, own) in enumerate(zip(names, options, strict=True))
    ]
    found = {each.name: each.values for each in compare(paths).settings}
    assert found == {"combiner": names, "combiner_options.width": ("16", "32", "-")}
    assert [each.name for each in compare([paths[0], paths[2]]).settings] == ["combiner"]
    assert compare(paths[:1]).settings == ()
    content = json.loads(call("compare", *paths, "--json", app=app).stdout)
    assert content["settings"][1] == {"name": "combiner_options.width", "values": ["16", "32", "-"]}
    printed = call("compare", *paths, app=app).stdout
    assert printed.split("Settings that differ:")[1].split() == [
        *("setting", "r0", "r1", "r2", "combiner", *names, "combiner_options.width", "16", "32", "-")
    ]
    assert "| combiner_options.width | 16 | 32 | - |" in call("compare", *paths, "--markdown", app=app).stdout


def test_per_epoch_means_and_short_runs(tmp_path: Path) -> None:
    runs = load_group(make_seeds(tmp_path / "a", [80.0, 81.0])).runs
    curve = series.collect(runs, "train", lambda line: line["step"])
    assert curve is not None
    epochs = series.per_epoch(curve)
    assert epochs.epochs.tolist() == [1, 2, 3, 4]
    assert epochs.mean.tolist() == [6, 16, 26, 36]
    short = series.Curve(curve.steps[:5], curve.epochs[:5], curve.values[:, :5])
    assert series.per_epoch(short).epochs.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_smoothing_keeps_means_and_leaves_nan_out() -> None:
    x = np.arange(120.0)
    values = np.vstack([np.full(120, 2.0), x])
    values[0, 7] = np.nan
    smoothed, window = series.smooth(series.Curve(x, x, values), 12)
    assert window == 11
    assert np.isnan(smoothed.values[0, 7])
    assert np.nanmax(np.abs(smoothed.values[0] - 2)) < 1e-12
    assert smoothed.values[1, 5:-5] == pytest.approx(x[5:-5])


@pytest.mark.parametrize("several", [False, True])
def test_every_plot_is_drawn(tmp_path: Path, several: bool) -> None:
    pytest.importorskip("matplotlib")
    path = make_seeds(tmp_path / "a", [80.0, 81.0]) if several else make_run(tmp_path / "a", finished=False)
    plots = draw(load_group(path), formats=("png", "svg"))
    assert set(plots.files) == set(FIGURES)
    assert plots.skipped == {}
    for name, files in plots.files.items():
        assert files == [path / "plots" / f"{name}.png", path / "plots" / f"{name}.svg"]
        assert files[0].read_bytes()[:4] == b"\x89PNG"


def test_tasks_are_told_apart_without_colour_alone() -> None:
    looks = [tuple(sorted(style.look(index).items())) for index in range(16)]
    assert len(set(looks)) == 16
    assert len({style.look(index)["marker"] for index in range(6)}) == 6


def test_a_plot_without_numbers_is_skipped_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = draw(load_group(make_run(tmp_path / "a", combiner="sum", losses=["ce"])), tmp_path / "out")
    assert list(plots.skipped) == ["gradient_products"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.png", "losses.png", "sensitivities.png",
    ]  # fmt: skip


def test_drawing_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "a")
    with pytest.raises(UserError, match="Unknown format 'pgn'"):
        draw(load_group(path), formats=("pgn",))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"meltr-core\[plots\]"):
        draw(load_group(path))
    monkeypatch.undo()
    (path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing logged yet") as error:
        draw(load_group(path))
    assert "every 2 steps" in str(error.value)


# Commands


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    plot_command.register(app)
    compare_command.register(app)
    return app


def test_plot_command(tmp_path: Path, app: typer.Typer) -> None:
    pytest.importorskip("matplotlib")
    path = make_run(tmp_path / "a", combiner="sum")
    result = call("plot", path, "--output", tmp_path / "o", "--format", "svg", "--json", app=app)
    content = json.loads(result.stdout)
    assert content["files"]["losses"] == [str(tmp_path / "o" / "losses.svg")]
    assert "gradient_products" in content["skipped"]
    result = call("plot", path, app=app)
    assert str(path / "plots" / "losses.png") in result.stdout
    assert "no gradient_products plot" in result.stderr


def test_compare_command(tmp_path: Path, app: typer.Typer) -> None:
    paths = [str(make_run(tmp_path / name, combiner=name)) for name in ("meltr", "sum")]
    content = json.loads(call("compare", *paths, "--json", app=app).stdout)
    assert [row["label"] for row in content["rows"]] == ["meltr", "sum"]
    assert "higher is better" in call("compare", *paths, app=app).stdout
    assert call("compare", *paths, "--markdown", app=app).stdout.startswith("| run |")
    result = call("compare", *paths, "--markdown", "--json", app=app)
    assert isinstance(result.exception, UserError)
