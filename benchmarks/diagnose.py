"""How often the verdicts of ``meltr diagnose`` are right, on the beds of ``meltr helps``.

    python benchmarks/diagnose.py --seeds 12-31 --json docs/results/diagnose.json --markdown docs/diagnose.md

Thresholds were chosen on seeds 0 to 7. A bed that the record already holds is not trained again; ``--show`` trains
nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from meltr.bench.markdown import update
from meltr.bench.table8 import circumstances
from meltr.diagnosis import curves
from meltr.diagnosis.hit_rate import TRUTHS, HitRate
from meltr.diagnosis.truth import measured
from meltr.diagnosis.verdicts import judge


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="12-31", help="first and last seed")
    parser.add_argument("--bed", action="append", help="may be repeated; default: all")
    parser.add_argument("--json", type=Path, required=True, help="the record")
    parser.add_argument("--markdown", help="page that the table goes into")
    parser.add_argument("--show", action="store_true", help="train nothing")
    words = parser.parse_args()
    torch.set_num_threads(1)
    first, last = map(int, words.seeds.split("-"))
    seeds = list(range(first, last + 1))
    command = shlex.join(["python", "benchmarks/diagnose.py", *sys.argv[1:]])
    record = HitRate.load(words.json) if words.json.exists() else HitRate(seeds, circumstances("cpu"))
    record.where["command"] = record.where["command"] if words.show else command
    for bed in () if words.show else words.bed or dict.fromkeys(bed for bed, _ in TRUTHS):
        if bed in record.found:
            continue
        runs = measured(bed, record.seeds)
        record.add(bed, [(judge(run), curves.curve(run.scores[run.losses[:1]])[-1]) for run in runs])
        record.save(words.json)
        print(f"{bed}: {[entry['verdict'] for own in record.found[bed].values() for entry in own]}", flush=True)
    text = record.markdown()
    print(text)
    if words.markdown:
        update(words.markdown, text, what="diagnose")


if __name__ == "__main__":
    main()
