"""What a training step and beam search cost with UniVL, beside a straightforward version: ratios of one run.

    python benchmarks/univl_step.py --size tiny
    python benchmarks/univl_step.py --size base --batch 4 --device cuda

Straightforward: every loss with a forward pass of its own, and a beam search that decodes all tokens anew each time.
Both versions give the same losses and captions, which is checked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from meltr.video.text.wordpiece import CLS, SEP
from meltr_univl.losses.masking import Masks, draw_masks
from meltr_univl.losses.tasks import LOSSES, Batch, task_losses
from meltr_univl.model.beam_search import beam_search
from meltr_univl.model.config import SIZES
from meltr_univl.model.univl import Univl

EIGHT = LOSSES[:8]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=20, help="words and frames")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = replace(SIZES[given.size].without_noise(), vocabulary=5000, video_dim=1024)
    model = Univl(config).to(given.device)
    batch = make_batch(given.batch, given.length, given.device)
    masks = draw_masks(batch.text, batch.text_mask, batch.video_mask, vocabulary=5000, generator=None)
    with torch.no_grad():
        memory = model.join(
            model.encode_text(batch.text, batch.text_mask),
            batch.text_mask,
            model.encode_video(model.normalise(batch.video), batch.video_mask),
            batch.video_mask,
        )
    mask = torch.cat([batch.text_mask, batch.video_mask], 1)
    length = given.length
    print(f"UniVL {given.size}, batch {given.batch}, {length} words and frames, {given.device}")
    print("| | straightforward | meltr | ratio |\n| --- | --- | --- | --- |")
    step: dict[str, Callable[[], Any]] = {
        "straightforward": lambda: backward(separate(model, batch, masks)),
        "meltr": lambda: backward(task_losses(model, batch, masks, wanted=EIGHT)),
    }
    report("step, eight losses", step, given.repeat, lambda one, other: torch.testing.assert_close(one, other))
    search: dict[str, Callable[[], Any]] = {
        "straightforward": lambda: plain_search(model, memory, mask, beams=5, length=length),
        "meltr": lambda: beam_search(model, memory, mask, beams=5, length=length).ids[:, 0].tolist(),
    }
    report(
        f"beam search, 5 beams, {length} tokens", search, given.repeat, lambda one, other: np.array_equal(one, other)
    )


def report(name: str, ways: dict[str, Callable[[], Any]], repeat: int, same: Callable[[Any, Any], Any]) -> None:
    """Print a row of the table; the two ways take turns."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    found = {}
    for _ in range(repeat + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            found[way] = run()
            times[way].append(time.perf_counter() - start)
    assert same(*found.values()) is not False, "the two ways differ"
    slow, fast = (float(np.median(seconds[1:])) for seconds in times.values())
    print(f"| {name} | {slow:.3f} s | {fast:.3f} s | {fast / slow:.2f} |")


def make_batch(size: int, length: int, device: str) -> Batch:
    """Return a random batch."""
    ids = torch.randint(104, 5000, (size, length), device=device)
    ids[:, 0], ids[:, -1] = CLS, SEP
    ones = torch.ones(size, length, dtype=torch.long, device=device)
    return Batch(ids, ones, torch.randn(size, length, 1024, device=device), ones, ids, ones, ids.roll(-1, 1))


def separate(model: Univl, batch: Batch, masks: Masks) -> dict[str, torch.Tensor]:
    """Return the eight losses, each from a forward pass of its own."""
    return {name: task_losses(model, batch, masks, wanted=[name])[name] for name in EIGHT}


def backward(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """Go backward through the sum, and return the losses."""
    values = torch.stack(list(losses.values()))
    values.sum().backward()
    return values.detach()


@torch.no_grad()
def plain_search(model: Univl, memory: torch.Tensor, mask: torch.Tensor, *, beams: int, length: int) -> list[list[int]]:
    """Return the best captions of a beam search without kept keys and values, one example after the other."""
    found = []
    for row in range(len(memory)):
        tokens, sums = torch.full((1, 1), CLS, device=memory.device), torch.zeros(1, device=memory.device)
        while tokens.shape[1] <= length:
            many = len(tokens)
            rows, seen = memory[row].expand(many, -1, -1), mask[row].expand(many, -1)
            logits = model.decode(tokens, torch.ones_like(tokens), rows, seen)[:, -1].log_softmax(-1)
            sums, places = (sums[:, None] + logits).flatten().topk(beams)
            parents, words = places // logits.shape[-1], places % logits.shape[-1]
            tokens = torch.cat([tokens[parents], words[:, None]], 1)
            if words[0] == SEP:
                break
        best = tokens[0, 1:].tolist()
        found.append(best + [-1] * (length - len(best)))
    return found


if __name__ == "__main__":
    main()
