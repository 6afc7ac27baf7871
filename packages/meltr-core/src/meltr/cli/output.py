"""Plain output: tables and JSON on standard output, remarks on standard error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer

from meltr.files import encode


def print_json(content: Any) -> None:
    """Print `content` as JSON."""
    typer.echo(json.dumps(encode(content), indent=2, ensure_ascii=False))


def remark(text: str) -> None:
    """Print a remark to standard error."""
    typer.echo(text, err=True)


def table(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Return `rows` in aligned columns; the last column is not padded."""
    if not rows:
        return ""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
