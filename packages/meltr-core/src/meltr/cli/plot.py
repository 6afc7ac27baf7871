"""``meltr plot``: draws losses, task weights, gradient alignments and metrics of a run, and figures of the paper."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli.options import Trust, plugins_of_run, registry_for
from meltr.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from meltr.plugins import Registry

FIGURES = ("3", "4", "5", "6", "7", "alignment", "cosines", "shares")
"""What ``--figure`` accepts: numbers of the paper, and names of others."""

_LOGGED, _OF_COMBINER, _MEASURED = ("4", "alignment"), ("3", "5", "7"), ("6", "cosines", "shares")
_FIGURE = "With --figure"


def register(app: typer.Typer) -> None:
    """Add ``plot`` to `app`."""
    app.command("plot")(plot)


def plot(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of several seeds of one.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.  [default: RUN/plots]")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="png|pdf|svg",
            help="Repeat it for several.  [default: png; with --figure: png and svg]",
        ),
    ] = None,
    figures: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            metavar="|".join(FIGURES),
            help="A figure of the paper instead: 3: combined loss and task weight against each loss; 4: task weights "
            "per epoch; 5: task weights by embedding; 6: range of the losses of single examples; 7: the combined loss "
            "over two losses.  Or alignment, cosines of the task gradients, shares of the update.  Repeat it for "
            "several.",
        ),
    ] = None,
    checkpoint: Annotated[
        str, typer.Option(help="For 6, cosines, shares: last, best or step-000500.", rich_help_panel=_FIGURE)
    ] = "last",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set, if it has moved.", rich_help_panel=_FIGURE)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:0, mps; default: the run's.", rich_help_panel=_FIGURE)
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="Python file with a plugin, if it has moved.", rich_help_panel=_FIGURE)
    ] = None,
    trust: Trust = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Draw a run, finished or not: losses, task weights, gradient alignments and metrics.

    For several seeds, draw the mean with a band of one standard deviation. Figures 3, 5 and 7 show the combiner of one
    run's last checkpoint; 6, cosines and shares measure a checkpoint on the training data. The numbers of a figure are
    written as CSV beside it.
    """
    from meltr.report.plots import Plots, draw
    from meltr.report.runs import load_group

    unknown = next((name for name in figures or () if name not in FIGURES), None)
    if unknown is not None:
        raise UserError(f"--figure {unknown} is not known.", did_you_mean(unknown, FIGURES))
    plots = Plots({}, {})
    if not figures:
        plots = draw(load_group(run), output, formats or ["png"])
    else:
        wanted = formats or ["png", "svg"]
        chosen = [[name for name in dict.fromkeys(figures) if name in kind] for kind in _KINDS]
        plots.files.update(_logged(run, chosen[0], output, wanted))
        if chosen[1]:
            from meltr.report.combiner_figures import draw_combiner

            registry = _registry(ctx, run, plugin, trust=trust)
            plots.files.update(draw_combiner(run, registry, chosen[1], output=output, formats=wanted))
        if chosen[2]:
            from meltr.report.measure import Place
            from meltr.report.measured_figures import draw_measured

            registry = _registry(ctx, run, plugin, trust=trust, needed=True)
            place = Place(run, registry, checkpoint, device, data_root)
            with contextlib.redirect_stdout(sys.stderr):
                plots.files.update(draw_measured(place, chosen[2], output=output, formats=wanted))
    if as_json:
        files = {name: [str(path) for path in paths] for name, paths in plots.files.items()}
        typer.echo(json.dumps({"run": str(run), "files": files, "skipped": plots.skipped}, indent=2))
        return
    for paths in plots.files.values():
        for path in paths:
            typer.echo(path)
    for name, reason in plots.skipped.items():
        typer.echo(f"no {name} plot: {reason}", err=True)


_KINDS = (_LOGGED, _OF_COMBINER, _MEASURED)


def _logged(run: Path, chosen: Sequence[str], output: Path | None, formats: Sequence[str]) -> dict[str, list[Path]]:
    """Draw figures of what the run has logged."""
    if not chosen:
        return {}
    from meltr.report.logged_figures import draw_logged
    from meltr.report.runs import load_group

    return draw_logged(load_group(run), chosen, output=output, formats=formats)


def _registry(
    ctx: typer.Context, run: Path, plugin: Sequence[Path] | None, *, trust: bool, needed: bool = False
) -> Registry:
    """Return the plugins, with those in the files that run.yaml names if the user trusts them or they are needed."""
    from meltr.folders.run_folder import RunFolder
    from meltr.report.runs import load_run

    load_run(run)
    stored = RunFolder(run).read_spec().plugins
    if not needed and not plugin and not trust:
        return registry_for(ctx)
    return registry_for(ctx, plugins_of_run(run, stored, plugin, trust=trust))
