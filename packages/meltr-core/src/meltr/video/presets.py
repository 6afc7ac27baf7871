"""Settings that the presets of several video backbones share. Imports no torch."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
    "train.optimizer": "adam",
    "train.lr": 3e-5,
    "train.schedule": "linear",
    "bilevel.outer_lr": 1e-4,
    "bilevel.gamma": 0.1,
    "bilevel.every": 3,
}
"""Appendix B of the paper: Adam, alpha = 3e-5, beta = 1e-4, linear decay, gamma in {0.1, 0.3, 0.5}, K = 3."""

SMALL: dict[str, Any] = {
    "options.size": "tiny",
    "train.optimizer": "adamw",
    "train.lr": 1e-3,
    "train.weight_decay": 0.01,
    "train.batch_size": 16,
    "train.schedule": "cosine",
    "train.warmup": 0.1,
    "train.clip_norm": 5.0,
    "train.threads": 1,
    "bilevel.estimator": "one_sided",
    "combiner_options.width": 64,
    "combiner_options.feedforward": 64,
    "combiner_options.scale_hidden": 32,
}
"""A small model trained from scratch on a synthetic sample, in minutes on a CPU."""
