"""Low-rank adapters by the library peft (LoRA, Hu et al. 2021): a model's weights stay, small matrices are trained."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from meltr.errors import UserError
from meltr_hf.options import HfOptions

MARK = "lora_"
"""Part of the names of their weights."""


def add_adapters(model: Any, options: HfOptions, new: Collection[str]) -> None:
    """Put adapters into a model, and freeze all its other weights but new ones.

    Args:
        model: A model of transformers; changed in place.
        options: Rank, scale, dropout and place of the adapters.
        new: Names of weights that no file had, which have to be trained.

    Raises:
        UserError: If peft is not installed, or cannot place them.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("peft=lora needs the library peft", "Install it: pip install 'meltr-hf[peft]'") from error
    parameters = {id(value) for name, value in model.named_parameters() if name in new}
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_modules) or None,
    )
    try:
        with warnings.catch_warnings():  # It corrects a setting for the layers of GPT-2, and warns that it did.
            warnings.filterwarnings("ignore", message="fan_in_fan_out")
            inject_adapter_in_model(config, model)
    except ValueError as error:
        hint = "Name layers of the model: --set lora_modules=q_proj,v_proj"
        raise UserError(f"peft cannot place adapters: {str(error)[:300]}", hint) from error
    for name, value in model.named_parameters():
        value.requires_grad_(MARK in name or id(value) in parameters)
