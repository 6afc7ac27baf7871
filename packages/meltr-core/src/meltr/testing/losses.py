"""The losses: those that were declared, usable alone, of some use, and a function of weights, batch and generators."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from meltr.engine.batches import batch_at, fingerprint
from meltr.engine.built_run import build_run
from meltr.plugins import Registry
from meltr.specs import RunSpec
from meltr.testing.case import Case
from meltr.verify.fixed_run import FixedRun
from meltr.verify.pretended import losses_on_a_gpu
from meltr.verify.replays import check_replay

ROUNDING = 1e-5
"""Relative difference of a loss between two sets of requested losses: other kernels may sum in another order."""

TRIES = 8
"""Batches on which a loss may have no gradient by chance, such as one that masked nothing."""


class Losses(Case):
    """`compute_task_losses`, `build_data` and `build_model`."""

    def test_every_declared_loss_is_returned(self, fixed: FixedRun, registry: Registry) -> None:
        """In the order of the declaration: finite scalars with a gradient. Only what `Data.left_out` explains lacks."""
        asked = list(self.make_spec(registry).losses)
        missing = [name for name in asked if name not in fixed.context.losses]
        assert all(fixed.data.left_out.get(name, "").strip() for name in missing), "left_out must say why"
        fixed.restore()
        losses = _losses(fixed)
        assert list(losses) == [name for name in asked if name not in missing]
        for name, loss in losses.items():
            assert loss.shape == (), f"loss {name!r} has the shape {tuple(loss.shape)}"
            assert loss.is_floating_point(), f"loss {name!r} is {loss.dtype}"
            assert loss.requires_grad, f"loss {name!r} has no gradient"
            assert math.isfinite(float(loss.detach())), f"loss {name!r} is {float(loss.detach())}"

    def test_any_of_the_losses_can_be_asked_for(self, fixed: FixedRun) -> None:
        """Each alone, and each with the primary one, whose value must not depend on the company."""
        fixed.restore()
        every = {name: float(loss.detach()) for name, loss in _losses(fixed).items()}
        primary = next(iter(every))
        for asked in [*((name,) for name in every), *((primary, name) for name in every if name != primary)]:
            fixed.restore()
            losses = _losses(fixed, *asked)
            assert list(losses) == list(asked)
            for name, loss in losses.items():
                assert math.isfinite(float(loss.detach())), f"loss {name!r}, asked for with {asked}"
                assert loss.requires_grad, f"loss {name!r}, asked for with {asked}, has no gradient"
            if primary in losses:
                found = float(losses[primary].detach())
                assert math.isclose(found, every[primary], rel_tol=ROUNDING, abs_tol=1e-7), (
                    f"the primary loss {primary!r} is {found} with {asked}, but {every[primary]} with all losses: "
                    "draw the same random numbers whatever is asked for"
                )

    def test_every_loss_moves_a_parameter(self, fixed: FixedRun) -> None:
        """A loss whose gradient is zero everywhere on all of `TRIES` batches, or not finite on one, trains nothing."""
        trainable = {name: each for name, each in fixed.model.named_parameters() if each.requires_grad}
        assert trainable, "no parameter requires a gradient"
        idle = set(fixed.context.losses)
        for number in range(TRIES):
            fixed.restore()
            losses = _losses(fixed, *(name for name in fixed.context.losses if name in idle), number=number)
            for name, loss in losses.items():
                gradients = torch.autograd.grad(loss, list(trainable.values()), retain_graph=True, allow_unused=True)
                named = [(of, grad) for of, grad in zip(trainable, gradients, strict=True) if grad is not None]
                bad = [of for of, grad in named if not bool(grad.isfinite().all())]
                assert not bad, f"loss {name!r}: the gradients of {bad} are not finite"
                if any(bool(grad.count_nonzero()) for _, grad in named):
                    idle.remove(name)
            if not idle:
                return
        assert not idle, f"the losses {sorted(idle)} move no parameter of the model"

    def test_the_losses_can_be_replayed(self, fixed: FixedRun) -> None:
        """The same weights, batch and random numbers give the same losses, with and without a graph."""
        failed = [f"{check.name}: {check.found}" for check in check_replay(fixed) if check.status != "ok"]
        assert not failed, "; ".join(failed)

    def test_the_losses_are_ready_for_a_gpu(self, fixed: FixedRun) -> None:
        """On a pretended GPU every tensor is on the device, and the host never waits for it: no GPU is needed."""
        fixed.restore()
        found = losses_on_a_gpu(fixed.hooks, fixed.model, fixed.batches[0], fixed.context)
        assert not found.failure, f"on a GPU the losses would fail at {found.failure}"
        elsewhere = [name for name, device in found.devices.items() if device.type != "cuda"]
        assert not elsewhere, f"the losses {elsewhere} would not be on the GPU"
        assert not found.waits, (
            "the host would wait for the GPU, and the losses could not be recorded as CUDA graphs, at\n"
            + "\n".join(found.waits)
            + "\nDecide from shapes and not from values, and make constants once (meltr.devices.constant)."
        )

    def test_batches_are_a_function_of_epoch_and_index(self, spec: RunSpec, registry: Registry) -> None:
        """Whichever batches were read before; the next epoch has another order, or other random numbers."""
        source = build_run(spec, registry).data.train
        assert len(source) >= 1
        assert source.size >= 1
        first = [fingerprint(batch) for _, batch in zip(range(3), source.batches(0), strict=False)]
        fresh = build_run(spec, registry).data.train
        last = len(first) - 1
        assert fingerprint(batch_at(fresh, 0, last)) == first[last], "batches(0, start) differs from batches(0)[start:]"
        assert fingerprint(batch_at(source, 0, 0)) == first[0], "batches(0) differs when it is called again"
        if source.size > 1:
            fingerprints = [fingerprint(batch) for _, batch in zip(range(3), source.batches(1), strict=False)]
            assert fingerprints != first, "epoch 1 has the same batches as epoch 0"

    def test_two_builds_with_one_seed_are_the_same(self, spec: RunSpec, registry: Registry) -> None:
        """Model, batches and facts about the data follow from the seed."""
        one, other = build_run(spec, registry), build_run(spec, registry)
        assert dict(one.data.meta) == dict(other.data.meta)
        assert _same(one.model.state_dict(), other.model.state_dict()), "two builds have different weights"
        first, again = (fingerprint(batch_at(built.data.train, 0, 0)) for built in (one, other))
        assert first == again, "two builds have different batches"


def _losses(fixed: FixedRun, *names: str, number: int = 0) -> dict[str, Tensor]:
    """Return the losses of a fixed batch; the number of the batch is also the step whose random numbers are drawn."""
    fixed.seed(number)
    context = fixed.context.with_losses(*names) if names else fixed.context
    return fixed.losses(fixed.batches[number], context)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
