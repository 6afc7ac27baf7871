"""Several processes: PyTorch's DistributedDataParallel and FSDP2 around the losses of a run."""

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


class LossModule(nn.Module):
    """Lets a loss function, which may call any part of the model, stand for the forward of a wrapped module.

    Args:
        model: The backbone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.parts: tuple[Tensor, ...] = ()

    def forward(self, compute: Compute) -> tuple[Tensor, ...]:
        """Return the losses, 0-dim each; also kept in `parts`, as they were before a wrapper touched them."""
        self.parts = tuple(part.clone() for part in as_parts(compute()))  # FSDP warns of views
        return self.parts

    def take(self) -> tuple[Tensor, ...]:
        """Return the last losses and forget them."""
        parts, self.parts = self.parts, ()
        return parts


class Distributed(Sharing):
    """What all ways of sharing a batch have in common: numbers are averaged over the ranks.

    Args:
        ranks: The processes.
    """

    one_process = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the ranks of a small tensor: the same bits everywhere."""
        return self.ranks.mean(values)

    def mean_small(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the means over the ranks of a few small tensors, by one all-reduce."""
        present = [tensor for tensor in tensors if tensor is not None]
        if not present:
            return list(tensors)
        flat = self.ranks.mean(torch.cat([tensor.flatten() for tensor in present]))
        pieces = iter(flat.split([tensor.numel() for tensor in present]))
        return [None if tensor is None else next(pieces).view_as(tensor) for tensor in tensors]


class DataParallel(Distributed):
    """Every rank holds all weights and its part of the batch (DistributedDataParallel).

    The inner gradient is averaged by DDP's reducer while the backward runs. The outer step's v is taken by
    torch.autograd.grad, which DDP does not see, and averaged by hand; g comes from every rank's own J and the
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
        """Call the loss function: through DDP where its reducer is to average the inner gradient."""
        if not (inner and torch.is_grad_enabled()):
            return as_parts(compute())
        self._ddp(compute)
        inside: LossModule = self._ddp.module
        return inside.take()

    def backward(self, losses: Sequence[Tensor], seeds: Sequence[Tensor], averaging: Averaging) -> None:
        """Add the gradient to ``.grad``, averaged by DDP, or by the micro-batch that comes last."""
        with self._without_averaging() if averaging == "later" else nullcontext():
            torch.autograd.backward(list(losses), list(seeds))

    def _without_averaging(self) -> AbstractContextManager[Any]:
        return self._ddp.no_sync()

    def mean_direction(self, direction: Direction, parameters: Sequence[Tensor]) -> Direction:
        """Return the mean over the ranks of their shares of a gradient, in a few large all-reduces."""
        return self.ranks.mean_(direction, parameters)

    def products(self, rows: Iterable[Direction], direction: Direction) -> Tensor:
        """Return the mean over the ranks of the inner products of their rows with a direction, (T+1,)."""
        return self.ranks.mean(products(rows, direction).to(self.ranks.device))


class WrappedDataParallel(DataParallel):
    """The same for a loop of the user's own, whose losses call a model that is wrapped in DistributedDataParallel.

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

    Gradients exist as shards in ``.grad`` only, averaged by FSDP's reduce-scatter: v and the rows of J are taken by
    ordinary backwards whose result is set aside. The shards are perturbed in place, and gathered copies thrown away.

    Args:
        ranks: The processes.
        model: The backbone; its modules are sharded.
        root: A sharded wrapper with the losses as its forward; None: the losses call a sharded root themselves.
    """

    whole_weights = False
    # A cached bfloat16 copy outlives its block's gradient reduction and leaks into the next gradient.
    autocast_cache = False

    def __init__(self, ranks: Ranks, model: nn.Module, root: nn.Module | None = None) -> None:
        super().__init__(ranks)
        self._model, self._root = model, root
        # While a module is gathered, model.parameters() gives its gathered weights, not the shards.
        self._shards = list(model.parameters())

    @classmethod
    def around(cls, ranks: Ranks, model: nn.Module, blocks: Iterable[nn.Module]) -> Sharded:
        """Shard the weights of a model over the ranks: each block on its own, the rest together.

        Args:
            ranks: The processes.
            model: The backbone, on its device; its parameters become DTensors.
            blocks: Modules that are gathered on their own.
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
        """Return this rank's shards of the averaged gradient; ``.grad`` of every leaf stays as it was."""
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
        """Within this context all weights are whole in every process."""
        sharded = sharded_modules(self._root or self._model)
        for module in sharded:
            module.unshard()
        try:
            yield
        finally:
            for module in sharded:
                module.reshard()

    def moved(self) -> None:
        """Throw away gathered copies of weights, which are stale after a move."""
        for module in sharded_modules(self._root or self._model):
            module.reshard()


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules that ``fully_shard`` was applied to."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def sharing_of(model: nn.Module) -> tuple[Sharing, nn.Module]:
    """Return how processes share a model, found from its wrapper, and the model without the wrapper.

    Args:
        model: A plain module, one wrapped in DistributedDataParallel, or one that ``fully_shard`` was applied to.
    """
    if isinstance(model, DistributedDataParallel):
        return WrappedDataParallel(Ranks.current(), model), model.module
    if sharded_modules(model):
        return Sharded(Ranks.current(), model), model
    return Sharing(), model
