"""Arguments that core passes to a plugin's hooks, and the values it expects back. Imports no torch at run time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from meltr.specs import RunSpec, TaskInfo


@runtime_checkable
class BatchSource(Protocol):
    """Batches of a split as a pure function of (epoch, index).

    Because of this purity a resumed run ends with the numbers of an uninterrupted one: the position in the data is
    saved as two integers. All randomness of an epoch (order, augmentation) must derive from the run's seed, the epoch
    and the index.
    """

    @property
    def size(self) -> int:
        """Number of examples, over all processes."""
        ...

    def __len__(self) -> int:
        """Batches per epoch, the same in all processes."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches `start`, `start` + 1, ... of `epoch`, on the run's device or ready to be moved there.

        With several processes, yield this process' part of each batch; the parts are disjoint and of equal size.
        """
        ...


@dataclass(frozen=True)
class Data:
    """Return value of `build_data`.

    Args:
        train: Training batches.
        validation: Passed to `evaluate` to choose the best checkpoint; opaque to core.
        test: Passed to `evaluate` once at the end; opaque to core. None if the data set has no public test split.
        held_out: Batches for ``outer_batch=held_out``; None unless requested.
        meta: JSON-serialisable facts: class count, split sizes. Shown at the start, saved with the results.
        left_out: Dropped losses, which these data do not support -> why. The run continues without them and reports it.
    """

    train: BatchSource
    validation: Any
    test: Any = None
    held_out: BatchSource | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Return value of `evaluate`.

    Args:
        metrics: Name -> value; at least the metrics that the task declares, except skipped ones.
        count: Number of examples evaluated.
        details: JSON-serialisable extras (per-class accuracy, a confusion matrix), saved beside the results.
        predictions: JSON-serialisable rows, written to ``predictions/<split>.jsonl``.
        baselines: Name of a trivial baseline ("question without the video") -> its metrics, printed beside the result.
        skipped: Metric that could not be computed -> why, in a few words ("no Java"). Never the primary metric.
        skipped_items: Item that was not evaluated, because its file is missing or broken -> name and reason; only with
            ``data.allow_missing``. The metrics and the baselines are of the other items.
    """

    metrics: Mapping[str, float]
    count: int
    details: Mapping[str, Any] = field(default_factory=dict)
    predictions: tuple[Mapping[str, Any], ...] = ()
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    skipped_items: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the entry for results.json."""
        return {
            "metrics": dict(self.metrics),
            "count": self.count,
            "details": dict(self.details),
            "baselines": {name: dict(metrics) for name, metrics in self.baselines.items()},
            "skipped": dict(self.skipped),
            **({"skipped_items": len(self.skipped_items)} if self.skipped_items else {}),
        }


@dataclass(frozen=True)
class RunContext:
    """Context passed to every run hook.

    Args:
        spec: The complete description of the run.
        task: The task's description.
        options: The backbone's own settings: an instance of its options model, or None if it has none.
        device: The device of the run.
        losses: The losses that `compute_task_losses` must return now, primary first; may be fewer than ``spec.losses``.
        generator: A generator on `device` for masks, negatives and other draws in `compute_task_losses`; core replays
            it when a loss must be evaluated twice. Draw only from here or from torch's global generator.
        run_dir: Folder of the run; None if nothing is written.
        rank: Rank of this process. Only rank 0 writes files and prints.
        world_size: Number of processes that share every batch; `build_data` gives each its own part (see
            `meltr.data.loader.LoaderBatches`).
        weights_follow: True if a checkpoint is loaded right after `build_model`. Then `build_model` need not load
            pretrained weights, whose files may no longer exist.
        notes: Lines to show to the user. `build_data` and `build_model` append what was unusual, skipped or loaded, and
            core shows the lines once when the run starts.
    """

    spec: RunSpec
    task: TaskInfo
    options: Any
    device: torch.device
    losses: tuple[str, ...]
    generator: torch.Generator | None = None
    run_dir: Path | None = None
    rank: int = 0
    world_size: int = 1
    weights_follow: bool = False
    notes: list[str] = field(default_factory=list)

    def with_losses(self, *losses: str) -> RunContext:
        """Return a copy that requests only `losses`."""
        return dataclasses.replace(self, losses=losses)


@dataclass(frozen=True)
class StepRecord:
    """Record passed to observers at every logged step. All values are means over the steps since the last record.

    Args:
        step: Inner steps done.
        epoch: Epochs done, as a fraction.
        losses: Name -> loss.
        sensitivities: Name -> task weight a_t = d m(l) / d l_t.
        combined: The unified loss m(l).
        lr: Learning rate of w.
        examples_per_second: Training examples per second.
        memory_mb: Peak memory so far in MiB (GPU memory on CUDA, resident size on CPU).
        eta_seconds: Estimated seconds to the end of training.
        gradient_products: Name -> gradient alignment g_t of the last outer step (None before the first): g_t > 0 means
            that a larger weight of task t lowers the primary objective.
        outer_gradient_norm: Norm of phi's gradient at the last outer step, before clipping.
    """

    step: int
    epoch: float
    losses: Mapping[str, float]
    sensitivities: Mapping[str, float]
    combined: float
    lr: float
    examples_per_second: float
    memory_mb: float
    eta_seconds: float
    gradient_products: Mapping[str, float] | None = None
    outer_gradient_norm: float | None = None


@dataclass(frozen=True)
class PredictRequest:
    """A request to a trained run: ``meltr predict``.

    Args:
        media: Existing files of videos and images; files from a folder have been checked to decode.
        question: Question about each of `media`.
        choices: Answers to choose from.
        search: Text to rank `media` by.
        top: Number of answers (for each of `media` or `text`) or of found files; at least one.
        text: Texts to classify.
    """

    media: tuple[Path, ...] = ()
    question: str | None = None
    choices: tuple[str, ...] = ()
    search: str | None = None
    top: int = 5
    text: tuple[str, ...] = ()


FILE_KEYS = ("video", "image")
"""Keys under which a row of a prediction holds the path of its file."""


@dataclass(frozen=True)
class Prediction:
    """Return value of `predict`.

    Args:
        rows: JSON-serialisable rows, best first: ``{"answer": ..., "probability": ...}``. A row about a file has its
            path under one of `FILE_KEYS`. With several files, the rows of each file are adjacent, unless the files are
            ranked.
        what: Description of the rows, in a few words.
    """

    rows: tuple[Mapping[str, Any], ...]
    what: str = ""
