"""What core hands to a plugin's hooks and what it expects back. Imports no torch at run time."""

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

    The purity is what makes a resumed run end with the numbers of an uninterrupted one: nothing about the position in
    the data has to be saved but two integers. All randomness of an epoch (order, augmentation) must derive from the
    run's seed, the epoch and the index.
    """

    @property
    def size(self) -> int:
        """Number of examples, over all processes."""
        ...

    def __len__(self) -> int:
        """Batches an epoch, the same in all processes."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches `start`, `start` + 1, ... of `epoch`, on the run's device or ready to be moved there.

        With several processes, this process' part of each: parts of equal size that are disjoint.
        """
        ...


@dataclass(frozen=True)
class Data:
    """What `build_data` returns.

    Args:
        train: Training batches.
        validation: Handed to `evaluate` to choose the best checkpoint; opaque to core.
        test: Handed to `evaluate` once at the end; opaque to core. None if the data set has no public test split.
        held_out: Batches for ``outer_batch=held_out``; None unless it was asked for.
        meta: JSON-able facts: class count, split sizes. Shown at the start, saved with the results.
        left_out: Losses that these data cannot serve -> why. The run goes on without them, and says so.
    """

    train: BatchSource
    validation: Any
    test: Any = None
    held_out: BatchSource | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns.

    Args:
        metrics: Name -> value, with at least the metrics that the task declares, but for those that were skipped.
        count: Examples evaluated.
        details: JSON-able extras (per-class accuracy, a confusion matrix), saved beside the results.
        predictions: JSON-able rows, written to ``predictions/<split>.jsonl``.
        baselines: Trivial answer ("question without the video") -> its metrics, printed beside the result.
        skipped: Metric that could not be computed here -> why, in a few words ("no Java"). Never the primary one.
    """

    metrics: Mapping[str, float]
    count: int
    details: Mapping[str, Any] = field(default_factory=dict)
    predictions: tuple[Mapping[str, Any], ...] = ()
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return what stands in results.json."""
        return {
            "metrics": dict(self.metrics),
            "count": self.count,
            "details": dict(self.details),
            "baselines": {name: dict(metrics) for name, metrics in self.baselines.items()},
            "skipped": dict(self.skipped),
        }


@dataclass(frozen=True)
class RunContext:
    """What every run-tier hook is told.

    Args:
        spec: The complete description of the run.
        task: The task's description.
        options: The backbone's own settings: an instance of its options model, or None if it has none.
        device: Where the run happens.
        losses: The losses that `compute_task_losses` must return now, primary first. Not always all of ``spec.losses``.
        generator: A generator on `device` for masks, negatives and other draws in `compute_task_losses`; core replays
            it when a loss must be evaluated twice. Draw from here or from torch's global generator, never from state of
            your own.
        run_dir: Folder of the run; None when nothing is written.
        rank: Number of this process among those of the run. Only rank 0 writes files and speaks.
        world_size: How many processes share every batch: `build_data` gives each its own part (see
            `meltr.data.loader.LoaderBatches`).
        weights_follow: True if a checkpoint is loaded right after `build_model`, which then need not load pretrained
            weights: their files may be gone.
        notes: Lines worth showing the user: `build_data` and `build_model` append what they found odd, left out or
            loaded, and core shows it once when the run starts.
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
        """Return a copy that asks for `losses` only."""
        return dataclasses.replace(self, losses=losses)


@dataclass(frozen=True)
class StepRecord:
    """What observers see at every logged step. All values are means over the steps since the last record.

    Args:
        step: Inner steps done.
        epoch: Epochs done, as a fraction.
        losses: Name -> loss.
        sensitivities: Name -> a_t = d m(l) / d l_t, how strongly each task pulls.
        combined: The unified loss m(l).
        lr: Learning rate of w.
        examples_per_second: Training examples a second.
        memory_mb: Peak memory so far in MiB (GPU memory on CUDA, resident size on CPU).
        eta_seconds: Estimated seconds to the end of training.
        gradient_products: Name -> g_t of the last outer step (None before the first): g_t > 0 says that pulling harder
            on task t lowers the primary objective.
        outer_gradient_norm: Norm of phi's gradient at the last outer step before clipping.
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
    """What a user asks of a trained run: ``meltr predict``.

    Args:
        media: Videos and images, as files that exist; those of a folder can be decoded too.
        question: About each of `media`.
        choices: Answers to choose from.
        search: Text to rank `media` by.
        top: How many answers (for each of `media`) or found files are wanted; at least one.
    """

    media: tuple[Path, ...] = ()
    question: str | None = None
    choices: tuple[str, ...] = ()
    search: str | None = None
    top: int = 5


FILE_KEYS = ("video", "image")
"""Where a row of a prediction has the path of the file that it is about."""


@dataclass(frozen=True)
class Prediction:
    """What `predict` returns.

    Args:
        rows: JSON-able rows, best first: ``{"answer": ..., "probability": ...}``. A row about a file has its path under
            one of `FILE_KEYS`. Of several files, the rows of one stand together, unless they are ranked.
        what: What the rows are, in a few words.
    """

    rows: tuple[Mapping[str, Any], ...]
    what: str = ""
