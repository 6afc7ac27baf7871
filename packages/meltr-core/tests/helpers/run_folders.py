"""Small run folders as the engine writes them, without a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

LOSSES = ("ce", "rotation")


def make_run(path: Path, **changes: Any) -> Path:
    """Write a small run folder: 4 epochs of 10 steps, logged every second step."""
    facts: dict[str, Any] = {
        "backbone": "b", "task": "classification", "dataset": "d", "combiner": "meltr", "seed": 0, "losses": [*LOSSES],
    }  # fmt: skip
    value, finished, tested = (changes.pop(name, default) for name, default in _EXTRAS)
    metric, count = changes.pop("metric", "top1"), changes.pop("count", 100)
    facts |= changes
    path.mkdir(parents=True)
    spec = facts | {"train": {"log_every": 2}, "sample": facts.get("sample", False)}
    (path / "run.yaml").write_text(yaml.safe_dump(spec))
    lines = list(_lines(facts, value, metric))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        split = {"metrics": {metric: value, "top5": value + 10}, "count": count}
        results = facts | {"run": path.name, "metric": metric, "higher_is_better": True, "seconds": 10.0, "spec": spec}
        results |= {"validation": split | {"step": 40}, "test": split if tested else None}
        (path / "results.json").write_text(json.dumps(results))
    return path


_EXTRAS = (("value", 80.0), ("finished", True), ("tested", True))


def _lines(facts: dict[str, Any], value: float, metric: str) -> Any:
    for step in range(2, 41, 2):
        pulls = {name: 1.0 / (1 + index) + facts["seed"] for index, name in enumerate(facts["losses"])}
        losses = dict.fromkeys(facts["losses"], 1 / step)
        yield {"kind": "train", "step": step, "epoch": step / 10, "losses": losses, "sensitivities": pulls,
               "combined": 1.0, "lr": 0.1, "examples_per_second": 5.0, "memory_mb": 9.0}  # fmt: skip
        if facts["combiner"] == "meltr":
            yield {"kind": "outer", "step": step, "epoch": step / 10, "outer_gradient_norm": 0.1,
                   "gradient_products": dict.fromkeys(losses, 0.001 * (-1) ** step)}  # fmt: skip
        if step % 10 == 0:
            yield {"kind": "evaluation", "step": step, "epoch": step / 10, "split": "validation", "count": 100,
                   "metrics": {metric: value - 40 + step, "top5": value}}  # fmt: skip


def make_seeds(parent: Path, values: list[float], **changes: Any) -> Path:
    for seed, value in enumerate(values):
        make_run(parent / f"seed-{seed}", value=value, seed=seed, **changes)
    (parent / "results.json").write_text(json.dumps({"seeds": [*range(len(values))], "metric": "top1"}))
    return parent
