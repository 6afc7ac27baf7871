"""Our own plugins use core as anybody's plugin does: by its public names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path for path in PACKAGES.glob("meltr-*/src/meltr_*") if path.is_dir())

if not PLUGINS:
    pytest.skip("no other packages here: the tests run outside the repository", allow_module_level=True)


def is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def private_names(source: str) -> Iterator[str]:
    """Yield the private modules and names of core that a module takes, with the line."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}  # a name in the file -> the part of core that it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "meltr":
            for alias in node.names:
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if any(map(is_private, f"{node.module}.{alias.name}".split("."))):
                    yield f"line {node.lineno}: {node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "meltr":
                    modules[alias.asname or "meltr"] = alias.name if alias.asname else "meltr"
                    if any(map(is_private, alias.name.split("."))):
                        yield f"line {node.lineno}: {alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            inner: ast.expr = node.value
            while isinstance(inner, ast.Attribute):
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in modules:
                yield f"line {node.lineno}: {ast.unparse(node)} of {modules[inner.id]}"


@pytest.mark.parametrize("package", PLUGINS, ids=lambda path: path.name)
def test_no_plugin_of_ours_takes_a_private_name_of_core(package: Path) -> None:
    found = [
        f"{file.relative_to(PACKAGES)}, {name}"
        for file in sorted(package.rglob("*.py"))
        for name in private_names(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(["private names of core:", *found])


@pytest.mark.parametrize(
    "source",
    [
        "from meltr.cli._jobs import start",
        "from meltr.cli import _jobs",
        "def f():\n    from meltr.weights import _load",
        "import meltr.cli._jobs",
        "import meltr.weights as w\nw._load",
        "from meltr import weights\nweights._load()",
        "import meltr\nmeltr.weights._load",
    ],
)
def test_private_names_are_found(source: str) -> None:
    assert list(private_names(source))


def test_public_names_are_not_found() -> None:
    source = "from meltr.weights import compare as _compare\nimport meltr\nmeltr.__version__\nself._mine\nx = _compare"
    assert not list(private_names(source))
