"""A table of text for terminal, Markdown, HTML and LaTeX: one content, four writings."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = ("terminal", "markdown", "html", "latex")
SUFFIXES = {".md": "markdown", ".html": "html", ".tex": "latex"}
"""Format of a file by its ending."""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Args:
        title: One line above it.
        header: Names of the columns.
        rows: The cells, one text per column.
        notes: Lines below it.
        texts: Number of columns at the left that hold text; the others hold numbers.
        commands: Lines below the notes that a reader may type, each with its remark.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    texts: int = 1
    commands: Sequence[tuple[str, str]] = ()


def written(sheet: Sheet, form: str) -> str:
    """Return a table as ``markdown``, ``html`` or ``latex``, with a line break at the end."""
    return {"markdown": to_markdown, "html": to_html, "latex": to_latex}[form](sheet)


def to_rich(sheet: Sheet) -> Table:
    """Return the table alone for a terminal, without title and notes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, name in enumerate(sheet.header):
        text = number < sheet.texts
        table.add_column(Text(name), justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    return table


def to_markdown(sheet: Sheet) -> str:
    """Return the table in Markdown."""
    marks = ["---" if number < sheet.texts else "---:" for number in range(len(sheet.header))]
    lines = [sheet.header, marks, *sheet.rows]
    table = [f"| {' | '.join(_escaped_markdown(cell) for cell in line)} |" for line in lines]
    notes = [f"- {note}" for note in sheet.notes]
    commands = [f"- {remark}: `{command}`" for remark, command in sheet.commands]
    return "\n".join([f"**{sheet.title}**", "", *table, "", *notes, *commands]).rstrip() + "\n"


def _escaped_markdown(cell: str) -> str:
    return re.sub(r"([\\|*_<`])", r"\\\1", cell) if cell.strip("-:") else cell


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { border-bottom: 1px solid #8886; padding: .3rem .8rem .3rem 0; text-align: left; white-space: nowrap; }
th.n, td.n { text-align: right; }
code { overflow-wrap: anywhere; }
"""


def to_html(sheet: Sheet) -> str:
    """Return a page that needs nothing else."""

    def row(cells: Sequence[str], tag: str) -> str:
        parts = [
            f"<{tag}{'' if number < sheet.texts else ' class=n'}>{html.escape(cell)}</{tag}>"
            for number, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(row(cells, "td") for cells in sheet.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in sheet.notes)
    notes += "".join(
        f"<li>{html.escape(remark)}: <code>{html.escape(command)}</code></li>\n" for remark, command in sheet.commands
    )
    title = html.escape(sheet.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<div>
<table>
<caption>{title}</caption>
<thead>{row(sheet.header, "th")}</thead>
<tbody>
{body}
</tbody>
</table>
</div>
<ul>
{notes}</ul>
</body>
</html>
"""


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "-": "{-}",
}


def escaped_latex(text: str) -> str:
    """Return a text with every character that LaTeX would take for a command escaped.

    Hyphens stay single: LaTeX would join ``--`` of an option into a dash.
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_latex(sheet: Sheet) -> str:
    """Return a ``table`` environment; it needs the package booktabs, and T1 fonts for a quotation mark."""
    columns = "l" * sheet.texts + "r" * (len(sheet.header) - sheet.texts)
    lines = [" & ".join(map(escaped_latex, row)) + r" \\" for row in (sheet.header, *sheet.rows)]
    notes = [*sheet.notes, *(f"{remark}: {command}" for remark, command in sheet.commands)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{escaped_latex(sheet.title)}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {lines[0]}",
            r"    \midrule",
            *(f"    {line}" for line in lines[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(f"  % {note}" for note in notes),
            r"\end{table}",
            "",
        ]
    )
