"""Applies the settings of a run to a backbone: SyncBatchNorm, activation checkpointing, compilation, sharding."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from meltr.engine.compiling import compile_called
from meltr.errors import UserError
from meltr.parallel.data_parallel import DataParallel, Sharded
from meltr.parallel.ranks import Ranks
from meltr.parallel.sharing import Sharing
from meltr.specs import RunSpec


def wrap(
    model: nn.Module,
    spec: RunSpec,
    ranks: Ranks,
    blocks: Sequence[nn.Module],
    evaluate: Callable[[], object] = lambda: None,
) -> tuple[nn.Module, Sharing]:
    """Apply the run's settings to the model; return it and how the processes share it.

    Args:
        model: The backbone, on its device; changed in place.
        spec: The run.
        ranks: Its processes.
        blocks: The backbone's repeated blocks.
        evaluate: Evaluates the losses, to find what they call; used with ``train.compile`` alone.

    Raises:
        UserError: If settings conflict, or there are no blocks although a setting needs them, or there is nothing to
            compile.
    """
    check(spec, ranks)
    train = spec.train
    if train.sync_batchnorm and ranks.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if train.activation_checkpointing:
        _need_blocks(model, blocks, "activation_checkpointing=true")
        checkpoint_blocks(blocks)
    sharded = ranks.size > 1 and train.parallel == "fsdp"
    if sharded:
        _need_blocks(model, blocks, "parallel=fsdp")
    if train.compile and sharded:
        for module in blocks:
            module.compile()
    elif train.compile:
        compile_called(model, evaluate)
    if ranks.size == 1:
        return model, Sharing()
    if sharded:
        return model, Sharded.around(ranks, model, blocks)
    return model, DataParallel(ranks, model)


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Make blocks keep only their inputs, and recompute the rest in the backward pass with the same random numbers."""
    for block in blocks:
        object.__setattr__(block, "forward", functools.partial(checkpoint, block.forward, use_reentrant=False))


def check(spec: RunSpec, ranks: Ranks) -> None:
    """Reject settings that conflict.

    Raises:
        UserError: With the settings in conflict and what to do.
    """
    train = spec.train
    if train.batch_size % (ranks.size * train.accumulate):
        parts = f"{ranks.size} processes x {train.accumulate} micro-batches"
        raise UserError(
            f"batch_size={train.batch_size} cannot be split into {parts} of equal size.",
            f"Use a multiple of {ranks.size * train.accumulate}.",
        )
    if train.sync_batchnorm and ranks.size > 1 and ranks.device.type == "cpu":
        raise UserError("sync_batchnorm=true works on GPUs only.", "Turn it off, or use a backbone without BatchNorm.")
    if ranks.size > 1 and train.parallel == "fsdp":
        _check_sharded(spec)


def _check_sharded(spec: RunSpec) -> None:
    train, bilevel = spec.train, spec.bilevel
    if train.precision == "fp16":
        raise UserError("precision=fp16 cannot be combined with parallel=fsdp.", "Use --set precision=bf16.")
    if bilevel.scope != "full":
        raise UserError(f"scope={bilevel.scope} cannot be combined with parallel=fsdp.", "Use --set scope=full.")


def _need_blocks(model: nn.Module, blocks: Sequence[nn.Module], what: str) -> None:
    if not blocks:
        raise UserError(
            f"{what}: {type(model).__name__} has no repeated blocks.",
            f"Turn {what.partition('=')[0]} off, or name the blocks in the plugin's hook model_blocks.",
        )


def use_deterministic(wanted: bool) -> None:
    """Allow only operations that give the same bits every time, or all; cuBLAS reads its variable when it starts."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)


def use_tf32(wanted: bool) -> None:
    """Allow or forbid TensorFloat-32 in float32 matrix products and convolutions."""
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
