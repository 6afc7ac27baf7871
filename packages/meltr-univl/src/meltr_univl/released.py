"""Settings of MELTR's released code for UniVL. This module does not import torch."""

from __future__ import annotations

from typing import Any

from meltr.specs import PresetInfo

RELEASED: dict[str, Any] = {
    "options.negatives": "own",
    "train.optimizer": "bert_adam",
    "train.weight_decay": 0.01,
    "train.eps": 1e-6,
    "train.clip_norm": 1.0,
    "train.clip_tensor_norm": 1.0,
    "train.schedule_counts": "after",
    "bilevel.every": 3,
    "bilevel.phase": 0,
    "bilevel.replay_size": 10,
    "bilevel.replay_eviction": "fifo",
    "bilevel.replay_reset": True,
    "bilevel.outer_clip_norm": 50.0,
}
"""Settings of the released code that hold for every data set; see docs/univl.md."""

_SCRIPT: dict[str, Any] = {
    "train.lr": 1e-4,
    "train.schedule": "linear",
    "train.schedule_restart": 4,
    "train.epochs": 1,
    "train.batch_size": 128,
    "bilevel.gamma": 0.0,
    "bilevel.outer_lr": 1e-3,
    "bilevel.outer_weight_decay": 3e-5,
    "options.text_length": 20,
    "options.video_length": 100,
    "combiner_options.width": 256,
    "combiner_options.feedforward": 512,
    "combiner_options.scale_hidden": 128,
}
"""Defaults of the script, with the schedule of its README."""

RETRIEVAL_RELEASED = PresetInfo(
    name="retrieval-released",
    summary="Defaults of MELTR's released script, as its README runs it: BertAdam 1e-4, a saw-tooth over 4 epochs, no "
    "regulariser, 1 epoch.",
    settings={**_SCRIPT},
)

CAPTIONING_RELEASED = PresetInfo(
    name="captioning-released",
    summary="As retrieval-released, for captions. Without transcripts, the text of YouCook2 is `none`, as in the "
    "prepared files.",
    settings={**_SCRIPT, "options.no_text": "none"},
)

MSRVTT_RELEASED = PresetInfo(
    name="msrvtt-full-released",
    summary="As captioning-released, for MSR-VTT, with the transcripts of MELTR's own file.",
    settings={**_SCRIPT, "options.inputs": "v+t"},
)

RELEASED_PRESETS = (RETRIEVAL_RELEASED, CAPTIONING_RELEASED, MSRVTT_RELEASED)

RELEASED_DEFAULTS = {
    "retrieval": "retrieval-released",
    "captioning": "captioning-released",
    "captioning/msrvtt-full": "msrvtt-full-released",
}
