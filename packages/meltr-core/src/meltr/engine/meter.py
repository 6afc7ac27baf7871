"""Running means between two log lines, and a check that losses are finite."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.bilevel.results import OuterResult, StepResult
from meltr.errors import NonFiniteLossError


class Meter:
    """Sums on the device, fetched once per log line, so that logging does not stall the accelerator.

    Args:
        names: Names of the losses.
        device: Device of the run.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self.device = device
        self._reset()

    def _reset(self) -> None:
        self._rows: list[Tensor] = []
        self._outer: list[tuple[int, float, OuterResult]] = []
        self._examples = 0
        self._since = time.perf_counter()

    def update(self, result: StepResult, *, step: int, epoch: float, examples: int) -> None:
        """Add one step."""
        self._rows.append(torch.cat([result.losses, result.sensitivities, result.combined.reshape(1)]))
        self._examples += examples
        if result.outer is not None:
            self.update_outer(result.outer, step=step, epoch=epoch)

    def update_outer(self, outer: OuterResult, *, step: int, epoch: float) -> None:
        """Add one outer step."""
        self._outer.append((step, epoch, outer))

    def flush(self) -> tuple[list[float], list[float], float, float, list[tuple[int, float, list[float], float]]]:
        """Return and clear the means: losses, task weights, combined loss, examples per second, and every outer step.

        An outer step is (step, epoch, g, norm of phi's gradient).
        """
        count = len(self.names)
        means = torch.stack(self._rows).double().mean(0).tolist() if self._rows else [float("nan")] * (2 * count + 1)
        outer = [(s, e, o.products.tolist(), float(o.gradient_norm)) for s, e, o in self._outer]
        rate = self._examples / max(1e-9, time.perf_counter() - self._since)
        self._reset()
        return means[:count], means[count : 2 * count], means[-1], rate, outer

    def leave_out(self, seconds: float) -> None:
        """Exclude the time of an evaluation or a checkpoint."""
        self._since += seconds


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: of the GPU on CUDA, else the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class FiniteGuard:
    """Stops a run at the first loss that is NaN or infinite.

    On an accelerator the result of a step is read one step later, so that the check does not stall it.

    Args:
        names: Names of the losses.
        device: Device of the run.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = tuple(names)
        self._delayed = device.type != "cpu"
        self._pending: tuple[int, Tensor] | None = None

    def check(self, step: int, losses: Tensor) -> None:
        """Check the losses of `step`, shape (T+1,); on an accelerator, those of the step before.

        Raises:
            NonFiniteLossError: With the loss, its value and the step.
        """
        if self._delayed:
            self.flush()
            self._pending = (step, losses)
        else:
            self._check(step, losses)

    def flush(self) -> None:
        """Check the losses that are still pending; call this before writing a checkpoint."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._check(*pending)

    def _check(self, step: int, losses: Tensor) -> None:
        values = losses.tolist()
        bad = [f"{n!r} = {v}" for n, v in zip(self.names, values, strict=True) if not abs(v) < float("inf")]
        if bad:
            raise NonFiniteLossError(
                f"Loss {', '.join(bad)} at step {step}.",
                "Lower the learning rate (--lr), clip gradients (--set clip_norm=1), warm up (--set warmup=0.1), "
                "or drop that loss (--set losses=...).",
            )
