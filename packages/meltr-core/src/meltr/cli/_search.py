"""The search of ``meltr sweep``: Optuna chooses the points, on the validation split; needs the extra ``search``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from meltr.cli._pieces import Outcome
from meltr.cli._sweep_results import finished, shown, summary
from meltr.cli.output import print_json, remark
from meltr.errors import UserError
from meltr.plugins import Registry
from meltr.sweeps.pieces import Given, Piece, pieces_of
from meltr.sweeps.plan import Point, Space, Sweep

if TYPE_CHECKING:
    import optuna


def search(registry: Registry, plan: Sweep, given: Given, *, trials: int, jobs: int, as_json: bool) -> None:
    """Search until `trials` points are done, those of earlier calls included.

    The study is ``study.db`` in the sweep's folder. A point's value is the mean of the task's first metric over the
    seeds, on the validation split; the test split chooses nothing.

    Raises:
        UserError: If Optuna is missing, or there is no validation split.
    """
    optuna = _optuna()
    given.root.mkdir(parents=True, exist_ok=True)
    # The direction is that of the task; the settings that are searched do not change it.
    middle = Point("check", {**plan.settings, **{name: _some(space) for name, space in plan.search.items()}})
    (checked, *_) = pieces_of(registry, plan, [middle], given)
    upwards = registry.task(checked.spec.task).higher_is_better
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=plan.name,
        storage=f"sqlite:///{given.root.absolute() / 'study.db'}",
        direction="maximize" if upwards else "minimize",
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # a resumed search draws other points
    every: list[Piece] = []
    for number in range(trials):
        known = study.trials[number] if number < len(study.trials) else None
        if known is None:
            known = study.ask({name: _distribution(space) for name, space in plan.search.items()})
        point = Point(f"trial-{number:04d}", {**plan.settings, **_settings(known.params)})
        pieces = pieces_of(registry, plan, [point], given)
        every += pieces
        if number < len(study.trials) and study.trials[number].state.is_finished():
            continue
        remark(f"{point.name}: {', '.join(f'{key}={value}' for key, value in _settings(known.params).items())}")
        _tell(study, number, pieces, finished(registry, pieces, jobs=jobs))
    _report(plan, given, study, every, as_json=as_json)


def _tell(study: optuna.Study, number: int, pieces: list[Piece], outcome: Outcome) -> None:
    (row,) = summary(pieces)
    if outcome.busy:
        raise UserError(f"{pieces[0].point.name} is being run by another process", "Wait for it.")
    if outcome.failed:
        study.tell(number, state=_optuna().trial.TrialState.FAIL)
    elif not row["validation"]:
        raise UserError("the run has no validation split, so there is nothing to choose by", "Set data.validation.")
    else:
        study.tell(number, sum(row["validation"]) / len(row["validation"]))


def _report(plan: Sweep, given: Given, study: optuna.Study, pieces: list[Piece], *, as_json: bool) -> None:
    rows = summary(pieces)
    done = [trial for trial in study.trials if trial.value is not None]
    if not done:
        raise UserError("every point of the search failed", f"See the messages above; the runs are in {given.root}.")
    best = study.best_trial
    settings = _settings(best.params)
    if as_json:
        found = {"point": f"trial-{best.number:04d}", "settings": settings, "value": best.value}
        print_json({"sweep": plan.name, "folder": str(given.root), "points": rows, "best": found})
        return
    typer.echo(shown(rows))
    chosen = " ".join(f"--set {key}={json.dumps(value)}" for key, value in settings.items())
    typer.echo(f"best on validation: trial-{best.number:04d}, {best.value:.4g}: {chosen}")


def _settings(params: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a point; choices are stored as JSON, since Optuna knows no lists."""
    return {name: json.loads(value) if isinstance(value, str) else value for name, value in params.items()}


def _distribution(space: Space) -> Any:
    kinds = _optuna().distributions
    if space.choices:
        return kinds.CategoricalDistribution([json.dumps(value) for value in space.choices])
    if all(isinstance(value, int) for value in (space.low, space.high, space.step or 1)):
        return kinds.IntDistribution(space.low, space.high, log=space.log, step=space.step or 1)
    return kinds.FloatDistribution(space.low, space.high, log=space.log, step=space.step)


def _some(space: Space) -> Any:
    return space.choices[0] if space.choices else space.low


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        hint = 'Install it with: pip install "meltr-core[search]"'
        raise UserError("a search needs Optuna, which is not installed", hint) from error
    return optuna
