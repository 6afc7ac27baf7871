"""What MELTR adds to whole runs that decode their videos while they train: ratios of one run.

    python benchmarks/end_to_end.py --videos FOLDER
    python benchmarks/end_to_end.py --videos FOLDER --height 720 --steps 12

Runs of ``meltr run`` with the sum of the losses and with MELTR (exact g, K = 3) take turns: once with all frames in
memory, where computing bounds the run, and once with a process that decodes every clip anew, where loading may. A clip
counts as ten items with made-up classes: nothing but the time is looked at. ``--height`` makes larger copies of the
videos first, as data sets have them: decoding then takes longer, the model sees the same small frames.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

COPIES = 10
WAYS = {"frames in memory": ("workers=0", "memory_mb=2048"), "decoded while training": ("workers=1", "memory_mb=0")}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of videos")
    parser.add_argument("--height", type=int, help="height of the copies in pixels; default: as they are")
    parser.add_argument("--steps", type=int, default=24, help="a multiple of K = 3")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        manifest = write_manifest(given.videos, given.height, folder)
        rates: dict[tuple[str, str], list[float]] = {}
        bounds: dict[str, set[str]] = {way: set() for way in WAYS}
        for turn in range(given.repeat + 1):  # the first turn warms caches of the system, and is not counted
            for way, settings in WAYS.items():
                for combiner in ("sum", "meltr"):
                    results = train(manifest, combiner, settings, given.steps, folder / f"{turn}-{way[:3]}-{combiner}")
                    if turn:
                        rates.setdefault((way, combiner), []).append(results["seconds"] / given.steps)
                        bounds[way].add(f"{combiner}: {results['bound_by']}")
    print(f"{'':24}{'sum, ms a step':>16}{'meltr':>8}{'bound by':>36}")
    for way in WAYS:
        sums, ours = rates[way, "sum"], rates[way, "meltr"]
        ratios = [mine / plain for plain, mine in zip(sums, ours, strict=True)]
        spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
        bound = ", ".join(sorted(bounds[way]))
        print(f"{way:24}{1e3 * median(sums):16.0f}{median(ratios):7.3f}x  {spread:>20}  {bound}")


def write_manifest(videos: Path, height: int | None, folder: Path) -> Path:
    """Write a manifest of the videos, and larger copies of them if a height is given."""
    paths = videos_in(videos)
    if height:
        paths = [enlarge(path, height, folder / f"{path.stem}.mp4") for path in paths]
    lines = []
    for split, copies in {"train": COPIES, "validation": 1, "test": 1}.items():
        for number, path in enumerate(paths * copies):
            lines.append({"split": split, "video": str(path), "label": f"class {number % 2}"})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def videos_in(folder: Path) -> list[Path]:
    """Return the videos of a folder; end with a message if there are fewer than two."""
    paths = sorted(path.resolve() for path in folder.iterdir() if path.suffix in (".mp4", ".avi", ".mkv", ".webm"))
    if len(paths) < 2:
        sys.exit(f"error: fewer than two videos in {folder}\n  Give a folder of mp4, avi, mkv or webm files.")
    return paths


def enlarge(source: Path, height: int, target: Path) -> Path:
    """Encode a copy of a video with another height, H.264."""
    import av

    with av.open(os.fspath(source)) as reader, av.open(os.fspath(target), "w") as writer:
        first = reader.streams.video[0]
        stream: Any = writer.add_stream("libx264", rate=first.average_rate or 25, options={"preset": "ultrafast"})
        stream.height = height
        stream.width = 2 * round(height * first.width / first.height / 2)
        stream.pix_fmt = "yuv420p"
        for frame in reader.decode(first):
            frame.pts = None
            writer.mux(stream.encode(frame.reformat(stream.width, stream.height, "yuv420p")))
        writer.mux(stream.encode())
    return target


def train(manifest: Path, combiner: str, settings: tuple[str, ...], steps: int, folder: Path) -> dict[str, Any]:
    """Return the results of a run, which say where its time went."""
    command = [sys.executable, "-m", "meltr", "run", "--backbone", "violet", "--task", "action"]
    command += ["--dataset", "manifest", "--data-root", os.fspath(manifest), "--preset", "tiny-action"]
    command += ["--combiner", combiner, "--quiet", "--output-dir", os.fspath(folder), "--name", "run"]
    fixed = ("train.epochs=1000", "eval_every=1000", "codes=colour", "estimator=auto", "save_predictions=false")
    for setting in (*settings, f"max_steps={steps}", *fixed):
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr or done.stdout)
    results: dict[str, Any] = json.loads((folder / "run" / "results.json").read_text())
    return results


if __name__ == "__main__":
    main()
