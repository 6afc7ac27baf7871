"""The file ``metrics.jsonl``: one JSON object per line, in chronological order.

There are three kinds of lines::

    {"kind": "train", "step": int, "epoch": float, "losses": {name: float}, "sensitivities": {name: float},
     "combined": float, "lr": float, "examples_per_second": float, "memory_mb": float}
    {"kind": "outer", "step": int, "epoch": float, "gradient_products": {name: float}, "outer_gradient_norm": float}
    {"kind": "evaluation", "step": int, "epoch": float, "split": "validation" | "test", "metrics": {name: float},
     "count": int}

Numbers that are not finite are encoded as described in `meltr.files`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltr.files import encode, write_text

if TYPE_CHECKING:
    from meltr.context import Evaluation, StepRecord


class MetricsWriter:
    """Writes ``metrics.jsonl``, one write per line, so that a kill truncates at most the last line.

    On resume, the lines that an interrupted run wrote after its checkpoint are dropped first: lines with a step above
    `resume_step`, a truncated last line, and the test evaluation, which belongs to the end of a run. A line whose kind,
    step and split are already in the file is not written again. So the file of an interrupted and resumed run has the
    lines of an uninterrupted one.

    Args:
        path: The file; its folder is created if it is missing.
        resume_step: Step of the checkpoint that the run continues from; None starts an empty file.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._seen: set[tuple[str, int, str]] = set()
        if resume_step is None:
            write_text(path, "")
        else:
            lines = _lines_to_keep(path, resume_step)
            self._seen = {_identity(json.loads(line)) for line in lines}
            write_text(path, "".join(f"{line}\n" for line in lines))
        self._file = path.open("ab", buffering=0)

    def train(self, record: StepRecord) -> None:
        """Write a logged step."""
        self._write(
            {
                "kind": "train",
                "step": record.step,
                "epoch": record.epoch,
                "losses": record.losses,
                "sensitivities": record.sensitivities,
                "combined": record.combined,
                "lr": record.lr,
                "examples_per_second": record.examples_per_second,
                "memory_mb": record.memory_mb,
            }
        )

    def outer(
        self, step: int, epoch: float, gradient_products: Mapping[str, float], outer_gradient_norm: float
    ) -> None:
        """Write an outer step.

        Args:
            step: Inner steps done.
            epoch: Epochs done, as a fraction.
            gradient_products: Name -> g_t.
            outer_gradient_norm: Norm of the combiner's gradient before clipping.
        """
        self._write(
            {
                "kind": "outer",
                "step": step,
                "epoch": epoch,
                "gradient_products": gradient_products,
                "outer_gradient_norm": outer_gradient_norm,
            }
        )

    def evaluation(self, step: int, epoch: float, split: str, evaluation: Evaluation) -> None:
        """Write the metrics of an evaluation on `split` (``validation`` or ``test``)."""
        self._write(
            {
                "kind": "evaluation",
                "step": step,
                "epoch": epoch,
                "split": split,
                "metrics": evaluation.metrics,
                "count": int(evaluation.count),
            }
        )

    def close(self) -> None:
        """Close the file; calling it twice is harmless."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        identity = _identity(line)
        if identity in self._seen:
            return
        self._seen.add(identity)
        data = (json.dumps(encode(line), allow_nan=False) + "\n").encode()
        while data:
            data = data[self._file.write(data) :]


def _identity(line: Mapping[str, Any]) -> tuple[str, int, str]:
    """Return the key that identifies a line in its file."""
    return str(line["kind"]), int(line["step"]), str(line.get("split", ""))


def _lines_to_keep(path: Path, resume_step: int) -> list[str]:
    """Return the lines of an interrupted run that its continuation will not write again."""
    if not path.exists():
        return []
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            _, step, split = _identity(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if step <= resume_step and split != "test":
            kept.append(text)
    return kept
