"""``meltr bench``: tables, files, cases, and wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from command_line import assert_stopped, call
from measure_cases import CHOICE, SMALL, TOY, spoilt

TINY = ["width=8", "depth=1", "tokens=4", "vocabulary=8", "examples=8", "options.heads=2"]
CASE = ["--case", "transformer-small", "--batch-size", "4", "--device", "cpu", "--repeat", "1"]
CASE += [word for size in TINY for word in ("--set", f"options.{size}" if size[0] == "w" else size)]
CASE += ["--set", "combiner_options.width=8", "--set", "combiner_options.heads=2"]


def bench(*words, plugin=TOY):
    return call("bench", "--plugin", plugin, *words)


def test_the_table_of_a_run(tmp_path):
    numbers, page = tmp_path / "numbers.json", tmp_path / "page.md"
    page.write_text("# Cost\n\n<!-- meltr bench: begin -->\n<!-- meltr bench: end -->\n")
    result = bench(
        *CHOICE, *SMALL, "--variants", "difference,released", "--repeat", 2, "--json", numbers, "--markdown", page
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Measured on ")
    assert " with `meltr" in lines[0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [row[0] for row in table] == ["variant", "---", "sum", "difference", "released"]
    columns = {name: [row[index] for row in table[2:]] for index, name in enumerate(table[0])}
    assert columns["time"][0] == columns["memory"][0] == columns["FLOPs"][0] == "1.00x"
    assert columns["losses"] == ["3", "3 + 2 without", "5"]
    assert columns["backwards"] == ["3", "4", "7 (2)"]
    assert columns["g by"] == ["-", "difference", "double_backward"]
    assert page.read_text().startswith("# Cost\n\n<!-- meltr bench: begin -->\n\nMeasured on ")
    assert result.stdout.strip() in page.read_text()
    check_numbers(json.loads(numbers.read_text()))


def check_numbers(content):
    assert {"versions", "device", "threads", "command", "date", "cases"} <= set(content)
    (case,) = content["cases"]
    assert case["title"] == "toy / classification / rings"
    assert (case["every"], case["turns"]) == (3, 2)
    assert case["run"]["batch_size"] == 32
    rows = {row["name"]: row for row in case["rows"]}
    assert rows["sum"]["time"] == 1.0
    assert rows["sum"]["operations"]["backwards"] == 3
    low, high = rows["difference"]["time_quartiles"]
    assert low <= rows["difference"]["time"] <= high
    assert rows["difference"]["gradient"]["error"] < 1e-2
    assert rows["released"]["settings"]["bilevel.outer_batch"] == "replay"


def test_a_case_as_json_with_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "bars.png"
    result = bench(*CASE, "--variants", "aid-fp-lite,per_task", "--json", "-", "--plot", plot)
    assert result.exit_code == 0, result.output
    (case,) = json.loads(result.stdout)["cases"]
    assert case["title"] == "transformer-small"
    assert len(case["run"]["losses"]) == 4
    assert [row["name"] for row in case["rows"]] == ["sum", "aid-fp-lite", "per_task"]
    assert case["rows"][1]["estimator"] == "forward"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_approximations(tmp_path):
    numbers = tmp_path / "numbers.json"
    words = ["--approximations", "--steps", 6, "--variants", "heads,K=6", "--repeat", 1, "--json", numbers]
    result = bench(*CHOICE, *SMALL, *words)
    assert result.exit_code == 0, result.output
    table = [line.split("|") for line in result.stdout.splitlines() if line.startswith("|")]
    assert [row[1].strip() for row in table] == ["variant", "---", "sum", "exact", "heads", "K=6"]
    assert table[0][-4:-1] == [" ce ", " denoise ", " norm "]
    assert "(100%) -> " in table[4][6]
    assert "6 training steps, 2 outer steps" in result.stdout
    (case,) = json.loads(numbers.read_text())["cases"]
    rows = {row["price"]["name"]: row for row in case["rows"]}
    assert set(rows["heads"]["late"]) == {"ratios", "signs", "cosine"}
    assert rows["heads"]["whole"]["signs"]["ce"] == 1.0
    assert rows["K=6"]["early"] is None
    assert case["table"]["run"]["backbone"] == "toy"


def test_the_more_blocks_the_nearer_to_the_exact_g(tmp_path):
    """Four layers: with all of them only the embedding is left out. The picture names variants and losses."""
    pytest.importorskip("matplotlib")
    plot, numbers = tmp_path / "signs.svg", tmp_path / "numbers.json"
    variants = ["heads", "last_block", "last_2_blocks", "last_4_blocks"]
    words = ["--approximations", "--steps", 3, "--repeat", 1, "--variants", ",".join(variants)]
    result = bench(*CASE, "--set", "depth=4", *words, "--json", numbers, "--plot", plot)
    assert result.exit_code == 0, result.output
    (case,) = json.loads(numbers.read_text())["cases"]
    rows = {row["price"]["name"]: row for row in case["rows"]}
    assert "scope: last 4 blocks" in rows["last_4_blocks"]["remark"]
    shares = [rows[name]["whole"]["ratios"]["label"] for name in variants]
    assert shares == sorted(shares), "the primary's own term, a sum of squares over the parameters in scope, rules"
    assert shares[0] < shares[-1] < 1.0
    flops = [rows[name]["price"]["flops"] for name in variants]
    assert flops == sorted(flops)
    picture = plot.read_text()
    for word in (*variants, "label", "contrast", "signs of g in 1 outer steps"):
        assert word in picture, word


def test_a_variant_that_cannot_run_says_why(tmp_path):
    plugin = spoilt(tmp_path, "no_forward_mode")
    result = bench(*CHOICE, *SMALL, "--variants", "forward", "--repeat", 1, plugin=plugin)
    assert result.exit_code == 0, result.output
    assert "- forward cannot run: no forward mode: aten::_" in result.stdout


def test_the_list_names_cases_and_variants_without_torch():
    code = (
        "import sys; sys.argv = ['meltr', 'bench', '--list']\n"
        "from meltr.cli.app import build_app\n"
        "build_app()(standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False)
    assert result.returncode == 0, result.stderr
    for word in ("* transformer-small", "transformer-base", "released", "aid-cg", "last_block"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--case", "transformer-smal"], "Did you mean 'transformer-small'?"),
        (["--variants", "idt"], "Did you mean 'itd'?"),
        (["--approximations", "--variants", "head"], "Did you mean 'heads'?"),
        ([*CHOICE, "--case", "transformer-small"], "--case and a run of your own cannot be combined"),
        (["--case", "transformer-small", "--combiner", "sum"], "is not trained by a hypergradient"),
        (["--case", "transformer-small", "--precision", "fp8"], "train.precision = fp8"),
        (["--case", "transformer-small", "--set", "options.heads=5"], "heads=5 does not divide width=192"),
        (["--plot", "bars.gif"], "Valid choices: pdf, png, svg."),
        (["--backbone", "toy", "--task", "qa"], "does not support task 'qa'"),
    ],
)
def test_wrong_input_is_explained_before_anything_is_measured(words, message):
    result = bench(*words)
    assert_stopped(result, message)
    assert "..." not in result.stderr.partition("error:")[0], "progress of a measurement"


def test_the_hint_for_settings_of_cores_own_cases_can_be_followed():
    result = bench("--case", "transformer-small", "--set", "options.heads=5")
    command = result.stderr.partition("`meltr ")[2].partition("`")[0]
    assert call(*command.split()).exit_code == 0
