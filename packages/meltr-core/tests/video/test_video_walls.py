"""The walls around `meltr.video`: nothing of core outside imports it, and registration loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import meltr
from meltr.plugins import BUILTIN

SOURCE = Path(meltr.__file__).parent


def imported(file: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports by a relative name"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_nothing_outside_imports_video() -> None:
    files = [file for file in SOURCE.rglob("*.py") if not file.is_relative_to(SOURCE / "video")]
    assert len(files) > 100
    inside = {
        str(file.relative_to(SOURCE)): name
        for file in files
        for name in imported(file)
        if name == "meltr.video" or name.startswith("meltr.video.")
    }
    assert inside == {}
    assert "meltr.video.plugin" in BUILTIN


def test_outside_names_video_only_as_a_plugin() -> None:
    """No import by a name in quotes, which the syntax tree does not show; `data/media.py` is an old name."""
    named = [
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*.py")
        if not file.is_relative_to(SOURCE / "video") and '"meltr.video' in file.read_text(encoding="utf-8")
    ]
    assert sorted(named) == ["data/media.py", "plugins/discovery.py"]


def test_listing_loads_no_torch() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from meltr.cli.app import build_app\n"
        "from meltr.plugins import discover\n"
        "result = CliRunner().invoke(build_app(discover()), ['list'])\n"
        "assert result.exit_code == 0 and 'msvd' in result.output, result.output\n"
        "print([name for name in ('torch', 'transformers', 'av') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
