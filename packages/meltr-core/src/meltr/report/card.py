"""A model card of a run: the README.md of a repository on the Hugging Face Hub, with its metadata as YAML."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from meltr.errors import UserError
from meltr.files import read_object
from meltr.folders.run_folder import RunFolder
from meltr.report.page.answer import duration
from meltr.report.page.render import templates
from meltr.report.runs import Run, load_run

CARD = "README.md"

PIPELINES: Mapping[str, str] = {
    "qa": "video-text-to-text",
    "retrieval": "feature-extraction",
    "action": "video-classification",
    "sentiment": "video-classification",
    "captioning": "video-text-to-text",
    "text-classification": "text-classification",
}
"""Task -> the Hub's name of its pipeline; other tasks have none in the card."""

_KEPT = ("combiner", "fidelity", "preset", "seed")
_TRAIN = ("epochs", "max_steps", "batch_size", "optimizer", "lr")


def model_card(path: Path) -> str:
    """Return the card of a finished run.

    Args:
        path: Folder of one run.

    Raises:
        UserError: If it is not the folder of one run, or the run has not finished.
    """
    run = load_run(path)
    if run.results is None:
        raise UserError(
            f"{path} has no results.json, so the run has not finished.", f"Finish it: meltr run --resume {path}"
        )
    head = yaml.safe_dump(metadata(run), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{head}---\n\n{_text(run)}"


def metadata(run: Run) -> dict[str, Any]:
    """Return the metadata of a run's card, in the Hub's words; ``model-index`` holds every metric of the test split."""
    results = run.results or {}
    pipeline = PIPELINES.get(str(run.fact("task")))
    found: dict[str, Any] = {
        "library_name": "meltr",
        "tags": ["meltr", "auxiliary-learning", str(run.fact("backbone")), str(run.fact("task"))],
        "metrics": sorted(_metrics(run)),
    }
    if pipeline is not None:
        found["pipeline_tag"] = pipeline
    task = {"type": pipeline or "other", "name": str(run.fact("task"))}
    sample = " (synthetic sample)" if run.fact("sample") else ""
    dataset = {"name": f"{run.fact('dataset')}{sample}", "type": str(run.fact("dataset")), "split": _split(run)}
    metrics = [{"type": name, "value": value, "name": name} for name, value in _metrics(run).items()]
    if metrics:
        name = str(results.get("run") or run.name)
        found["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return found


def _split(run: Run) -> str:
    return "test" if (run.results or {}).get("test") else "validation"


def _metrics(run: Run) -> dict[str, float]:
    part = (run.results or {}).get(_split(run)) or {}
    found = part.get("metrics") or {}
    return {name: round(float(value), 6) for name, value in found.items() if isinstance(value, (int, float))}


def _text(run: Run) -> str:
    results, spec = run.results or {}, run.spec
    environment = read_object(RunFolder(run.path).environment) or {}
    words = environment.get("command")
    train, bilevel = spec.get("train") or {}, spec.get("bilevel") or {}
    learned = results.get("estimator") is not None
    settings = [(name, spec.get(name)) for name in _KEPT]
    settings += [
        (f"train.{name}", train.get(name)) for name in ("epochs", "max_steps", "batch_size", "optimizer", "lr")
    ]
    if learned:
        settings += [(f"bilevel.{name}", bilevel.get(name)) for name in ("every", "scheme", "outer_lr", "gamma")]
    weights = run.train[-1].get("sensitivities") or {} if run.train else {}
    return (
        templates()
        .overlay(autoescape=False)
        .get_template("card.md.j2")
        .render(
            cell=cell,
            losses=list(map(cell, run.losses)),
            run=run,
            split=_split(run),
            metrics=_metrics(run),
            count=((results.get(_split(run)) or {}).get("count")),
            settings=[(name, value) for name, value in settings if value is not None],
            weights=weights,
            learned=learned,
            sample=bool(run.fact("sample")),
            time=duration(results["seconds"]) if results.get("seconds") else None,
            results=results,
            command=shlex.join(without_places(list(map(str, words)))) if isinstance(words, list) else None,
        )
    )


def cell(value: object) -> str:
    """Return a value as text that means nothing in Markdown, on one line."""
    text = " ".join(str(value).split())
    return "".join("\\" + each if each in "\\`*_[]<>|#" else each for each in text)


def without_places(value: Any) -> Any:
    """Return nested settings with every absolute path replaced by its last part: folders of a machine stay private."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    before, equals, after = value.partition("=")
    if equals and before.startswith("-"):
        return f"{before}={without_places(after)}"
    absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
    return PureWindowsPath(value).name if absolute else value
