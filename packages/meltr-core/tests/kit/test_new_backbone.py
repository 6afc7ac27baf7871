"""``meltr new-backbone``: every kind is complete, passes its own tests and trains; wrong input writes nothing."""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from pathlib import Path

import pytest

from command_line import assert_stopped, call, command_line
from meltr.engine.run import execute
from meltr.kit import rendering
from meltr.kit.rendering import KINDS
from meltr.plugins import discover
from meltr.settings import resolve
from places import TOY

MODULES = ("__init__", "plugin", "options", "adapter", "model", "losses", "presets")
FILES = {".github/workflows/tests.yml", ".gitignore", "README.md", "pyproject.toml", "tests/test_conformance.py"}
FILES |= {f"src/meltr_new_net/{name}.py" for name in MODULES} | {"src/meltr_new_net/py.typed"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that renders a kind and makes it importable, as an installer would, for this test alone."""

    def render(kind: str) -> Path:
        name = f"made-{kind}"
        assert call("new-backbone", name, "--kind", kind, "--output-dir", tmp_path).exit_code == 0
        source = tmp_path / f"meltr-{name}" / "src"
        record = source / f"meltr_made_{kind}-0.1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: meltr-{name}\nVersion: 0.1.0\n")
        entry = tomllib.loads((source.parent / "pyproject.toml").read_text())["project"]["entry-points"]["meltr"]
        lines = "".join(f"{key} = {value}\n" for key, value in entry.items())
        (record / "entry_points.txt").write_text(f"[meltr]\n{lines}")
        monkeypatch.syspath_prepend(source)
        monkeypatch.setenv("PYTHONPATH", str(source))
        return source.parent

    yield render
    for module in [name for name, each in sys.modules.items() if str(tmp_path) in str(getattr(each, "__file__", ""))]:
        del sys.modules[module]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_complete(tmp_path: Path, kind: str) -> None:
    result = call("new-backbone", "new-net", "--kind", kind, "--output-dir", tmp_path / "deep" / "er", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    folder = Path(told["folder"])
    assert folder == tmp_path / "deep" / "er" / "meltr-new-net"
    assert set(told["files"]) >= FILES
    assert set(told["files"]) == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for file in folder.rglob("*"):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            assert "PACKAGE" not in text, file
            assert "$" not in text.replace("${{ matrix", "").replace("$ ", ""), file
            assert max(map(len, text.splitlines() or [""])) <= 120, file
        if file.suffix == ".py":
            assert ast.get_docstring(ast.parse(text)), file
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["meltr"] == {"new-net": "meltr_new_net.plugin"}
    assert [path.name for path in folder.parent.iterdir()] == ["meltr-new-net"]
    install = f"pip install './packages/meltr-core{KINDS[kind].extras}'"
    assert install in (folder / "README.md").read_text()
    assert install.replace("./", "./meltr/") in (folder / ".github/workflows/tests.yml").read_text()


OTHERS = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "plain"]


@pytest.mark.parametrize("kind", ["plain", *OTHERS])
def test_its_own_tests_pass(installed, kind: str) -> None:
    folder = installed(kind)
    outcomes: dict[str, str] = {}

    class Recorder:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.when == "call" or report.outcome != "passed":
                outcomes[report.nodeid] = f"{report.outcome} {report.longreprtext}"

    words = ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", str(folder / "pyproject.toml"), str(folder / "tests")]
    assert pytest.main(words, plugins=[Recorder()]) == 0, outcomes
    assert len(outcomes) >= 16


@pytest.mark.parametrize("kind", ["plain", *OTHERS])
def test_it_trains(installed, kind: str, tmp_path: Path) -> None:
    """Better than chance by its own preset, and core's checks hold for a single loss too."""
    installed(kind)
    registry = discover()
    choice = {"backbone": f"made-{kind}"} | ({"task": "qa", "dataset": "msvd"} if kind == "video" else {})
    flags = {"device": "cpu", "sample": kind in ("text", "video")}
    results = execute(resolve(registry, **choice, flags=flags), run_dir=tmp_path / "run", registry=registry)
    chance = {"plain": 33, "image": 33, "text": 33, "video": 21}[kind]
    assert results["test"]["metrics"][results["metric"]] > chance + 12  # 74, 100, 97 and 37 with this seed
    alone = resolve(registry, **choice, flags={**flags, "combiner": "primary", "train.max_steps": 2})
    assert len(execute(alone, run_dir=None, registry=registry)["losses"]) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Net", "cannot be the name of a backbone"),
        ("1net", "beginning with a letter"),
        ("my_net", "with hyphens between words"),
        ("my--net", "cannot be the name"),
        ("../net", "cannot be the name"),
        ("core", "the name 'core' is reserved"),
        ("video", "there is already a plugin 'video', of meltr-core"),
    ],
)
def test_names_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    assert_stopped(call("new-backbone", name, "--output-dir", tmp_path), message)
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_that_exists(tmp_path: Path, no_installed_plugins: None) -> None:
    assert_stopped(command_line(TOY)("new-backbone", "toy", "--output-dir", tmp_path), "already a backbone 'toy', of")
    assert list(tmp_path.iterdir()) == []


def test_wrong_kinds_and_places(tmp_path: Path) -> None:
    given = ("new-backbone", "net", "--output-dir")
    assert_stopped(call(*given, tmp_path, "--kind", "vidio"), "no such kind", "Did you mean 'video'?")
    (tmp_path / "meltr-net").mkdir()
    assert_stopped(call(*given, tmp_path), "already exists; nothing is written")
    (tmp_path / "file").write_text("x")
    assert_stopped(call(*given, tmp_path / "file" / "below"), "is not a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "meltr-net"]
    assert list((tmp_path / "meltr-net").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    whole = Path.write_text

    def fail(path: Path, text: str, **how: str) -> int:
        if len(written) == 4:
            raise OSError(28, "No space left on device", str(path))
        written.append(path)
        return whole(path, text, **how)

    monkeypatch.setattr(Path, "write_text", fail)
    result = call("new-backbone", "net", "--output-dir", tmp_path)
    assert result.exit_code == 1
    assert "the disk is full" in result.stderr
    assert len(written) == 4
    assert list(tmp_path.iterdir()) == []


GIT = {"vcs": "git", "commit_id": "abc123"}


@pytest.mark.parametrize(
    ("record", "source"),
    [
        (
            {"url": "file:///a%20b/core", "dir_info": {"editable": True}},
            {"path": "/a b/core", "editable": True},
        ),
        ({"url": "file:///a/core.whl", "archive_info": {}}, {"path": "/a/core.whl"}),
        ({"url": "https://example.org/core.whl", "archive_info": {}}, {"url": "https://example.org/core.whl"}),
        (
            {"url": "https://example.org/meltr.git", "vcs_info": GIT, "subdirectory": "packages/meltr-core"},
            {"git": "https://example.org/meltr.git", "rev": "abc123", "subdirectory": "packages/meltr-core"},
        ),
        (None, None),
    ],
)
def test_uv_is_told_where_meltr_core_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record, source) -> None:
    """So that ``uv run pytest`` needs no package index for it; from an index there is nothing to tell."""

    class Installed:
        def read_text(self, name: str) -> str | None:
            return record and json.dumps(record)

    monkeypatch.setattr(rendering.importlib.metadata, "distribution", lambda name: Installed())
    folder = rendering.render("one", "plain", tmp_path, discover())
    found = tomllib.loads((folder / "pyproject.toml").read_text())
    assert found.get("tool", {}).get("uv", {}).get("sources") == (source and {"meltr-core": source})
