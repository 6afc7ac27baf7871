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
