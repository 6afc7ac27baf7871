"""Renders a comparison as a rich table or as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meltr.report.compare import Comparison, Row

if TYPE_CHECKING:
    from rich.table import Table

_RUN, _LOSSES, _VALUE, _DIFFERENCE = 0, 2, 4, 5
TEXTS = 3  # number of text columns, which precede the numeric ones


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows as text."""
    digits = 4 if all(abs(row.mean) < 2 for row in comparison.rows) else 2
    header = [
        "run",
        "combiner",
        "losses",
        "n",
        f"{comparison.split} {comparison.metric}",
        "difference",
        "p (t)",
        "p (rank)",
        "time",
    ]
    return header, [_row(row, digits, row is comparison.rows[0]) for row in comparison.rows]


def _row(row: Row, digits: int, first: bool) -> list[str]:
    value = f"{row.mean:.{digits}f}" + ("" if row.std is None else f" ± {row.std:.{digits}f}")
    pairs = "" if row.pairs in (0, len(row.values)) else f" (n={row.pairs})"
    time = "" if row.relative_seconds is None else f"x{row.relative_seconds:.2f}"
    return [
        row.label,
        row.combiner,
        ", ".join(row.losses),
        str(len(row.values)),
        value,
        "reference" if first else f"{row.difference:+.{digits}f}{pairs}",
        _probability(row.p_t),
        _probability(row.p_signed_rank),
        "x1.00" if first and row.seconds else time,
    ]


def _probability(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 1e-3 else f"{value:.0e}"


def legend(comparison: Comparison) -> list[str]:
    """Return the lines below a table: the meaning of its columns, and the notes."""
    words = {True: "; higher is better", False: "; lower is better", None: ""}[comparison.higher_is_better]
    losses = {row.losses for row in comparison.rows}
    lines = [f"Losses: {', '.join(comparison.rows[0].losses)}."] if len(losses) == 1 else []
    lines += [f"{comparison.dataset}: mean ± sample standard deviation over n seeds{words}."]
    most = max(row.pairs for row in comparison.rows)
    if most > 1:
        lines.append(
            "Difference to the first row over shared seeds, with two-sided p values: (t) paired t-test, (rank)"
            f" Wilcoxon's signed-rank test, exact, never below {2.0 ** (1 - most):.2g} for {most} seeds."
        )
    return lines + [f"Note: {note}." for note in comparison.notes]


def to_markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown table with its legend."""
    header, rows = cells(comparison)
    keep = shown_columns(rows)
    lines = [
        [header[i] for i in keep],
        ["---" if i < TEXTS else "---:" for i in keep],
        *([row[i] for i in keep] for row in rows),
    ]
    table = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]
    return "\n".join([*table, "", *legend(comparison)])


def settings_rows(comparison: Comparison) -> list[list[str]]:
    """Return the settings that differ, with a header and one column per row of the comparison; empty if none differ."""
    if not comparison.settings:
        return []
    header = ["setting", *(row.label for row in comparison.rows)]
    return [header, *([each.name, *each.values] for each in comparison.settings)]


def settings_markdown(comparison: Comparison) -> str:
    """Return the settings that differ as a Markdown table; empty if none differ."""
    rows = settings_rows(comparison)
    if not rows:
        return ""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def to_rich(comparison: Comparison) -> Table:
    """Return the comparison as a rich table without the legend; the best mean is bold if the direction is known."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    header, rows = cells(comparison)
    keep = shown_columns(rows)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    longest = max(len(name) + 1 for row in comparison.rows for name in row.losses or ("",))
    for i in keep:
        table.add_column(
            header[i],
            justify="left" if i < TEXTS else "right",
            overflow="fold",
            no_wrap=i not in (_RUN, _LOSSES, _DIFFERENCE),
            min_width=min(longest, 24) if i == _LOSSES else None,
        )
    best = None
    if comparison.higher_is_better is not None:
        means = [row.mean for row in comparison.rows]
        best = max(means) if comparison.higher_is_better else min(means)
    for row, source in zip(rows, comparison.rows, strict=True):
        table.add_row(*(Text(row[i], style="bold" if i == _VALUE and source.mean == best else "") for i in keep))
    return table


def shown_columns(rows: list[list[str]]) -> list[int]:
    """Return the columns that are not empty; the losses only if they differ, since otherwise the legend names them."""
    filled = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    return [i for i in filled if i != _LOSSES or len({row[i] for row in rows}) > 1]
