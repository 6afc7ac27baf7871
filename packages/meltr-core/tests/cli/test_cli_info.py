"""``meltr list``, ``config``, ``doctor``, and how the command line shows errors."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from command_line import assert_stopped, call, command_line
from meltr.cli import doctor
from meltr.cli.app import build_app
from meltr.errors import MeltrError, PluginError, UserError
from meltr.plugins import discover
from places import CORE

TOY = """
from pydantic import Field
from meltr import BackboneInfo, BackboneTask, DatasetInfo, PresetInfo, TaskInfo, hookimpl
from meltr.specs import Info

class Options(Info):
    '''Settings of the toy.

    Args:
        depth: How many layers,
            counted from below.
        size: How large.
    '''
    depth: int = Field(2, ge=1)
    size: float | None = None

@hookimpl
def register_tasks():
    return [TaskInfo(name="sort", summary="Put in order.", metrics=("score",))]

@hookimpl
def register_datasets():
    return [DatasetInfo(name="shapes", summary="Made of shapes.", tasks=("sort",), embedded=True)]

@hookimpl
def register_backbones():
    task = BackboneTask(task="sort", losses=("main", "side"), datasets=("shapes",))
    preset = PresetInfo(name="quick", summary="A minute.", settings={"train.lr": 0.25})
    return [BackboneInfo(name="toy", summary="A toy.", adapter="nowhere:Adapter", options=f"{__name__}:Options",
                         tasks=(task,), presets=(preset,), default_presets={"shapes": "quick"})]
"""

CHOICE = ["--backbone", "toy", "--task", "sort", "--dataset", "shapes"]


@pytest.fixture
def toy(tmp_path, no_installed_plugins) -> Path:
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    return file


@pytest.fixture
def meltr(toy):
    return command_line(toy)


@pytest.fixture
def broken(monkeypatch):
    entry = importlib.metadata.EntryPoint("shaky", "a_module_that_is_not_there", "meltr")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    return call


def test_list_shows_all_sections(meltr, toy):
    result = meltr("list")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"toy {toy} sort (shapes) A toy." in lines
    assert "sort score Put in order." in lines
    assert "shapes sort needs no --data-root Made of shapes." in lines
    assert "quick toy default for shapes A minute." in lines
    assert any(line.startswith("meltr learned") for line in lines)
    assert "broken" not in result.stdout


def test_list_of_one_section_as_json(meltr, toy):
    content = json.loads(meltr("list", "backbones", "--json").stdout)
    assert list(content) == ["backbones", "broken"]
    assert content["backbones"][0]["name"] == "toy"
    assert content["backbones"][0]["source"] == str(toy)
    presets = json.loads(meltr("list", "presets", "--json").stdout)["presets"]
    assert presets[0]["settings"] == {"train.lr": 0.25}


def test_list_refuses_an_unknown_section(meltr):
    assert_stopped(meltr("list", "backbone"), "Did you mean 'backbones'?")


def test_broken_plugins_are_listed_with_their_cause(broken):
    result = broken("list", "tasks")
    assert result.exit_code == 0
    assert "shaky (a_module_that_is_not_there): ModuleNotFoundError" in result.stdout
    content = json.loads(broken("list", "--json").stdout)
    assert content["broken"][0]["name"] == "shaky"
    assert content["backbones"] == []


def test_config_show_is_the_complete_run_yaml(meltr):
    result = meltr("config", "show", *CHOICE, "--lr", "0.5", "--set", "depth=3")
    assert result.exit_code == 0
    content = yaml.safe_load(result.stdout)
    assert content["train"]["lr"] == 0.5
    assert content["options"] == {"depth": 3, "size": None}
    assert json.loads(meltr("config", "show", *CHOICE, "--json").stdout)["preset"] == "quick"


def test_config_schema_describes_settings(meltr):
    rows = {row["path"]: row for row in json.loads(meltr("config", "schema", "--backbone", "toy", "--json").stdout)}
    assert rows["options.depth"] == {
        "path": "options.depth",
        "type": "int (>= 1)",
        "default": "2",
        "help": "How many layers, counted from below.",
    }
    assert rows["options.size"]["type"] == "float | none"
    assert rows["train.optimizer"]["type"] == "sgd | adam | adamw | bert_adam"
    assert rows["train.betas"]["default"] == "[0.9, 0.999]"
    assert rows["backbone"]["default"] == "required"
    assert "combiner_options.width" in rows
    plain = meltr("config", "schema", "--combiner", "fixed").stdout
    assert "combiner_options.weights" in plain
    assert "options.depth" not in plain
    assert meltr("config", "schema", "--backbone", "toi").exit_code == 2


def test_config_schema_describes_inherited_settings(meltr):
    for backbone in json.loads(meltr("list", "backbones", "--json").stdout)["backbones"]:
        command = ("config", "schema", "--backbone", backbone["name"], "--json")
        rows = [row for row in json.loads(meltr(*command).stdout) if row["path"].startswith("options.")]
        assert [row["path"] for row in rows if not row["help"]] == []


def test_help_version_and_no_command(meltr):
    assert meltr("--version").stdout.startswith("meltr 0.")
    for words in ([], ["--help"], ["-h"]):
        result = meltr(*words)
        assert result.exit_code == 0
        assert "doctor" in result.stdout
    assert meltr("run", "--help").exit_code == 0
    assert meltr("rnu").exit_code == 2


def fail_with(error: BaseException):
    app = build_app(discover())

    @app.command("fail")
    def fail() -> None:
        raise error

    return lambda *words: call(*words, app=app)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("it is wrong", "do this\nor that"), 2, "error: it is wrong\n  do this\n  or that\n"),
        (PluginError("a plugin is wrong"), 1, "error: a plugin is wrong\n"),
        (MeltrError("it failed"), 1, "error: it failed\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (OSError(errno.ENOSPC, "No space left", "runs/x"), 1, "error: the disk is full while writing runs/x\n"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2, "error: no permission: runs/x\n"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/x"), 2, "error: cannot use a/x: Not a directory\n"),
        (FileExistsError(errno.EEXIST, "File exists", "a"), 2, "error: cannot use a: File exists\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 9), 2, "error: cannot use nnnnnnnnn: File name"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory\nmore"), 1, "--batch-size"),
        (RuntimeError("can't allocate memory: you tried to allocate 9000 bytes."), 1, "out of memory: 9,000 bytes are"),
        (MemoryError(), 1, "out of memory: the memory is full"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_errors_are_one_message_with_an_exit_code(toy, error, code, text):
    result = fail_with(error)("fail")
    assert result.exit_code == code
    assert text in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_cache_that_cannot_be_made_is_named_by_its_variable(toy, monkeypatch):
    monkeypatch.setenv("MELTR_CACHE", "/nowhere/cache")
    result = fail_with(NotADirectoryError(errno.ENOTDIR, "Not a directory", "/nowhere/cache/miniature"))("fail")
    assert "MELTR_CACHE is /nowhere/cache" in result.stderr


def test_a_bug_in_the_use_of_files_keeps_its_exception(toy):
    assert isinstance(fail_with(OSError("without a path"))("fail").exception, OSError)


@pytest.mark.parametrize("words", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_traceback(toy, words):
    result = fail_with(UserError("it is wrong"))(*words)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: it is wrong" in result.stderr


def test_a_bug_keeps_its_exception(toy):
    assert isinstance(fail_with(ZeroDivisionError("a bug"))("fail").exception, ZeroDivisionError)


def test_doctor_passes_and_gives_a_block_to_paste(meltr, tmp_path):
    result = meltr("doctor", "--output-dir", tmp_path / "runs", "--data-root", tmp_path)
    assert result.exit_code == 0, result.stdout
    assert result.stdout.startswith("```\n")
    for word in ("python", "torch", "cuda", "distributed", "gloo", "java", "toy", "GiB free", "can be written"):
        assert word in result.stdout
    assert not (tmp_path / "runs").exists()


def test_doctor_fails_for_what_stops_runs(broken, tmp_path):
    result = broken("doctor", "--json", "--data-root", str(tmp_path / "absent"), "--output-dir", str(tmp_path))
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["ok"] is False
    failed = {check["name"]: check for check in content["checks"] if check["status"] == "FAIL"}
    assert set(failed) == {"plugin shaky", "data"}
    assert all(check["fix"] for check in failed.values())


def test_doctor_recognises_another_package_of_its_name(monkeypatch, tmp_path):
    assert list(doctor._namesakes()) == []
    other = tmp_path / "meltr-0.3.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: meltr\nVersion: 0.3.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    (by_name,) = doctor._namesakes()
    assert (by_name.status, "meltr 0.3.1" in by_name.found) == ("FAIL", True)
    assert "pip uninstall meltr, then: pip install --force-reinstall --no-deps meltr-core" in by_name.fix
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: Melt_R\nVersion: 2\n")
    other.rename(tmp_path / "melt_r-2.dist-info")
    assert list(doctor._namesakes()) == []
    (tmp_path / "melt_r-2.dist-info" / "entry_points.txt").write_text("[console_scripts]\nmeltr = melt:main\n")
    (by_command,) = doctor._namesakes()
    assert "melt-r 2" in by_command.found
    (tmp_path / "melt_r-2.dist-info" / "entry_points.txt").unlink()
    (tmp_path / "melt_r-2.dist-info" / "top_level.txt").write_text("meltr\n")
    (by_module,) = doctor._namesakes()
    assert "melt-r 2" in by_module.found


@pytest.mark.parametrize("absent", ["av", "PIL"])
def test_doctor_names_what_the_extra_video_lacks(monkeypatch, absent):
    find = importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == absent else find(name))
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: f"version of {name}")
    checks = {check.name: check for check in doctor._extras()}
    package = {"av": "av", "PIL": "pillow"}[absent]
    assert checks[package].status == "WARN"
    assert checks[package].found.startswith("missing: no ")
    assert checks[package].fix == "pip install 'meltr-core[video]'"
    there = ({"av", "pillow"} - {package}).pop()
    assert checks[there] == (there, "OK", f"version of {there}", "")


def test_doctor_knows_every_extra_that_runs_use():
    """Those of the package, but for libraries whose own message tells what to install."""
    others = {
        "torchjd",
        "accelerate",
        "lightning",
        "transformers",
        "wandb",
        "mlflow",
        "trackio",
        "testing",
        "hub",
        "datasets",
    }
    project = tomllib.loads((CORE / "pyproject.toml").read_text())["project"]
    assert {extra for _, _, extra, _ in doctor.EXTRAS} == set(project["optional-dependencies"]) - others


def test_doctor_sees_a_full_disk_and_a_locked_folder(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)

    def locked(**arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", locked)
    checks = list(doctor._disk(tmp_path / "runs"))
    assert [check.status for check in checks] == ["FAIL", "FAIL"]
    assert "Permission denied" in checks[1].found


def test_plugin_commands_appear(toy):
    command = "@app.command('greet')\n    def greet() -> None:\n        print('hi')\n"
    toy.write_text(f"{TOY}\n@hookimpl\ndef register_commands(app):\n    {command}")
    result = command_line(toy)("greet")
    assert (result.exit_code, result.stdout) == (0, "hi\n")


WITHOUT_TORCH = """
import contextlib, io, json, sys
from meltr.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["meltr", *words]
    shown, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(shown):
            main()
    except SystemExit as ending:
        code = ending.code or 0
    heavy = {"torch", "torchvision", "transformers", "matplotlib"} & set(sys.modules)
    assert not heavy, (words, heavy)
    assert (code, bool(shown.getvalue())) == (0, True), (words, code)
"""


def test_nothing_heavy_is_imported(toy):
    """One process for all commands: the first that imports something heavy is named."""
    run = ["run", *CHOICE, "--plugin", "toy.py", "--dry-run", "--seed", "0,1"]
    show = ["config", "show", *CHOICE, "--plugin", "toy.py"]
    words = [["--help"], ["list"], ["list", "--json"], ["recipes"], ["run", "--help"]]
    words += [["config", "schema"], show, run]
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(words)]
    done = subprocess.run(command, cwd=toy.parent, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(toy.parent)) in (["toy.py"], ["__pycache__", "toy.py"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "PASSIVE 2000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "PASSIVE None"),
    ],
)
def test_threads_spin_shortly_unless_the_user_wants_it_otherwise(given, expected):
    code = (
        "import os, sys; sys.argv = ['meltr', '--version']\n"
        "from meltr.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: print(*(os.environ.get(name) for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    clean = {name: value for name, value in os.environ.items() if name not in names} | given
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert result.stdout.splitlines()[-1] == expected


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    command = f"{sys.executable} -m meltr config schema | head -n 1"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("  setting")
    assert done.stderr == ""
