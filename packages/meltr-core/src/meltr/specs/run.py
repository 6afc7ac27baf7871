"""All settings of a run: how the backbone and the combiner are trained, and on which data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from meltr.specs.info import Info


class TrainSpec(Info):
    """Inner loop: how the backbone w is trained.

    Args:
        epochs: Passes over the training split.
        max_steps: Stop after at most this many steps, before `epochs` is reached; the schedules end there too.
        batch_size: Examples per step, over all processes and micro-batches.
        accumulate: Number of micro-batches that a process splits its batch into, evaluated one by one to save memory.
        accumulate_weights: Task weights of the micro-batches: ``current``: those of their mean losses, for which every
            micro-batch is evaluated once more; ``last``: those of the preceding step (not in steps with an outer step).
        optimizer: Optimiser of w; ``bert_adam``: Adam without bias correction.
        lr: Peak learning rate.
        schedule: ``constant``; ``linear`` or ``cosine`` to zero; ``step``: multiplied by `lr_decay` at each of
            `milestones`.
        milestones: Epochs at which the step schedule decays.
        warmup: Linear warm-up in steps (>= 1) or as a fraction of the schedule's steps (< 1).
        schedule_restart: Epochs after which the schedule restarts; None: never.
        schedule_counts: When the schedule counts a step: ``before`` the update (the first warm-up step has rate 0);
            ``after`` it (MELTR's released captioning code: a restart comes one step later); ``nonzero``: before it, but
            the warm-up includes the current step, so that no step is lost at rate 0.
        clip_norm: Clip w's gradient to this global norm; None: never.
        clip_tensor_norm: Then clip each tensor's gradient to this norm (only ``bert_adam``); None: never.
        precision: ``fp32``; ``bf16`` autocast; ``fp16`` autocast with a gradient scaler.
        tf32: Let float32 matrix products of the backbone use TensorFloat-32 (CUDA).
        deterministic: Use only operations that give the same bits every time, also on a GPU; any other is an error
            (``--deterministic``).
        compile: Compile the parts of the backbone that its losses call, with torch.compile.
        cuda_graphs: Record an evaluation of the losses and its backward pass as CUDA graphs, and replay them: for
            models whose step is bound by the host. The activations of each kind of evaluation stay in memory.
        activation_checkpointing: Keep only the inputs of the backbone's blocks; recompute the blocks in the backward
            pass.
        threads: CPU threads of torch; None: one per core. One thread is faster for very small models.
        parallel: How torchrun's processes share the weights: ``ddp`` (each holds all) or ``fsdp`` (each holds a shard).
        rank_timeout: Seconds that a process waits for the others before the run ends and names those that hang.
        sync_batchnorm: Compute BatchNorm statistics over the batch of all processes.
        eval_every: Epochs between evaluations on the validation split (the last epoch is always evaluated).
        checkpoint_every: Steps between checkpoints, besides the one after each evaluation; None: no others.
        keep_checkpoints: Number of checkpoints to keep besides last and best.
        log_every: Steps between lines of metrics.jsonl.
    """

    epochs: int = Field(10, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "bert_adam"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    milestones: tuple[int, ...] = ()
    lr_decay: float = Field(0.1, gt=0)
    warmup: float = Field(0.0, ge=0)
    schedule_restart: int | None = Field(None, ge=1)
    schedule_counts: Literal["nonzero", "before", "after"] = "nonzero"
    clip_norm: float | None = Field(None, gt=0)
    clip_tensor_norm: float | None = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    deterministic: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    activation_checkpointing: bool = False
    accumulate: int = Field(1, ge=1)
    accumulate_weights: Literal["current", "last"] = "current"
    threads: int | None = Field(None, ge=1)
    parallel: Literal["ddp", "fsdp"] = "ddp"
    rank_timeout: float = Field(300.0, gt=0, le=1e6)
    sync_batchnorm: bool = False
    eval_every: int = Field(1, ge=1)
    checkpoint_every: int | None = Field(None, ge=1)
    keep_checkpoints: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)


class BilevelSpec(Info):
    """Outer loop: how the combiner phi is trained (Algorithm 1 of the paper).

    Args:
        every: K, the inner steps between two outer steps; with a `budget` the smallest.
        budget: Share of the operations of the inner steps that outer steps may take, for example 0.05: they then come
            more often while g moves and seldom while it is noise. None: one after every K inner steps.
        scheme: How the direction q approximates the inverse Hessian times the primary gradient (Table 8); ``none``: the
            combiner is not trained. ``meltr list schemes`` shows them; their settings are ``scheme_options.*``.
        scope: Parameters that the outer step uses: ``full``; ``last_block`` (and the heads); ``heads``.
        scope_blocks: Number of last blocks that ``scope=last_block`` includes.
        outer_fraction: Fraction of the batch that the outer step uses.
        estimator: How g = J q is computed; ``auto`` chooses by what the model supports. ``meltr list estimators`` shows
            them; their settings are ``estimator_options.*``.
        retain_graph: Keep the graph of an outer step's forward pass for the inner gradient that follows. False: run the
            forward pass again. This costs one forward pass per outer step, and with differences needs no more memory
            than an ordinary step (with ``scope`` there is nothing to save).
        outer_batch: ``shared``: the next inner step's batch, one forward pass for both; ``replay``: two draws from the
            last `replay_size` batches (the released code); ``held_out``: the primary loss on a held-out part of train;
            ``cross``: the batch of the next inner step in two halves, one for the direction and one for the Jacobian.
        average: Momentum of the moving average of g over outer steps; 0: every outer step uses its own g.
        gamma: Weight of the regulariser |m(l) - sum(l)| in the primary objective (eq. 6).
        direct_term: Add the regulariser's own derivative with respect to phi.
        outer_optimizer: Optimiser of phi.
        phase: Inner step (modulo `every`) after which ``replay`` takes its outer step.
        phase_restarts: Restart the count of `phase` in every epoch.
        replay_size: Batches that ``replay`` keeps.
        replay_eviction: Which batch a full buffer drops: ``fifo``: the oldest; ``random``: a random one, so that some
            stay longer.
        replay_reset: Empty the buffer at the start of every epoch.
    """

    every: int = Field(3, ge=1)
    budget: float | None = Field(None, gt=0, le=1)
    scheme: str = "aid-fp-lite"
    scope: Literal["full", "last_block", "heads"] = "full"
    scope_blocks: int = Field(1, ge=1)
    outer_fraction: float = Field(1.0, gt=0, le=1)
    estimator: str = "auto"
    retain_graph: bool = True
    outer_batch: Literal["shared", "replay", "held_out", "cross"] = "shared"
    average: float = Field(0.0, ge=0, lt=1)
    gamma: float = Field(0.1, ge=0)
    direct_term: bool = False
    outer_optimizer: Literal["adam", "adamw"] = "adam"
    outer_lr: float = Field(1e-4, gt=0)
    outer_weight_decay: float = Field(0.0, ge=0)
    outer_betas: tuple[float, float] = (0.9, 0.999)
    outer_schedule: Literal["constant", "linear", "cosine"] = "constant"
    outer_clip_norm: float | None = Field(None, gt=0)
    phase: int = Field(0, ge=0)
    phase_restarts: bool = False
    replay_size: int = Field(10, ge=1)
    replay_eviction: Literal["fifo", "random"] = "fifo"
    replay_reset: bool = True


class DataSpec(Info):
    """How the splits are built.

    Args:
        validation: Fraction (< 1) or number (>= 1) of training examples set aside if there is no validation split.
        held_out: The same for the outer loop's held-out batches; used only with ``outer_batch=held_out``.
        train_limit: Use only this many training examples; None: all.
        eval_limit: Evaluate on at most this many examples; None: all.
        split_seed: Seed of the splits; runs with different training seeds use the same splits.
        download: Download the official files if they are missing.
        workers: Processes that read and decode examples, if the backbone does not keep them in memory; they stay alive
            over epochs. None: one per core, up to 8, if there is something to decode; 0: the training process reads.
        allow_missing: Skip examples whose video or image is missing or broken, instead of stopping with an error.
    """

    validation: float = Field(0.1, ge=0)
    held_out: float = Field(0.02, gt=0)
    train_limit: int | None = Field(None, ge=1)
    eval_limit: int | None = Field(None, ge=1)
    split_seed: int = 0
    download: bool = False
    workers: int | None = Field(None, ge=0)
    allow_missing: bool = False


class RunSpec(Info):
    """All settings that determine the results of a run; written to ``run.yaml``.

    Args:
        losses: The losses in use, primary first.
        primary: The loss that the combiner learns to minimise; None: the first loss that the backbone names for the
            task.
        options: The backbone's own settings, complete.
        combiner_options: The combiner's own settings, complete.
        scheme_options: The scheme's own settings, complete.
        estimator_options: The estimator's own settings, complete.
        plugins: Files given with ``--plugin``.
        sample: Use a small synthetic sample instead of the real files.
    """

    backbone: str
    task: str
    dataset: str
    losses: tuple[str, ...] = Field(min_length=1)
    primary: str | None = None
    combiner: str = "meltr"
    preset: str | None = None
    fidelity: Literal["paper", "released"] = "paper"
    seed: int = 0
    device: str = "auto"
    data_root: Path | None = None
    sample: bool = False
    plugins: tuple[Path, ...] = ()
    train: TrainSpec = TrainSpec()
    bilevel: BilevelSpec = BilevelSpec()
    data: DataSpec = DataSpec()
    combiner_options: dict[str, Any] = Field({})
    scheme_options: dict[str, Any] = Field({})
    estimator_options: dict[str, Any] = Field({})
    options: dict[str, Any] = Field({})

    @field_validator("losses")
    @classmethod
    def _losses_differ(cls, losses: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for name in losses if losses.count(name) > 1), None)
        if twice is not None:
            raise PydanticCustomError("twice", "{name} occurs twice", {"name": repr(twice)})
        return losses
