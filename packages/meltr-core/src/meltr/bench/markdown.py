"""Benchmark tables as Markdown, and their insertion into a page between two marks. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltr.errors import UserError
from meltr.files import write_text
from meltr.verify.show import cosine, error, ratio
from meltr.verify.variants import ORACLE

if TYPE_CHECKING:
    from meltr.bench.approximations import Approximations, Stage
    from meltr.bench.table8 import Price, Table8
    from meltr.verify.operations import Operations

LEGEND = (
    "Relative to multi-task learning, over whole cycles of K training steps that include one outer step, with "
    "optimiser steps; all variants interleaved in one process, from the same weights, on the same batches. Time: "
    "median of the ratios of all turns (first to third quartile). Memory: peak of a cycle above weights and optimiser "
    "state. FLOPs: matrix products, convolutions and attention of a step. Losses: evaluations of the losses in a "
    "cycle, with those without a graph and with dual numbers (forward mode) listed separately. Backwards: backward "
    "passes in a cycle, with second-order ones in brackets. Gradient: relative error and cosine of the combiner's "
    "gradient against the same scheme by double backward throughout, Hessian products included. Cosine of g: with the "
    "exact g of {first}."
)


APPROXIMATION_LEGEND = (
    "Time, memory and FLOPs of a training step relative to multi-task learning, as in Table 8. The run is trained with "
    "exact outer steps; at each one, g is also computed in every other way with the same weights, batch and random "
    "numbers. For every loss: median of g_t / exact g_t, and in brackets the share of outer steps in which the signs "
    "agree. Early -> late: over the first and the last third of the outer steps. Cosine: of the whole g, median. A "
    "larger K changes how often g is computed, not g itself."
)


def table(result: Table8) -> list[str]:
    """Return the lines of a table: a heading, a description of the run, and one row per variant."""
    header = ["variant", "g by", "time", "memory", "FLOPs", "losses", "backwards", "gradient", "cosine", "cosine of g"]
    rows = _rows([header, ["---", "---", *["---:"] * (len(header) - 2)], *map(_cells, result.rows)])
    return [_head(result), "", *rows, "", *_foot(result)]


def approximation_table(result: Approximations) -> list[str]:
    """Return the lines of a table of approximations: a heading, a description of the run, and one row per variant."""
    losses = result.table.run["losses"]
    header = ["variant", "time", "memory", "FLOPs", "cosine of g", *losses]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in result.rows:
        price = [row.price.name, ratio(row.price.time), ratio(row.price.memory), ratio(row.price.flops)]
        early, late = row.early, row.late
        if early is None or late is None:
            lines.append([*price, *["-"] * (1 + len(losses))])
            continue
        told = [f"{_share(early, name)} -> {_share(late, name)}" for name in losses]
        lines.append([*price, f"{cosine(early.cosine)} -> {cosine(late.cosine)}", *told])
    remarks = [f"- {row.price.name}: {row.remark}" for row in result.rows if row.remark and not row.price.cause]
    ran = f"{result.steps} training steps, {result.outer_steps} outer steps."
    return [f"{_head(result.table)} {ran}", "", *_rows(lines), "", *_foot(result.table), "", *remarks]


def _share(stage: Stage, loss: str) -> str:
    return f"{stage.ratios[loss]:.2f} ({stage.signs[loss]:.0%})"


def _rows(lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def _head(result: Table8) -> str:
    run = result.run
    count = run["parameters"]
    size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
    return (
        f"**{result.title}**: {size} parameters, {len(run['losses'])} losses "
        f"({', '.join(run['losses'])}), batch {run['batch_size']}, {run['precision']}"
        f"{', compiled' if run['compile'] else ''}, {run['optimizer']}, K = {result.every}, {result.turns} turns; "
        f"weights and optimiser state {result.held_mib:.0f} MiB."
    )


def _foot(result: Table8) -> list[str]:
    """Return what 1.00x stands for, and why variants are missing."""
    base = result.rows[0]
    plain = f"1.00x is {base.milliseconds:.1f} ms a step" if base.milliseconds else "no times"
    memory = f" and {base.mib:.1f} MiB" if base.mib else ""
    failed = [f"- {row.name} cannot run: {row.cause}" for row in result.rows if row.cause]
    oracle = "" if result.oracle == ORACLE else f" Gradients are compared with {result.oracle}: {ORACLE} is wrong here."
    return [f"{plain}{memory}.{oracle}", *([""] if failed else []), *failed]


def _cells(row: Price) -> list[str]:
    if row.cause:
        return [row.name, *["-"] * 9]
    quartiles = "" if row.time_quartiles is None else " to ".join(f"{each:.2f}" for each in row.time_quartiles)
    counts, backwards = "-", "-"
    if row.operations is not None:
        done = row.operations
        counts = _counts(done)
        backwards = f"{done.backwards} ({done.second_order})" if done.second_order else str(done.backwards)
    return [
        row.name,
        row.estimator or "-",
        f"{ratio(row.time)} ({quartiles})" if quartiles and row.time != 1 else ratio(row.time),
        ratio(row.memory),
        ratio(row.flops),
        counts,
        backwards,
        error(row.gradient.error) if row.gradient else "-",
        cosine(row.gradient.cosine) if row.gradient else "-",
        cosine(row.direction.cosine) if row.direction else "-",
    ]


def _counts(done: Operations) -> str:
    """Return the numbers of evaluations as text: with a graph, without one, and with dual numbers."""
    without = f" + {done.without_graph} without" if done.without_graph else ""
    return f"{done.with_graph}{without}" + (f" + {done.forward_mode} dual" if done.forward_mode else "")


def header(where: Mapping[str, Any]) -> list[str]:
    """Return the lines above the tables: how to repeat them, and where they were measured."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    threads = f"{where['threads']} thread{'s' if where['threads'] != 1 else ''}"
    return [
        f"Measured on {where['date']} with `{where['command']}` on {where['device']}, {threads}, Python "
        f"{where['python']}, {versions}.",
    ]


def page(results: Sequence[Table8 | Approximations], where: Mapping[str, Any], *, legend: str) -> str:
    """Return all tables of a benchmark, with the lines above and below them."""
    from meltr.bench.approximations import Approximations

    lines = header(where)
    for result in results:
        lines += ["", *(approximation_table(result) if isinstance(result, Approximations) else table(result))]
    return "\n".join([*lines, "", legend, ""])


def update(target: str, content: str, *, what: str = "bench") -> Path:
    """Insert `content` into a page, between ``<!-- meltr bench: begin -->`` and ``<!-- meltr bench: end -->``.

    Text between the marks is replaced. A page without marks gets them at its end, and a missing page is created.

    Args:
        target: Path of the page, with ``#name`` for one of several blocks, whose marks carry that name.
        content: The text to insert.
        what: The word in the marks.

    Raises:
        UserError: If only one of the marks is present, or the file cannot be read.
    """
    name, _, label = target.partition("#")
    path = Path(name)
    begin, end = (f"<!-- meltr {what}: {word}{f' {label}' if label else ''} -->" for word in ("begin", "end"))
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as reason:
        raise UserError(f"{path} cannot be read: {reason}", "Give a Markdown file with --markdown.") from reason
    if text.count(begin) != text.count(end) or text.count(begin) > 1 or text.find(end) < text.find(begin):
        hint = f"Put {begin} and {end} there exactly once, or remove both."
        raise UserError(f"{path} has {text.count(begin)} begin marks and {text.count(end)} end marks", hint)
    block = f"{begin}\n\n{content.strip()}\n\n{end}"
    if begin in text:
        start, stop = text.index(begin), text.index(end) + len(end)
        write_text(path, text[:start] + block + text[stop:])
    else:
        write_text(path, f"{text.rstrip()}\n\n{block}\n".lstrip())
    return path
