"""Runs every backbone twice with the same seed, and once more from the run's own folder: ``nox -s repeat``.

    python benchmarks/repeat.py
    python benchmarks/repeat.py --cases vision --deterministic

The second run has the same words, the third only ``--config RUN/run.yaml``. Both have to give the bytes of the first:
`results.json` up to its name and the fields in `meltr.engine.run.MEASURED`, `metrics.jsonl` up to speed and memory,
predictions, and the weights of the last checkpoint (its `training.pt` counts seconds). Prints a table; the exit status
is 1 if anything differed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from forks import PATIENCE, Fork, preload

from meltr.engine.run import MEASURED

ROOT = Path(__file__).parents[1]
TINY = {
    words[words.index("--backbone") + 1]: words
    for file in sorted(ROOT.glob("packages/*/pyproject.toml"))
    if (words := tomllib.loads(file.read_text()).get("tool", {}).get("meltr", {}).get("tiny-run"))
}
"""Backbone -> the words of its smallest run, from the pyproject.toml of its package."""

SHORT = ("max_steps=7", "log_every=1", "train.threads=1")


def kept(run: Path) -> dict[str, Any]:
    """Return what has to be equal: file -> content."""
    results = json.loads((run / "results.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "results.json": json.dumps({key: results[key] for key in results if key not in ("run", *MEASURED)}),
        "metrics.jsonl": json.dumps([{key: line[key] for key in line if key not in MEASURED} for line in lines]),
    }
    for file in sorted((run / "checkpoints" / "last").glob("*.safetensors")):
        found[file.name] = file.read_bytes()
    for file in sorted((run / "predictions").glob("*")):
        found[file.name] = file.read_bytes()
    return found


def run(folder: Path, name: str, *words: object) -> dict[str, Any]:
    """Run to the end; return what is `kept`."""
    process = Fork("run", *words, "--quiet", "--output-dir", folder, "--name", name)
    process.wait(PATIENCE)
    if process.code:
        raise SystemExit(f"{' '.join(map(str, words))}\n{process.messages()}")
    return kept(folder / name)


def main() -> int:
    """Run, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(TINY), choices=list(TINY))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--deterministic", action="store_true", help="the runs have --deterministic")
    asked = parser.parse_args()
    preload(*asked.cases)
    wrong = 0
    for case in asked.cases:
        words = [*TINY[case], "--device", asked.device, *(word for setting in SHORT for word in ("--set", setting))]
        words += ["--deterministic"] if asked.deterministic else []
        with tempfile.TemporaryDirectory(prefix="repeat-") as scratch:
            first = run(Path(scratch), "first", *words)
            for name, others in {"again": words, "from its folder": ["--config", f"{scratch}/first/run.yaml"]}.items():
                found = run(Path(scratch), name.split()[0], *others)
                differ = [file for file in first.keys() | found.keys() if first.get(file) != found.get(file)]
                wrong += bool(differ)
                said = f"other {', '.join(sorted(differ))}" if differ else f"{len(first)} files the same"
                print(f"{case:10} {name:16} {said}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
