"""Where runs lie, and what several seeds have in common."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.specs import RunSpec

SEEDS = "seeds.json"
"""In the parent folder of several seeds: which seeds, and the description of the first run."""


def choose_folder(spec: RunSpec, output_dir: Path, name: str | None, *, overwrite: bool) -> Path:
    """Return the folder of a new run; nothing is written.

    Raises:
        UserError: If `name` is taken (and not to be overwritten) or no plain name.
    """
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise UserError(f"--name {name!r} is not a plain name", "Choose the folder above it with --output-dir.")
    wanted = output_dir / (name or "-".join((spec.backbone, spec.task, spec.dataset, spec.combiner)))
    if overwrite or not wanted.exists():
        return wanted
    if name is not None:
        hint = f"Continue it with: meltr run --resume {wanted}\nOr add --overwrite, or choose another --name."
        raise UserError(f"there is already a run in {wanted}", hint)
    number = 2
    while (free := wanted.with_name(f"{wanted.name}-{number}")).exists():
        number += 1
    return free


def begun_before(spec: RunSpec, output_dir: Path, name: str | None) -> Path | None:
    """Return the folder in which the same run was begun and not finished, the newest of them; None if there is none.

    Args:
        spec: The run.
        output_dir: Folder above it.
        name: Its name, if one was asked for.
    """
    from meltr.settings import load_spec

    wanted = output_dir / (name or "-".join((spec.backbone, spec.task, spec.dataset, spec.combiner)))
    candidates = [wanted] if name is not None else [wanted, *output_dir.glob(f"{wanted.name}-*")]
    found = []
    for folder in candidates:
        seeds = read_seeds(folder)
        file = folder / "run.yaml"
        if not file.exists() and seeds is None:
            continue
        stored = load_spec(file) if seeds is None else RunSpec.model_validate(seeds["spec"])
        if stored == spec and not (folder / "results.json").exists():
            found.append(folder)
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


@contextlib.contextmanager
def replacing(path: Path | None) -> Iterator[None]:
    """Put the earlier run in `path` aside while a new one is made there, and delete it once that has begun.

    If the new run ends before its first checkpoint (the data are missing, say), the earlier one comes back.

    Raises:
        UserError: If `path` holds something else than a run.
    """
    if path is None or not path.exists():
        yield
        return
    marks = ("run.yaml", SEEDS, "results.json", "metrics.jsonl")
    if path.is_symlink() or not path.is_dir() or (any(path.iterdir()) and not any((path / m).exists() for m in marks)):
        raise UserError(f"{path} is not the folder of a run; it is not deleted", "Choose another --name.")
    aside = path.with_name(f".{path.name}.replaced")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    try:
        yield
    finally:
        if any(path.glob("**/checkpoints/step-*")) or (path / "results.json").exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)


def seed_folder(parent: Path, seed: int) -> Path:
    """Return the folder of one of several seeds."""
    return parent / f"seed-{seed}"


def finished(path: Path) -> dict[str, Any] | None:
    """Return the results of a run that ended, or None."""
    content = _read(path / "results.json")
    return None if content is None or "runs" in content else content


def read_seeds(parent: Path) -> dict[str, Any] | None:
    """Return what ``seeds.json`` holds (``seeds``, ``spec``), or None if `parent` is no parent of seeds."""
    return _read(parent / SEEDS)


def started_runs(path: Path) -> list[Path]:
    """Return the folder of a run, or those of several seeds that were started.

    Raises:
        UserError: If `path` holds no run that was started.
    """
    parent = read_seeds(path)
    if parent is None:
        if not (path / "run.yaml").is_file():
            raise UserError(f"{path} is not the folder of a run: it has no run.yaml", "Give a folder below runs/.")
        return [path]
    found = [seed_folder(path, int(seed)) for seed in parent["seeds"]]
    started = [folder for folder in found if (folder / "run.yaml").is_file()]
    if not started:
        raise UserError(f"no seed of {path} was started", f"Start them with: meltr run --resume {path}")
    return started


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "It was changed or copied incompletely.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def aggregate(seeds: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and spread over seeds, as the parent's results.json holds them.

    Args:
        seeds: The seeds.
        runs: The results of each, in the same order.
    """
    return {
        "seeds": list(seeds),
        "metric": runs[0]["metric"],
        "higher_is_better": runs[0]["higher_is_better"],
        "test": spread([run.get("test") for run in runs]),
        "validation": spread([run.get("validation") for run in runs]),
        "runs": list(runs),
    }


def spread(splits: Sequence[Mapping[str, Any] | None]) -> dict[str, dict[str, float]]:
    """Return mean, sample standard deviation and number of values of each metric; a single value spreads by 0."""
    values: dict[str, list[float]] = {}
    for split in splits:
        for name, value in (split or {}).get("metrics", {}).items():
            if isinstance(value, (int, float)):
                values.setdefault(name, []).append(float(value))
    return {
        name: {"mean": statistics.fmean(each), "std": _deviation(each), "n": len(each)} for name, each in values.items()
    }


def _deviation(values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0
