"""Training on several processes: PyTorch's DistributedDataParallel and FSDP2 around the losses of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meltr.autograd.leaves import hooks_withheld, reached_leaves
from meltr.autograd.losses import Compute, as_parts
from meltr.autograd.vectors import Direction, dot, products
from meltr.parallel.ranks import Ranks
from meltr.parallel.sharing import Averaging, Sharing
from meltr.shards import local
from meltr.torch_private import without_compiler


class LossModule(nn.Module):
    """A module whose forward calls a loss function, which may use any part of the model, so that it can be wrapped.

    Args:
        model: The backbone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.parts: tuple[Tensor, ...] = ()

    def forward(self, compute: Compute) -> tuple[Tensor, ...]:
        """Return the losses, 0-dim each; also stored in `parts`, before a wrapper can change them."""
        self.parts = tuple(part.clone() for part in as_parts(compute()))  # FSDP warns of views
        return self.parts

    def take(self) -> tuple[Tensor, ...]:
        """Return the last losses and clear them."""
        parts, self.parts = self.parts, ()
        return parts


class Distributed(Sharing):
    """Base class for sharing a batch over several processes: values are averaged over the ranks.

    Args:
        ranks: The processes.
    """

    one_process = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the ranks of a small tensor, bitwise equal on all ranks."""
        return self.ranks.mean(values)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 to every process, in place."""
        for tensor in tensors:
            self.ranks.broadcast(tensor)

    def mean_small(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the means over the ranks of a few small tensors, with one all-reduce."""
        present = [tensor for tensor in tensors if tensor is not None]
        if not present:
            return list(tensors)
        flat = self.ranks.mean(torch.cat([tensor.flatten() for tensor in present]))
        pieces = iter(flat.split([tensor.numel() for tensor in present]))
        return [None if tensor is None else next(pieces).view_as(tensor) for tensor in tensors]


class DataParallel(Distributed):
    """Every rank holds all weights and its part of the batch (DistributedDataParallel).

    The inner gradient is averaged by DDP's reducer during the backward pass. The outer step's v is computed by
    torch.autograd.grad, which bypasses DDP, and is averaged explicitly. g is computed from each rank's own J and the
    averaged q.

    Args:
        ranks: The processes.
        model: The backbone, on its device.
    """

    def __init__(self, ranks: Ranks, model: nn.Module) -> None:
        super().__init__(ranks)
        on_gpu = ranks.device.type == "cuda"
        self._ddp = DistributedDataParallel(
            LossModule(model), device_ids=[ranks.device.index] if on_gpu else None, find_unused_parameters=True
        )

    def evaluate(self, compute: Compute, *, inner: bool) -> tuple[Tensor, ...]:
        """Call the loss function, through DDP if its reducer has to average the inner gradient."""
        if not (inner and torch.is_grad_enabled()):
            return as_parts(compute())
        self._ddp(compute)
        inside: LossModule = self._ddp.module
        return inside.take()

    def backward(self, losses: Sequence[Tensor], seeds: Sequence[Tensor], averaging: Averaging) -> None:
        """Add the gradient to ``.grad``: averaged by DDP, or later with the last micro-batch."""
        with self._without_averaging() if averaging == "later" else nullcontext():
            torch.autograd.backward(list(losses), list(seeds))

    def _without_averaging(self) -> AbstractContextManager[Any]:
        return self._ddp.no_sync()

    def mean_direction(self, direction: Direction, parameters: Sequence[Tensor]) -> Direction:
        """Return the mean over the ranks of their gradients, with a few large all-reduces."""
        return self.ranks.mean_(direction, parameters)

    def products(self, rows: Iterable[Direction], direction: Direction) -> Tensor:
        """Return the inner products of each rank's rows with a direction, averaged over the ranks, (T+1,)."""
        return self.ranks.mean(products(rows, direction).to(self.ranks.device))


class WrappedDataParallel(DataParallel):
    """Data parallelism for a user's own loop, whose losses call a model wrapped in DistributedDataParallel.

    Args:
        ranks: The processes.
        ddp: The wrapper.
    """

    def __init__(self, ranks: Ranks, ddp: DistributedDataParallel) -> None:
        Distributed.__init__(self, ranks)
        self._ddp = ddp

    def evaluate(self, compute: Compute, *, inner: bool) -> tuple[Tensor, ...]:
        """Call the loss function; only the inner forward prepares DDP's reducer."""
        with nullcontext() if inner else self._without_averaging():
            return as_parts(compute())


class Sharded(Distributed):
    """Every rank holds a shard of the weights and its part of the batch (FSDP2, ``fully_shard``).

    Gradients exist only as shards in ``.grad``, averaged by FSDP's reduce-scatter. So v and the rows of J are computed
    by ordinary backward passes whose results are moved out of ``.grad``. Finite differences perturb the shards in
    place; gathered copies are then discarded.

    Args:
        ranks: The processes.
        model: The backbone; its modules are sharded.
        root: A sharded wrapper whose forward computes the losses; None: the losses call a sharded root themselves.
    """

    whole_weights = False
    # A cached bfloat16 copy outlives its block's gradient reduction and leaks into the next gradient.
    autocast_cache = False

    def __init__(self, ranks: Ranks, model: nn.Module, root: nn.Module | None = None) -> None:
        super().__init__(ranks)
        self._model, self._root = model, root
        # While a module is gathered, model.parameters() returns its gathered weights, not the shards.
        self._shards = list(model.parameters())

    @classmethod
    def around(cls, ranks: Ranks, model: nn.Module, blocks: Iterable[nn.Module]) -> Sharded:
        """Shard the weights of a model over the ranks: each block separately, the rest together.

        Args:
            ranks: The processes.
            model: The backbone, on its device; its parameters become DTensors.
            blocks: Modules that are gathered separately.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(ranks.device.type, (ranks.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        root = fully_shard(LossModule(model), mesh=mesh)
        if hasattr(root, "set_reduce_scatter_unused_params"):
            root.set_reduce_scatter_unused_params(True)
        assert isinstance(root, nn.Module)
        return cls(ranks, model, root)

    def evaluate(self, compute: Compute, *, inner: bool) -> tuple[Tensor, ...]:
        """Call the loss function inside the sharded root's forward, where the root's own weights are gathered."""
        if self._root is None:
            return as_parts(compute())
        parts: tuple[Tensor, ...] = self._root(compute)
        return parts

    def gradient(
        self, losses: Sequence[Tensor], seeds: Sequence[Tensor], parameters: Sequence[Tensor], *, retain: bool = True
    ) -> list[Tensor | None]:
        """Return this rank's shards of the averaged gradient; ``.grad`` of every leaf is not changed."""
        leaves = {id(leaf): leaf for leaf in [*self._shards, *reached_leaves(losses)]}.values()
        aside = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        try:
            with hooks_withheld(leaves):
                torch.autograd.backward(list(losses), list(seeds), retain_graph=retain)
            return [None if parameter.grad is None else local(parameter.grad) for parameter in parameters]
        finally:
            for leaf, gradient in zip(leaves, aside, strict=True):
                leaf.grad = gradient

    def dot(self, one: Direction, other: Direction) -> Tensor:
        """Return the inner product of two averaged directions, summed over the shards, float64, shape ()."""
        return self.ranks.sum(dot(one, other).to(self.ranks.device))

    def products(self, rows: Iterable[Direction], direction: Direction) -> Tensor:
        """Return the inner products of averaged rows with a direction, summed over the shards, (T+1,)."""
        return self.ranks.sum(products(rows, direction).to(self.ranks.device))

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Return a context in which all weights are gathered in every process."""
        sharded = sharded_modules(self._root or self._model)
        for module in sharded:
            module.unshard()
        try:
            yield
        finally:
            for module in sharded:
                module.reshard()

    def moved(self) -> None:
        """Discard gathered copies of weights, which are stale after a weight change."""
        for module in sharded_modules(self._root or self._model):
            module.reshard()


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules that ``fully_shard`` was applied to."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def sharing_of(model: nn.Module) -> tuple[Sharing, nn.Module]:
    """Return how processes share a model, as determined by its wrapper, and the model without the wrapper.

    Args:
        model: A plain module, one wrapped in DistributedDataParallel (and then perhaps compiled), or one that
            ``fully_shard`` was applied to.
    """
    wrapper = without_compiler(model)
    if isinstance(wrapper, DistributedDataParallel):
        return WrappedDataParallel(Ranks.current(), wrapper), wrapper.module
    if sharded_modules(model):
        return Sharded(Ranks.current(), model), model
    return Sharing(), model
