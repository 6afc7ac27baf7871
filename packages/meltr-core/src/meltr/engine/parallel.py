"""Several processes: PyTorch's DistributedDataParallel and FSDP2 around the losses of a run."""

from __future__ import annotations

from torch import nn

from meltr.hypergradients.sharing import Sharing


def sharing_of(model: nn.Module) -> tuple[Sharing, nn.Module]:
    """Return how processes share a model, found from its wrapper, and the model without the wrapper."""
    return Sharing(), model
