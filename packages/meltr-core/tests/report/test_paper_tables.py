"""Which runs a table of the paper counts, what it makes of them, and what it says about those that are missing."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from command_line import Call, assert_stopped, command_line
from meltr.errors import UserError
from meltr.files import write_json
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry, discover
from meltr.report.paper_tables import gather, to_sheet
from meltr.report.table8 import measured, to_sheet8
from meltr.settings import resolve
from recipe_backbone import write_package

ROW = "table3/rings"


@pytest.fixture(autouse=True)
def _core_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load core and the plugins in files."""
    monkeypatch.setenv("MELTR_PLUGINS", "")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    return write_package(tmp_path_factory.mktemp("tables"))


@pytest.fixture
def registry(plugin, monkeypatch) -> Registry:
    monkeypatch.syspath_prepend(plugin.parents[1])
    return discover([plugin])


def record(registry: Registry, folder: Path, top1: float | None, *, recipe: str = ROW, **flags: object) -> None:
    """Write the folder of a run, finished with a test score, or begun if that is None."""
    spec = resolve(registry, preset=recipe, flags=flags)
    RunFolder(folder).create(spec)
    if top1 is not None:
        results = {"metric": "top1", "test": {"metrics": {"top1": top1, "top5": 100.0}}, "validation": None}
        write_json(RunFolder(folder).results, results)


def row(sheet, name: str) -> list[list[str]]:
    """Return the paper's and our cells of a row."""
    at = next(number for number, cells in enumerate(sheet.rows) if cells[1] == name)
    return [list(cells[3:]) for cells in sheet.rows[at : at + 2]]


def test_runs_are_found_at_any_depth_and_averaged_over_seeds(registry, tmp_path):
    scores = {0: 50.0, 1: 54.0, 2: 55.0}
    record(registry, tmp_path / "alone", scores[0])
    for seed in (1, 2):
        record(registry, tmp_path / "several" / f"seed-{seed}", scores[seed], seed=seed, **{"train.threads": 4})
    table = gather(registry, 3, tmp_path, sample=False)
    sheet = to_sheet(table, [0, 1, 2])
    values = list(scores.values())
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    assert row(sheet, "toy & MELTR_1") == [["51.7", "unknown"], [f"{mean:.1f} ± {spread:.1f}", "100.0 ± 0.0"]]
    assert row(sheet, "toy")[1] == ["missing", "missing"]
    assert sheet.commands == [
        ("missing: table3/rings-baseline", "meltr run --recipe table3/rings-baseline --data-root DIR --seed 0,1,2")
    ]


def test_a_missing_seed_and_a_run_that_was_begun_name_their_commands(registry, tmp_path):
    record(registry, tmp_path / "a", 50.0)
    record(registry, tmp_path / "b", None, recipe="table3/rings-baseline")
    commands = to_sheet(gather(registry, 3, tmp_path, sample=False), [0, 1]).commands
    assert commands == [
        ("table3/rings-baseline, begun", f"meltr run --resume {tmp_path / 'b'}"),
        ("missing: table3/rings", "meltr run --recipe table3/rings --data-root DIR --seed 1"),
    ]


def test_a_run_with_other_settings_is_not_counted_and_the_table_says_why(registry, tmp_path):
    record(registry, tmp_path / "a", 90.0, **{"train.epochs": 1, "train.lr": 0.5})
    record(registry, tmp_path / "b", 50.0)
    record(registry, tmp_path / "c", 70.0)
    sheet = to_sheet(gather(registry, 3, tmp_path, sample=False), [0])
    assert row(sheet, "toy & MELTR_1")[1][0] == "50.0"
    assert any("differs from table3/rings in train.epochs, train.lr" in note for note in sheet.notes)
    assert any(f"seed 0 of table3/rings is {tmp_path / 'b'}" in note for note in sheet.notes)


def test_a_run_without_the_published_weights_is_not_counted(registry, tmp_path):
    record(registry, tmp_path / "a", 20.0, recipe="table9/gamma-1")
    record(registry, tmp_path / "b", 28.0, recipe="table9/gamma-1", seed=1, **{"options.weights": "/my/published.bin"})
    sheet = to_sheet(gather(registry, 9, tmp_path, sample=False), [1])
    assert row(sheet, "gamma = 1") == [["28.6"], ["28.0"]]
    assert any("differs from table9/gamma-1 in options.weights" in note for note in sheet.notes)
    (left,) = to_sheet(gather(registry, 9, tmp_path, sample=False), [2]).commands
    assert left[1] == "meltr run --recipe table9/gamma-1 --data-root DIR --set weights=published.bin --seed 2"


def test_miniatures_are_never_mixed_with_runs_on_real_data(registry, tmp_path):
    record(registry, tmp_path / "a", 50.0)
    record(registry, tmp_path / "b", 10.0, sample=True)
    for sample, value in ((False, "50.0"), (True, "10.0")):
        sheet = to_sheet(gather(registry, 3, tmp_path, sample=sample), [0])
        assert row(sheet, "toy & MELTR_1")[1][0] == value
        assert any("nothing about the paper's data" in note for note in sheet.notes) == sample


def test_a_table_without_recipes_is_refused(registry, tmp_path):
    with pytest.raises(UserError, match="no installed backbone has recipes for table 5"):
        gather(registry, 5, tmp_path, sample=False)


def test_table_8_is_read_from_the_file_of_bench(registry):
    recipe = gather(registry, 3, Path("nowhere"), sample=False).lines[1].recipe
    paper = recipe.paper.model_copy(update={"table": 8, "figures": {"time": 1.049, "memory": None}})
    lite = recipe.model_copy(update={"settings": {"bilevel.scheme": "aid-fp-lite"}, "paper": paper})
    mtl = recipe.model_copy(update={"settings": {"combiner": "sum"}, "paper": paper.model_copy(update={"row": "MTL"})})
    rows = [{"name": "sum", "time": 1.0, "memory": 1.0}, {"name": "aid-fp-lite", "time": 1.5, "memory": None}]
    content = {"cases": [{"rows": rows}], "date": "today", "device": "cpu", "command": "meltr bench"}
    sheet = to_sheet8([mtl, lite], content, Path("f.json"), sample=False)
    assert [list(cells[2:]) for cells in sheet.rows] == [
        ["1.05x", "unknown"], ["1.00x", "1.00x"], ["1.05x", "unknown"], ["1.50x", "missing"],
    ]  # fmt: skip
    assert sheet.commands == []
    (missing,) = to_sheet8([mtl, lite], None, Path("f.json"), sample=False).commands
    assert missing[1].endswith("--variants sum,aid-fp-lite --json f.json")
    with pytest.raises(UserError, match="not written by meltr bench"):
        measured({"case": []}, [mtl])


@pytest.fixture
def meltr(plugin, monkeypatch) -> Call:
    monkeypatch.syspath_prepend(plugin.parents[1])
    return command_line(plugin)


def test_the_command_runs_the_miniature_once_and_writes_every_format(meltr, tmp_path):
    words = ("table", 3, "--sample", "--runs", tmp_path, "--seed", "0")
    first = meltr(*words, "--json")
    assert first.exit_code == 0, first.output
    found = {each["recipe"]: each for each in json.loads(first.stdout)["rows"]}
    assert found[ROW]["runs"] == {"0": str(tmp_path / "table3-sample" / "rings" / "seed-0")}
    assert len(found["table3/rings-baseline"]["values"]["top1"]) == 1
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}
    for suffix, part in ((".md", "| Rings | toy |"), (".html", "<td>toy</td>"), (".tex", r"toy \& MELTR\_1")):
        out = tmp_path / f"t{suffix}"
        assert meltr(*words, "--out", out).exit_code == 0
        assert part in out.read_text(encoding="utf-8")
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("results.json")}, "nothing ran again"
    shown = meltr(*words)
    assert "missing" not in shown.stdout
    assert "figures of ours are of the miniature" in shown.stdout
    assert_stopped(meltr(*words, "--out", tmp_path / "t.pdf"), "the format of", ".tex")
    assert_stopped(meltr(*words, "--format", "pdf"), "there is no format 'pdf'")


def test_recipes_are_listed_and_filtered(meltr):
    assert [each["name"] for each in json.loads(meltr("recipes", "--json", "--table", "9").stdout)["recipes"]] == [
        "table9/gamma-1"
    ]
    assert "no recipe fits" in meltr("recipes", "--status", "reproduced").stdout
    shown = meltr("recipes", "table3/rings").stdout
    assert "top1 51.7, top5 unknown" in shown
    assert "table 3, Rings, toy & MELTR_1" in shown
    assert_stopped(meltr("recipes", "--status", "done"), "there is no status 'done'", "reproduced")
    assert_stopped(meltr("recipes", "table3/nothing"), "there is no recipe 'table3/nothing'")
    assert_stopped(
        meltr("recipes", "table3"), "there is no recipe 'table3'", "Did you mean 'table", "`meltr recipes` lists"
    )
    assert_stopped(meltr("recipes", "usuals"), "Did you mean 'usual'")
