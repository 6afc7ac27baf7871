"""Settings of the backbone hf (``options.*``). This module does not import torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meltr.texts.options import TextOptions


class HfOptions(TextOptions):
    """Settings of the backbone hf.

    Args:
        model: A model of transformers: a folder of ``save_pretrained``, or a name on the Hugging Face hub; ``tiny``: a
            small one from scratch, with the words of the training texts.
        target_length: Most tokens of a target, and of what is written (text-to-text).
        pooling: Feature of a text: that of its ``first`` token, of its ``last``, or their ``mean``; ``auto``: first for
            encoders, last for decoders, mean for encoder-decoders.
        attention: ``fused``: PyTorch's; ``eager``: plain, which forward mode supports.
        mask_rate: Fraction of the tokens that mlm hides, denoising removes and replaced exchanges.
        span_length: Tokens per span that denoising removes.
        temperature: Temperature of contrastive (0.05 in SimCSE).
        peft: ``lora``: train low-rank adapters and the heads, and keep the model's weights (extra ``meltr-hf[peft]``).
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale is lora_alpha / lora_rank.
        lora_dropout: Dropout of their input.
        lora_modules: Names of the layers that get one; empty: peft's choice for the kind of model.
        head_lr_scale: Learning rate of the heads relative to that of the model.
        beams: Beams of the search when a text is written; 1: greedy.
    """

    model: str = Field("tiny", min_length=1)
    target_length: int = Field(64, ge=2)
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    attention: Literal["fused", "eager"] = "fused"
    mask_rate: float = Field(0.15, gt=0, lt=1)
    span_length: int = Field(3, ge=1)
    temperature: float = Field(0.05, gt=0)
    peft: Literal["none", "lora"] = "none"
    lora_rank: int = Field(8, ge=1)
    lora_alpha: int = Field(16, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_modules: tuple[str, ...] = ()
    head_lr_scale: float = Field(1.0, gt=0)
    beams: int = Field(1, ge=1)
