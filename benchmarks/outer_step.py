"""What one AID-FP-Lite outer step costs, in units of a plain training step, for every estimator side by side.

    python benchmarks/outer_step.py [--device cpu|cuda] [--repeat 7] [--json FILE]

A plain step is one forward and one backward of the sum of the three losses. All variants run interleaved in one
process, so that a noisy machine disturbs all of them alike; medians and quartiles are printed. Memory is the peak of
what torch allocates above what lies there before the step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from meltr import Bilevel, LossTransformer
from meltr_vision.model import CifarTrunk, Classifier

ESTIMATORS = ("forward", "difference", "per_task", "double_backward")


class NoStep(torch.optim.SGD):
    """An outer optimiser that leaves the combiner alone, so that every repetition does the same work."""

    def __init__(self, combiner: nn.Module) -> None:
        super().__init__(combiner.parameters(), lr=0.0)


def three_losses(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], list[Tensor]]:
    """Classification, mixup and rotation, each with its own pass, on fixed draws."""
    batch = {
        "classification": images,
        "mixup": 0.7 * images + 0.3 * images.flip(0),
        "rotation": torch.cat([images[: len(images) // 2], images[len(images) // 2 :].rot90(1, (2, 3))]),
    }
    turns = (torch.arange(len(images), device=images.device) >= len(images) // 2).long()

    def losses() -> list[Tensor]:
        logits = model(batch)
        mixed = logits["mixup"]
        return [
            F.cross_entropy(logits["classification"], labels),
            0.7 * F.cross_entropy(mixed, labels) + 0.3 * F.cross_entropy(mixed, labels.flip(0)),
            F.cross_entropy(logits["rotation"], turns),
        ]

    return losses


def resnet32() -> tuple[nn.Module, int]:
    """ResNet-32 for CIFAR with BatchNorm in training mode."""
    return Classifier(CifarTrunk(5), 64, 100, rotation=True), 32


def vit() -> tuple[nn.Module, int]:
    """Timm's ViT-Small with 112-pixel images, fused attention."""
    trunk = timm.create_model("vit_small_patch16_224", img_size=112, num_classes=0)
    return Classifier(trunk, trunk.num_features, 100, rotation=True), 112


def peak_memory(step: Callable[[], object], device: torch.device) -> float:
    """Return the peak of the memory that `step` allocates above what is there, in MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        base = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - base) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes)) / 2**20


def measure(build: Callable[[], tuple[nn.Module, int]], *, batch: int, device: torch.device, repeat: int) -> list[dict]:
    """Time plain steps and steps with an outer step, interleaved; return a row a variant."""
    torch.manual_seed(0)
    model, size = build()
    model = model.to(device).train()
    images = torch.randn(batch, 3, size, size, device=device)
    losses = three_losses(model, images, torch.randint(0, 100, (batch,), device=device))

    def plain() -> None:
        torch.stack(losses()).sum().backward()

    variants: dict[str, Callable[[], object]] = {"plain step": plain}
    for name in ESTIMATORS:
        combiner = LossTransformer(3).to(device)
        bilevel = Bilevel(model, combiner, NoStep(combiner), estimator_name=name)
        variants[name] = lambda bilevel=bilevel: bilevel.backward(losses, outer=True)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeat + 2):
        for name, step in variants.items():
            model.zero_grad(set_to_none=True)
            synchronize(device)
            started = time.perf_counter()
            step()
            synchronize(device)
            if turn >= 2:  # the difference has chosen its step size, caches are warm
                seconds[name].append(time.perf_counter() - started)
    peaks = {}
    for name, step in variants.items():
        model.zero_grad(set_to_none=True)
        peaks[name] = peak_memory(step, device)
    return [row(name, seconds, peaks) for name in variants]


def row(name: str, seconds: dict[str, list[float]], peaks: dict[str, float]) -> dict:
    """Summarise one variant relative to the plain step of the same repetition."""
    ratios = sorted(a / b for a, b in zip(seconds[name], seconds["plain step"], strict=True))
    return {
        "variant": name,
        "milliseconds": 1000 * statistics.median(seconds[name]),
        "time": statistics.median(ratios),
        "time_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
        "per_step_k3": (2 + statistics.median(ratios)) / 3,
        "memory_mb": peaks[name],
        "memory": peaks[name] / peaks["plain step"],
    }


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(title: str, rows: list[dict]) -> None:
    """Print a table."""
    print(f"\n{title}")
    print(f"{'variant':<18}{'ms':>9}{'time':>8}{'quartiles':>15}{'K = 3':>8}{'MiB':>9}{'memory':>8}")
    for each in rows:
        low, high = each["time_quartiles"]
        print(
            f"{each['variant']:<18}{each['milliseconds']:>9.1f}{each['time']:>7.2f}x{low:>8.2f}-{high:<6.2f}"
            f"{each['per_step_k3']:>7.2f}x{each['memory_mb']:>9.1f}{each['memory']:>7.2f}x"
        )


def main() -> None:
    """Measure ResNet-32 and a ViT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--batch", type=int, help="default: 64 and 16 on CPU, 512 and 256 on CUDA")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    large = device.type == "cuda"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, 3 losses, float32")
    print("time: a step with an outer step / a plain step; K = 3: mean over a cycle; memory: peak above the start")
    result = {}
    for title, build, default in (("ResNet-32, 32 px", resnet32, (64, 512)), ("ViT-S/16, 112 px", vit, (16, 256))):
        batch = arguments.batch or default[large]
        result[title] = measure(build, batch=batch, device=device, repeat=arguments.repeat)
        show(f"{title}, batch {batch}", result[title])
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
