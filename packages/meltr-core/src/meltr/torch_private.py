"""All uses of torch's private names. No other module names one.

`NAMES` lists them; a test reports which one a new version of torch has lost. Each is wrapped by a function here, so
that there is one place to repair.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {
    "torch.utils._pytree.tree_leaves": "finding the tensors in a batch or in a module's output",
    "torch.utils._pytree.tree_map_only": "changing the tensors in a batch or in a module's output",
    "torch.utils._python_dispatch.TorchDispatchMode": "counting floating-point operations",
    "torch._ops.OpOverload.overloadpacket": "counting floating-point operations",
    "torch._subclasses.fake_tensor.FakeTensorMode": "evaluating losses as on a GPU that is not there",
    "torch._subclasses.fake_tensor.DataDependentOutputException": "noticing that losses wait for the device",
    "torch._subclasses.fake_tensor.DynamicOutputShapeException": "noticing that losses wait for the device",
    "torch.autograd.grad_mode._unsafe_preserve_version_counter": "differentiating a graph after its weights moved",
    "torch.Tensor._version": "noticing that a tensor was changed in place",
    "torch._C._autograd._top_saved_tensors_default_hooks": "recognising activation checkpointing",
    "torch._C._current_graph_task_id": "counting backward passes",
    "torch._C._functorch.is_functorch_wrapped_tensor": "losses that map over the weights of a module",
    "torch._functorch.config.donated_buffer": "differentiating the graph of a compiled model twice",
    "torch.nn.Module._compiled_call_impl": "recognising a module after Module.compile()",
    "torch.nn.Module._buffers": "restoring buffers that a module replaced",
    "torch.nn.Module._parameters": "restoring frozen weights that the losses move",
    "torch.nn.Module._forward_pre_hooks": "restoring the weight that older weight_norm and spectral_norm compute",
    "torch.nn.Module._modules": "telling whether a module was built anew in its forward pass",
    "torch.Tensor._backward_hooks": "keeping hooks on gradients for the inner step",
    "torch.Tensor._post_accumulate_grad_hooks": "keeping hooks on gradients for the inner step",
    "torch.autograd.graph.Node._sequence_nr": "noticing losses that were computed before the loss function was called",
    "torch.autograd.forward_ad._current_level": "telling evaluations in forward mode from others for CUDA graphs",
    "torch._C._cuda_endAllocateToPool": "freeing memory after a CUDA graph that could not be captured",
    "torch._C._cuda_releasePool": "freeing memory after a CUDA graph that could not be captured",
    "torch.nn.Module._apply": "moving the tensors of TorchJD's aggregators with the combiner",
    "torch._dynamo.eval_frame.OptimizedModule": "recognising a model after torch.compile",
    "torch.distributed.checkpoint.filesystem._StorageInfo": "reading the index of a sharded checkpoint",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": "reading the index of a sharded checkpoint",
    "torch.serialization._get_layout": "reading the index of a sharded checkpoint",
    **{
        f"torch._foreach_{name}": "one kernel for many tensors"
        for name in ("add", "add_", "addcdiv_", "addcmul_", "copy_", "lerp_", "mul", "mul_", "norm", "sqrt", "sub_")
    },
}
"""Each private name with what would stop working without it."""

Tensors = list[Tensor] | tuple[Tensor, ...]

DispatchMode = TorchDispatchMode
"""Base class of a context that intercepts every operation below autograd in ``__torch_dispatch__``."""

CHECKPOINT_INDEX_TYPES = {
    **dict.fromkeys(
        (
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "ChunkStorageMetadata",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.metadata",
    ),
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "_get_layout": "torch.serialization",
}
"""Names that the pickled index of a sharded checkpoint may contain: name -> module."""


def tree_leaves(value: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples, dicts and registered classes, in order."""
    return pytree.tree_leaves(value)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return nested lists, tuples and dicts with `function` applied to every tensor in them."""
    return pytree.tree_map_only(Tensor, function, value)


def operation_of(overload: Any) -> Any:
    """Return the operation of an overload passed to ``__torch_dispatch__``; None if it has none."""
    return getattr(overload, "overloadpacket", None)


def preserved_versions(tensors: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """Return a context after which autograd treats `tensors` as unchanged; the caller restores their values.

    Without it a graph that holds them could no longer be differentiated, although every bit is the same as before.
    """
    if not tensors:
        return nullcontext()
    return torch.autograd.grad_mode._unsafe_preserve_version_counter(tuple(tensors))


def version(tensor: Tensor) -> int:
    """Return the number of in-place changes to a tensor."""
    return tensor._version


def saved_tensors_are_hooked() -> bool:
    """Tell whether saved tensors currently pass through hooks, as activation checkpointing installs them."""
    top: Callable[[bool], Any] = torch._C._autograd._top_saved_tensors_default_hooks
    return top(False) is not None


def dual_numbers_in_use() -> bool:
    """Tell whether the code runs inside a forward-mode context."""
    return bool(torch.autograd.forward_ad._current_level >= 0)


def fake_mode() -> Any:
    """Return a context in which operations give tensors that know shape, type and device, and hold no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def needs_values(error: BaseException) -> bool:
    """Tell whether an operation failed on such tensors because the host needs their numbers."""
    from torch._subclasses import fake_tensor

    return isinstance(error, (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException))


def is_borrowed(module: nn.Module) -> bool:
    """Tell whether a module holds tensors of ``torch.func.vmap`` or the like, which it has for one call only."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return any(wrapped(tensor) for tensor in (*module.parameters(), *module.buffers()))


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers of one module by name, without its children's: the dictionary that the module itself uses."""
    return module._buffers


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """Return the parameters of one module by name, without its children's: the module's own dictionary."""
    return module._parameters


def has_hooks_before(module: nn.Module) -> bool:
    """Tell whether hooks run before the forward of one module."""
    return bool(module._forward_pre_hooks)


def modules_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the children of one module by name: the module's own dictionary."""
    return module._modules


def gradient_hooks(leaf: Tensor) -> list[dict[int, Any]]:
    """Return the existing hooks on the gradient of a leaf: the dictionaries that autograd itself uses."""
    found = (leaf._backward_hooks, getattr(leaf, "_post_accumulate_grad_hooks", None))
    return [hooks for hooks in found if hooks]


@contextmanager
def checkpoints_without_graph() -> Iterator[None]:
    """Let activation checkpoints run with dual numbers where no graph is built, as they do in torch 2.15.

    Before, torch passes the arguments through a function that saves them and has no forward mode. A later torch has no
    such function, so no name of `NAMES` stands for it.
    """
    saver: Any = getattr(torch.utils.checkpoint, "_NoopSaveInputs", None)
    if saver is None or "jvp" in vars(saver):
        yield
        return
    saver.jvp = staticmethod(lambda ctx, *tangents: torch.zeros((0,)))
    try:
        yield
    finally:
        del saver.jvp


def backward_number() -> int:
    """Return autograd's number of the current backward pass; -1 outside of one."""
    return int(torch._C._current_graph_task_id())


def abandon_pool(pool: Any) -> None:
    """Give up the memory of a CUDA graph whose capture failed on the current device, if torch has not done so itself.

    While it counts as being captured, memory that several streams have used is not freed.

    Args:
        pool: What `torch.cuda.graph_pool_handle` returned.
    """
    device = torch.cuda.current_device()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        return
    torch._C._cuda_releasePool(device, pool)


def keep_buffers_of_compiled_graphs() -> None:
    """Make compiled models keep what a backward pass needs, so that their graph can be differentiated twice."""
    from torch._functorch import config

    config.donated_buffer = False


def without_compiler(module: nn.Module) -> nn.Module:
    """Return the module inside the one that ``torch.compile`` returned; any other module as it is."""
    inside = getattr(module, "_orig_mod", module)
    return inside if isinstance(inside, nn.Module) else module


def is_compiled(module: nn.Module) -> bool:
    """Tell whether a module was compiled, by ``Module.compile()`` or ``torch.compile``."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # not imported here: it takes seconds
    wrapped = compiler is not None and isinstance(module, compiler.OptimizedModule)
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


def add_each(tensors: Tensors, others: Tensors | float) -> None:
    """Add to every tensor, in place, its partner or one number."""
    if isinstance(others, float):
        torch._foreach_add_(tensors, others)
    else:
        torch._foreach_add_(tensors, others)


def sums_of_each(tensors: Tensors, others: Tensors, alpha: float) -> list[Tensor]:
    """Return tensor + alpha * partner for every tensor."""
    return list(torch._foreach_add(tensors, others, alpha=alpha))


def products_each(tensors: Tensors, factor: Tensor | float) -> list[Tensor]:
    """Return factor * tensor for every tensor, for a number, or a factor of shape () on their device."""
    return list(torch._foreach_mul(tensors, factor))


def norms_of_each(tensors: Tensors) -> list[Tensor]:
    """Return the Euclidean norm of every tensor, shape () each."""
    return list(torch._foreach_norm(tensors)) if tensors else []


def subtract_each(tensors: Tensors, others: Tensors) -> None:
    """Subtract its partner from every tensor, in place."""
    torch._foreach_sub_(tensors, others)


def scale_each(tensors: Tensors, factor: float) -> None:
    """Multiply every tensor by a number, in place."""
    torch._foreach_mul_(tensors, factor)


def copy_each(tensors: Tensors, sources: Tensors) -> None:
    """Copy its partner into every tensor."""
    torch._foreach_copy_(tensors, sources)


def interpolate_each(tensors: Tensors, ends: Tensors, weight: float) -> None:
    """Move every tensor towards its partner, in place: t + weight (end - t)."""
    torch._foreach_lerp_(tensors, ends, weight)


def add_products_each(tensors: Tensors, ones: Tensors, others: Tensors, factor: float) -> None:
    """Add factor * one * other to every tensor, in place."""
    torch._foreach_addcmul_(tensors, ones, others, factor)


def add_quotients_each(tensors: Tensors, above: Tensors, below: Tensors, factor: float) -> None:
    """Add factor * above / below to every tensor, in place."""
    torch._foreach_addcdiv_(tensors, above, below, factor)


def roots_of_each(tensors: Tensors) -> list[Tensor]:
    """Return the square root of every tensor."""
    return list(torch._foreach_sqrt(tensors))


def largest_values(tensors: Sequence[Tensor]) -> Tensor:
    """Return the largest absolute value of each tensor, (N,); NaN where it holds a NaN.

    Args:
        tensors: N tensors on one device, none of them empty.
    """
    norms = list(torch._foreach_norm(list(tensors), float("inf")))
    kinds = {norm.dtype for norm in norms}
    widest = next((kind for kind in (torch.float64, torch.float32) if kind in kinds), norms[0].dtype)
    return torch.stack(norms if len(kinds) == 1 else [norm.to(widest) for norm in norms])


def sequence_number(node: Any = None) -> int:
    """Return the place of a node of an autograd graph among all that its thread has made; None: the next place.

    Args:
        node: A node; those of leaves come after all others.
    """
    if node is None:
        with torch.enable_grad():
            node = torch.zeros((), requires_grad=True).clone().grad_fn
    number: int = node._sequence_nr()
    return number


def can_skip_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimiser can skip a step by a flag on the device, as the gradient scaler has it done.

    The fused optimisers of torch say so on the instance, so no name of `NAMES` stands for it; without it the answer is
    False, and the host decides.
    """
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def step_unless(optimizer: torch.optim.Optimizer, flag: Tensor) -> None:
    """Take a step of an optimiser that `can_skip_on_device`, unless `flag`, shape (), is true on the device."""
    optimizer.grad_scale, optimizer.found_inf = None, flag.float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
