"""The released training loop: a run with `fidelity=released` follows every recorded trajectory.

Settings are resolved as for a user and the trainer and the adapter are those of every run. Put in is only what was
drawn: weights, batches, what is hidden in them, and which batches the outer steps took from the buffer.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import meltr_univl.adapter
from meltr.bilevel.results import OuterResult, StepResult
from meltr.context import Data
from meltr.engine.building import estimator_of, scheme_of
from meltr.engine.built_run import open_run
from meltr.engine.trainer import Trainer
from meltr.parallel.ranks import Ranks
from meltr.plugins import Registry, discover
from meltr.settings import resolve
from meltr.specs import RunSpec
from meltr_univl.losses.masking import Masks
from univl_goldens import EIGHT, Goldens

RUNS = {1: ("retrieval", "youcook2"), 6: ("captioning", "msrvtt-full")}
"""Number of the primary loss -> task and data set."""

WARMUP = {"warmup_linear_down": 0.0, "warmup_linear": 0.1}
"""Released schedule -> `train.warmup`."""

COLUMNS = ("text", "text_mask", "video", "video_mask", "caption_input", "caption_mask", "caption_output")
KEYS = "encoder.self_attn.in_proj_bias"
"""Its third for keys has no gradient but rounding, which Adam turns into whole steps."""


@functools.cache
def installed() -> Registry:
    return discover()


def spec_of(given: dict[str, Any]) -> RunSpec:
    """What a user writes for a trajectory: `fidelity=released`, and the numbers that it was recorded with."""
    task, dataset = RUNS[given["target"].index(1)]
    recorded = {
        "train.lr": given["lr"],
        "train.warmup": WARMUP[given["warmup"]],
        "train.epochs": given["epochs"],
        "train.schedule_restart": given["scheduler_epoch"],
        "options.text_lr_scale": given["coef_lr"],
        "bilevel.every": given["auxgrad_every"],
        "bilevel.gamma": given["gamma"] if given["reg"] else 0.0,
        "bilevel.outer_lr": given["lr_vnet"],
        "bilevel.outer_weight_decay": given["decay_vnet"],
        "bilevel.outer_clip_norm": given["vnet_max_grad"],
    }
    return resolve(
        installed(), backbone="univl", task=task, dataset=dataset, config={"fidelity": "released", **recorded}
    )


class Recorded:
    """The recorded training batches, in their order."""

    def __init__(self, golden: Goldens, given: dict[str, Any]) -> None:
        self.order: list[int] = given["batch_of_step"]
        self.epochs: int = given["epochs"]
        self.whole = {name: golden.batch(name) for name in golden.training_batches}

    @property
    def size(self) -> int:
        return sum(len(batch.text) for batch, _ in self.whole.values())

    def __len__(self) -> int:
        return len(self.order) // self.epochs

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        for number in self.order[epoch * len(self) :][start : len(self)]:
            yield {name: getattr(self.whole[f"train{number}"][0], name) for name in COLUMNS}

    def number(self, batch: dict[str, Tensor]) -> int:
        """Return which of the recorded batches this is."""
        return next(n for n in self.order if torch.equal(self.whole[f"train{n}"][0].text, batch["text"]))

    def masks(self, ids: Tensor, *_: object, **__: object) -> Masks:
        """Return what was hidden in the batch with these texts, in place of `draw_masks`."""
        return next(masks for batch, masks in self.whole.values() if torch.equal(batch.text, ids))


@dataclass
class Seen:
    """What was seen of a run: a value of each kind a step, or an outer step."""

    inner: list[StepResult] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    parameter_norms: list[Tensor] = field(default_factory=list)
    outer: list[OuterResult] = field(default_factory=list)
    outer_at: list[int] = field(default_factory=list)
    primary: list[Tensor] = field(default_factory=list)
    train: list[Tensor] = field(default_factory=list)
    combined: list[Tensor] = field(default_factory=list)
    hypergradient: list[dict[str, float]] = field(default_factory=list)
    phi: list[dict[str, Tensor]] = field(default_factory=list)


class Run:
    """A run of the trainer on a trajectory's batches."""

    def __init__(
        self,
        golden: Goldens,
        given: dict[str, Any],
        patch: pytest.MonkeyPatch,
        *,
        spec: RunSpec | None = None,
    ) -> None:
        self.golden, self.given, self.seen = golden, given, Seen()
        self.batches = Recorded(golden, given)
        patch.setattr(meltr_univl.adapter, "draw_masks", self.batches.masks)
        hooks, context = open_run(
            spec or spec_of(given), installed(), run_dir=None, ranks=Ranks.single(torch.device("cpu"))
        )
        self.rows = [EIGHT.index(name) for name in context.losses]  # a run has its primary loss first
        self.model, self.combiner = golden.model(), golden.combiner(self.rows)
        data = Data(self.batches, None)
        self.trainer = Trainer(
            hooks,
            context,
            data,
            model=self.model,
            combiner=self.combiner,
            scheme=scheme_of(installed(), context.spec),
            estimator=estimator_of(installed(), context.spec),
        )
        self._watch_steps()
        self._watch_outer_steps()
        self._draw_as_recorded()

    def in_order(self, losses: Tensor) -> Tensor:
        """Return losses (8,) of the run in the released order."""
        return losses[[self.rows.index(number) for number in range(len(EIGHT))]]

    def weights(self) -> dict[str, Tensor]:
        """Return the combiner's weights in the released order of losses."""
        found = {name: value.detach().clone() for name, value in self.combiner.named_parameters()}
        return found | {"task_embedding.weight": self.in_order(found["task_embedding.weight"])}

    def _watch_steps(self) -> None:
        seen, order, named = self.seen, self.golden.config["parameter_order"], dict(self.model.named_parameters())
        backward, optimizer = self.trainer.bilevel.backward, self.trainer.optimizer
        text = named["bert.pooler.dense.weight"]

        def watched(*args: Any, **kwargs: Any) -> StepResult:
            seen.inner.append(backward(*args, **kwargs))
            gradients = [parameter.grad.norm() for parameter in named.values() if parameter.grad is not None]
            seen.norm.append(float(torch.stack(gradients).norm()))
            return seen.inner[-1]

        def stepped(*_: object) -> None:
            seen.lr += [group["lr"] for group in optimizer.param_groups if any(p is text for p in group["params"])]
            seen.parameter_norms.append(torch.stack([named[name].detach().norm() for name in order]))

        self.trainer.bilevel.backward = watched  # type: ignore[method-assign]
        optimizer.register_step_post_hook(stepped)

    def _watch_outer_steps(self) -> None:
        seen, outer_step = self.seen, self.trainer.bilevel.outer_step

        def first(compute: Callable[[], dict[str, Tensor]], into: list[Tensor]) -> Callable[[], dict[str, Tensor]]:
            count = len(into)

            def watched() -> dict[str, Tensor]:
                losses = compute()
                if len(into) == count:
                    into.append(torch.stack([loss.detach() for loss in losses.values()]))
                return losses

            return watched

        def watched(primary: Any, auxiliary: Any, **kwargs: Any) -> OuterResult:
            before = copy.deepcopy(self.combiner)
            seen.outer_at.append(self.trainer.step)
            seen.outer.append(outer_step(first(primary, seen.primary), first(auxiliary, seen.train), **kwargs))
            seen.combined.append(before(seen.train[-1]).detach())
            seen.phi.append(self.weights())
            return seen.outer[-1]

        def stepping(*_: object) -> None:
            named = self.combiner.named_parameters()
            seen.hypergradient.append({n: 0.0 if p.grad is None else float(p.grad.norm()) for n, p in named})

        self.trainer.bilevel.outer_step = watched  # type: ignore[method-assign]
        assert self.trainer.outer is not None
        self.trainer.outer.register_step_pre_hook(stepping)

    def _draw_as_recorded(self) -> None:
        """Take the recorded draws; the buffer must hold the last ten batches of the epoch, or at first the current."""
        wanted = (number for pair in self.given["meta_batches_primary_then_train"] for number in pair)
        buffer, order = self.trainer.outer_batches.buffer, self.given["batch_of_step"]

        def draw(rng: object, otherwise: dict[str, Tensor]) -> dict[str, Tensor]:
            step = self.trainer.step
            held: list[dict[str, Tensor]] = [entry.batch for entry in buffer._entries] or [otherwise]
            numbers = [self.batches.number(batch) for batch in held]
            assert numbers == (order[step - step % len(self.batches) : step][-10:] or [order[step]])
            return held[numbers.index(next(wanted))]

        buffer.draw = draw  # type: ignore[method-assign]


def test_the_released_loop_is_followed(
    golden: Goldens, trajectory: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, name = golden.tensors("trajectories"), trajectory["name"]
    run = Run(golden, trajectory, monkeypatch)
    run.trainer.fit()
    seen = run.seen
    assert seen.lr == pytest.approx(recorded[f"{name}.lr"].tolist(), rel=1e-12, abs=1e-18)
    golden.close(
        torch.stack([run.in_order(each.losses) for each in seen.inner]), recorded[f"{name}.inner_losses"], 4e-4
    )
    golden.close(torch.stack([each.combined for each in seen.inner]), recorded[f"{name}.combined"], 4e-4)
    assert seen.norm == pytest.approx(recorded[f"{name}.grad_norm_before_clip"].tolist(), rel=1e-3)
    # A norm moves by no more than 2e-5 an entry.
    sizes = torch.tensor([math.sqrt(parameter.numel()) for parameter in ordered(run)], dtype=torch.float64)
    off = (torch.stack(seen.parameter_norms).double() - recorded[f"{name}.param_norms"]).abs()
    assert (off <= 2e-5 * sizes).all()
    assert seen.outer_at == trajectory["meta_at_steps"]
    golden.close(torch.cat(seen.primary), recorded[f"{name}.meta.primary_loss"], 4e-4)
    golden.close(torch.stack([run.in_order(each) for each in seen.train]), recorded[f"{name}.meta.train_losses"], 4e-4)
    golden.close(torch.stack(seen.combined), recorded[f"{name}.meta.combined"], 4e-4)
    apart = torch.stack([losses.sum() - m for losses, m in zip(seen.train, seen.combined, strict=True)]).abs()
    value = torch.cat(seen.primary) + run.trainer.context.spec.bilevel.gamma * apart
    golden.close(value, recorded[f"{name}.meta.val_loss"], 4e-4)
    for each in range(len(seen.outer)):
        check_combiner(run, f"{name}.meta{each}.", each)
    for key, tensor in run.model.state_dict().items():
        golden.check(tensor, f"{name}.final.{key}", 2e-5, file="trajectories")


def ordered(run: Run) -> list[Tensor]:
    named = dict(run.model.named_parameters())
    return [named[name] for name in run.golden.config["parameter_order"]]


def check_combiner(run: Run, prefix: str, number: int) -> None:
    golden, seen = run.golden, run.seen
    recorded, order = golden.tensors("trajectories"), golden.config["meltr_parameter_order"]
    norms = recorded[f"{prefix}hypergrad_norm"]
    assert float(seen.outer[number].gradient_norm) == pytest.approx(float(norms.norm()), rel=1e-3)
    clipped = norms * min(1.0, run.given["vnet_max_grad"] / float(norms.norm()))
    found = torch.tensor([seen.hypergradient[number][name] for name in order], dtype=torch.float64)
    torch.testing.assert_close(found, clipped, rtol=2e-4, atol=1e-9)
    for name, value in seen.phi[number].items():
        third = len(value) // 3
        felt = [*range(third), *range(2 * third, len(value))] if name == KEYS else ...
        golden.check(value, f"{prefix}phi.{name}", 1e-5, file="trajectories", where=(felt,))
