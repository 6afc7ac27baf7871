"""Results of measurements as rich tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from meltr.verify.verification import Row, Verification


def rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: Sequence[int] = (0,)) -> Table:
    """Return a table with plain styling.

    Args:
        header: Names of the columns.
        rows: The cells of each row.
        text: Indices of the text columns; the others hold numbers.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, name in enumerate(header):
        last = number == len(header) - 1
        table.add_column(name, justify="left" if number in text else "right", no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def estimator_table(found: Verification) -> Table:
    """Return the estimators of a verification as a table."""
    header = ["estimator", "error", "cosine", "signs", "twice", "time", "memory", "remark"]
    return rich_table(header, [_estimator_cells(row) for row in found.estimators], text=(0, 4, 7))


def _estimator_cells(row: Row) -> list[str]:
    agreement = row.agreement
    remark = row.problem or row.cause.removeprefix("estimator: ")
    if row.used is None or agreement is None:
        return [row.name, "-", "-", "-", "-", "-", "-", remark]
    return [
        row.name,
        error(agreement.error),
        cosine(agreement.cosine),
        f"{agreement.signs}/{agreement.size}",
        {True: "same", False: "differs", None: "-"}[row.repeatable],
        ratio(row.time),
        ratio(row.memory),
        remark,
    ]


def scheme_table(found: Verification) -> Table:
    """Return the schemes of a verification as a table."""
    first = found.schemes[0].name
    header = ["scheme", f"cosine to {first}", "signs", "finite", "Hessian error", "time", "memory", "remark"]
    return rich_table(header, [_scheme_cells(row) for row in found.schemes], text=(0, 3, 7))


def _scheme_cells(row: Row) -> list[str]:
    agreement = row.agreement
    if row.used is None or agreement is None:
        return [row.name, "-", "-", "-", "-", "-", "-", row.cause]
    hessian = row.hessian if isinstance(row.hessian, float) else None
    return [
        row.name,
        cosine(agreement.cosine),
        f"{agreement.signs}/{agreement.size}",
        "yes" if row.finite else "no",
        error(hessian),
        ratio(row.time),
        ratio(row.memory),
        row.hessian if isinstance(row.hessian, str) else "" if row.used == "auto" else f"g by {row.used}",
    ]


def ratio(value: float | None) -> str:
    """Return a multiple of the reference as text."""
    return "-" if value is None else f"{value:.2f}x"


def error(value: float | None) -> str:
    """Return a relative error as text."""
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def cosine(value: float | None) -> str:
    """Return a cosine as text, without rounding up to 1."""
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if abs(value) < 0.99995 else f"{value:.0f}.0000"
