"""Running means between two log lines."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.bilevel.results import OuterResult, StepResult


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

    def state_dict(self) -> dict[str, Any]:
        """Return what was added since the last line: plain values and tensors on the CPU."""
        outer = [
            (step, epoch, o.products.cpu(), o.gradient_norm.cpu(), o.finite.cpu()) for step, epoch, o in self._outer
        ]
        return {"rows": [row.cpu() for row in self._rows], "outer": outer, "examples": self._examples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state that `state_dict` returned; the time since then does not count."""
        self._reset()
        here = self.device
        self._rows = [row.to(here) for row in state["rows"]]
        self._outer = [
            (step, epoch, OuterResult(g.to(here), norm.to(here), torch.as_tensor(finite).to(here)))
            for step, epoch, g, norm, finite in state["outer"]
        ]
        self._examples = int(state["examples"])

    def leave_out(self, seconds: float) -> None:
        """Exclude the time of an evaluation or a checkpoint."""
        self._since += seconds


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: of the GPU on CUDA, else the resident size of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
