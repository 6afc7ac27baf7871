"""An error in a plugin names plugin, hook, file and line; core refuses what a plugin forgot to refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_line import assert_stopped, command_line
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.plugins.blame import blame_of
from meltr.settings import resolve
from places import TOY

CHOICE = ("--backbone", "toy", "--combiner", "sum", "--device", "cpu")


def changed(folder: Path, old: str, new: str) -> Path:
    """Write the toy backbone with one part replaced; the name is of this test alone."""
    source = TOY.read_text(encoding="utf-8")
    assert source.count(old) == 1
    file = folder / f"changed_{re.sub(r'[^a-z0-9]', '_', folder.name)}.py"
    file.write_text(source.replace(old, new), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("old", "new", "hook", "says", "code"),
    [
        ("return Net()", "return Nett()", "build_model", "NameError", "return Nett()"),
        (
            "hidden = model(points)",
            "hidden = model(points[:, :1])",
            "compute_task_losses",
            "RuntimeError",
            "self.body(",
        ),
        ("points, label = data.tensors", "points, label = data", "evaluate", "ValueError", "points, label = data"),
        (
            "def part(name, count):",
            "1 / 0\n\n        def part(name, count):",
            "build_data",
            "division by zero",
            "1 / 0",
        ),
    ],
)
def test_the_line_of_the_plugin_is_shown(tmp_path: Path, old: str, new: str, hook: str, says: str, code: str) -> None:
    """Also where torch raised it, frames below."""
    file = changed(tmp_path, old, new)
    result = command_line(file)("run", "--plugin", file, *CHOICE, "--fast-dev-run", "--quiet")
    assert result.exit_code == 1, result.output
    first, *rest = result.stderr.splitlines()
    assert first.startswith(f"error: plugin 'toy', hook {hook}: ")
    assert says in first
    number = next(n for n, line in enumerate(file.read_text().splitlines(), 1) if code in line)
    assert f"{file}, line {number}: " in rest[-2], result.stderr
    assert code in rest[-2]
    assert "Traceback" not in result.stderr
    assert "Traceback" in command_line(file)("run", "--plugin", file, *CHOICE, "--fast-dev-run", "--debug").stderr


def test_the_type_of_the_error_is_kept(tmp_path: Path) -> None:
    """Others wait for it, such as the estimators for what an operation does not support."""
    file = changed(tmp_path, "return Net()", "raise NotImplementedError('later')")
    registry = discover([file])
    with pytest.raises(NotImplementedError, match="later") as raised:
        execute(resolve(registry, backbone="toy"), run_dir=None, registry=registry)
    said = blame_of(raised.value)
    assert said is not None
    assert said[0] == "plugin 'toy', hook build_model: NotImplementedError: later"
    assert any("hook build_model" in note for note in raised.value.__notes__)


def test_an_error_of_an_observer_is_its_own(tmp_path: Path) -> None:
    observer = "\n\n@meltr.hookimpl\ndef on_run_start(data):\n    data.nothing\n"
    file = changed(tmp_path, "class Block(nn.Module):", f"{observer.strip()}\n\n\nclass Block(nn.Module):")
    result = command_line(file)("run", "--plugin", file, *CHOICE, "--fast-dev-run", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: an observer, hook on_run_start: AttributeError")
    assert "data.nothing" in result.stderr


def test_core_asks_for_a_folder_that_the_adapter_takes_for_granted(tmp_path: Path) -> None:
    layout = "layout='points.csv   one point per line\\\\n'"
    file = changed(tmp_path, "embedded=True", layout.replace("\\\\", "\\"))
    text = file.read_text().replace(
        "def part(name, count):", "open(context.spec.data_root / 'x')\n\n        def part(name, count):"
    )
    file.write_text(text)
    result = command_line(file)("run", "--plugin", file, *CHOICE, "--fast-dev-run")
    assert_stopped(result, "rings needs its files, and --data-root was not given", "points.csv   one point per line")
    given = command_line(file)("run", "--plugin", file, *CHOICE, "--fast-dev-run", "--data-root", tmp_path)
    assert given.exit_code != 0
    assert str(tmp_path / "x") in given.stderr
    assert "was not given" not in given.stderr


def test_settings_with_one_name_are_told_apart(tmp_path: Path) -> None:
    options = "class Options(meltr.specs.Info):\n    width: int = 3\n\n\nclass Block(nn.Module):"
    file = changed(tmp_path, "class Block(nn.Module):", options)
    text = file.read_text().replace('summary="An MLP."', 'summary="An MLP.", options=f"{__name__}:Options"')
    file.write_text(text.replace("import meltr\n", "import meltr\nimport meltr.specs\n"))
    with pytest.raises(UserError, match=r"'width' .* ambiguous") as refused:
        resolve(discover([file]), backbone="toy", sets=["width=8"])
    assert "options.width (backbone 'toy'), combiner_options.width (combiner 'meltr')" in str(refused.value.hint)


def test_calls_of_hooks_are_traced(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MELTR_TRACE_PLUGINS", "1")
    registry = discover([TOY])
    flags = {"combiner": "sum", "device": "cpu"}
    execute(resolve(registry, backbone="toy", flags=flags), run_dir=None, registry=registry, fast_dev_run=True)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("[plugins] ")]
    (built,) = [line for line in lines if line.startswith("[plugins] build_model: ")]
    number = next(n for n, line in enumerate(TOY.read_text().splitlines(), 1) if "def build_model" in line) - 1
    assert f"adapter of toy ({TOY}:{number})" in built
    assert built.endswith(" ms")
    assert sum(line.startswith("[plugins] compute_task_losses: ") for line in lines) == 7
    assert any(line.startswith("[plugins] predict: nobody") for line in lines) is False
    monkeypatch.setenv("MELTR_TRACE_PLUGINS", "0")
    discover([TOY])
    assert "[plugins]" not in capsys.readouterr().err
