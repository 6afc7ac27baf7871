"""The initialisation of the networks that start from random weights (He et al. 2015)."""

from __future__ import annotations

from torch import nn


def he_normal(module: nn.Module) -> None:
    """Initialise convolutions as in He et al. 2015: weights N(0, 2 / fan_in). BatchNorm keeps weight 1 and bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
