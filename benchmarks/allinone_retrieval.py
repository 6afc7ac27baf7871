"""What scoring N texts with N videos costs with All-in-one, beside a straightforward double loop: ratios of one run.

    python benchmarks/allinone_retrieval.py --size tiny --items 24
    python benchmarks/allinone_retrieval.py --size base --items 6 --device cuda

The double loop gives every pair a pass of its own, frames embedded anew. All ways but the dual encoder's give the same
scores, which is checked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import SIZES
from meltr_allinone.model.retrieval import Retrieval
from meltr_allinone.model.scoring import joint_scores

BATCH = 16


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = replace(SIZES[given.size].without_noise(), vocabulary=1000)
    model = AllInOne(config, heads=("itm", "contrastive")).to(given.device).eval()
    side = config.image_size
    videos = torch.randn(given.items, config.frames, 3, side, side, device=given.device)
    texts = torch.randint(104, 1000, (given.items, config.text_length), device=given.device)

    ways: dict[str, Callable[[], np.ndarray]] = {
        "double loop": lambda: double_loop(model, texts, videos),
        "joint": lambda: Retrieval("joint").scores(model, texts, videos.split(BATCH)).of_texts,
        "rerank 10": lambda: Retrieval("rerank", rerank=10).scores(model, texts, videos.split(BATCH)).of_texts,
        "dual": lambda: Retrieval("dual").scores(model, texts, videos.split(BATCH)).of_texts,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    scores = {}
    for _ in range(given.repeat):
        for name, way in ways.items():  # in turns, so that a busy machine slows all of them
            start = time.perf_counter()
            scores[name] = way()
            times[name].append(time.perf_counter() - start)
    np.testing.assert_allclose(scores["joint"], scores["double loop"], rtol=1e-3, atol=1e-4)
    base = np.median(times["double loop"])
    print(f"All-in-one {given.size}, {given.items} x {given.items}, {config.frames} frames, {given.device}")
    print("| scoring | time, double loop = 1 | seconds |\n| --- | --- | --- |")
    for name, seconds in times.items():
        print(f"| {name} | {np.median(seconds) / base:.3f} | {np.median(seconds):.2f} |")


@torch.no_grad()
def double_loop(model: AllInOne, texts: torch.Tensor, videos: torch.Tensor) -> np.ndarray:
    """Return the scores of all pairs, each by itself."""
    found = np.zeros((len(texts), len(videos)))
    first = torch.zeros(1, dtype=torch.long)
    for row, text in enumerate(texts):
        for column, video in enumerate(videos):
            tokens = model.embed_video(video[None])
            found[row, column] = float(joint_scores(model, tokens, text[None], clips=first, texts=first))
    return found


if __name__ == "__main__":
    main()
