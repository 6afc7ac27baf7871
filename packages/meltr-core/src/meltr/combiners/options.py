"""Settings of the built-in combiners (``combiner_options.*``). Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from meltr.specs import Info


class LossTransformerOptions(Info):
    """Settings of the loss transformer.

    Args:
        width: Embedding width d ("512 hidden" in the paper).
        heads: Attention heads.
        feedforward: Hidden units of the encoder layer's feed-forward part.
        scale_hidden: Hidden units of the scale embedding's MLP.
        layers: Encoder layers.
        dropout: Dropout probability inside the encoder layer, active while training.
        embedding: Components of a loss token (Table 10).
        readout: ``mean``: the projected mean of the encoded tokens (the paper); ``shares``: one positive weight per
            token, with mean 1.
        start: ``sum``: residual form whose correction starts at zero, so that training starts with the plain sum;
            ``fit``: the released form, fitted to the plain sum before the first step; ``random``: as released.
    """

    width: int = Field(512, ge=1)
    heads: int = Field(8, ge=1)
    feedforward: int = Field(512, ge=1)
    scale_hidden: int = Field(256, ge=1)
    layers: int = Field(1, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    embedding: Literal["scale+task", "scale", "task"] = "scale+task"
    readout: Literal["mean", "shares"] = "mean"
    start: Literal["sum", "fit", "random"] = "sum"

    @model_validator(mode="after")
    def _heads_divide_width(self) -> LossTransformerOptions:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        return self


class SharesOptions(LossTransformerOptions):
    """Settings of the loss transformer that gives every loss its share, with a narrower transformer.

    Args:
        width: Embedding width d.
        feedforward: Hidden units of the encoder layer's feed-forward part.
        scale_hidden: Hidden units of the scale embedding's MLP.
        readout: One positive weight per token, with mean 1.
        start: ``sum``: every weight starts at 1; ``random``: at the share of a random logit.
    """

    width: int = Field(64, ge=1)
    feedforward: int = Field(64, ge=1)
    scale_hidden: int = Field(32, ge=1)
    readout: Literal["shares"] = "shares"
    start: Literal["sum", "random"] = "sum"


class LinearOptions(Info):
    """Settings of the linear combiner.

    Args:
        start_weight: Weight of every loss before the first outer step.
        positive: Keep the weights positive (softplus).
    """

    start_weight: float = Field(1.0, gt=0)
    positive: bool = True


class FixedOptions(Info):
    """Settings of fixed weights.

    Args:
        weights: One weight per loss, in the order of the losses in use, primary first.
    """

    weights: tuple[float, ...] = Field(min_length=1)


class UncertaintyOptions(Info):
    """Settings of uncertainty weighting.

    Args:
        start_weight: Weight of every loss at the start: 1 as in the paper's form for classification, 0.5 as in its
            form for regression.
    """

    start_weight: float = Field(1.0, gt=0)


class DwaOptions(Info):
    """Settings of Dynamic Weight Average.

    Args:
        temperature: Softness of the weights; larger ones are more equal.
    """

    temperature: float = Field(2.0, gt=0)


class GradNormOptions(Info):
    """Settings of GradNorm.

    Args:
        alpha: Strength of the pull towards a common training rate; 0: equal gradient norms.
        initial_losses: One value > 0 per loss, in the order of the losses in use; training rates are relative to them.
            For example log C for a classification with C classes. None: the losses of the first step.
    """

    alpha: float = Field(1.5, ge=0)
    initial_losses: tuple[float, ...] | None = None


class FamoOptions(Info):
    """Settings of FAMO.

    Args:
        min_losses: Lower bounds of the losses, one value per loss in the order of the losses in use; None: 0.
    """

    min_losses: tuple[float, ...] | None = None


class CosineOptions(Info):
    """Settings of gradient similarity.

    Args:
        weighted: Weigh an auxiliary gradient by its cosine with the primary one; false: by 1, or 0 if that is negative.
    """

    weighted: bool = True


class AutoLambdaOptions(Info):
    """Settings of Auto-Lambda.

    Args:
        start_weight: Weight of every loss before the first outer step.
    """

    start_weight: float = Field(0.1, gt=0)


class TorchJDOptions(Info):
    """Settings of the methods of the TorchJD library.

    Args:
        method: Name of an aggregator (``UPGrad``, ``MGDA``, ``CAGrad``, ...) or scalarizer (``STCH``, ``IMTLL``, ...).
        method_options: Arguments of that class, such as ``{c: 0.4}``; a list is a vector with one value per loss.
    """

    method: str = "UPGrad"
    method_options: dict[str, bool | int | float | str | tuple[float, ...] | None] = Field(default_factory=dict)

    @field_validator("method_options")
    @classmethod
    def _read_numbers(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Convert values such as 1e-3, which YAML reads as text, to numbers."""
        return {name: _number(value) if isinstance(value, str) else value for name, value in options.items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
