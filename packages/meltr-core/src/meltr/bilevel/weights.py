"""Which parameters are w, and which of them an outer step sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.reduced_model import ReducedModel
from meltr.hypergradients.scope import Scope


class Weights:
    """The parameters w: at every step those that require gradients then, so that layers can be frozen and unfrozen.

    Args:
        model: The backbone.
        given: The parameters, if not those of the model.
        fixed: Look for the model's parameters once (those of a sharded model change while it is gathered).

    Raises:
        ValueError: If none requires a gradient.
    """

    def __init__(self, model: nn.Module, given: Iterable[Tensor] | None, *, fixed: bool) -> None:
        self._model = model
        self._listed = list(given) if given is not None else list(model.parameters()) if fixed else None
        if not self.now():
            raise ValueError("the model has no trainable parameters")

    def now(self) -> list[Tensor]:
        """Return the parameters that require gradients now."""
        listed = self._model.parameters() if self._listed is None else self._listed
        return [parameter for parameter in listed if parameter.requires_grad]


class OuterWeights:
    """The parameters that outer steps see: all, or those in scope, which the first outer step's graph tells.

    Args:
        scope: Which.
        model: The backbone.
        weights: Its parameters w.
        log: Called with a line when the scope is found.
    """

    def __init__(self, scope: Scope, model: nn.Module, weights: Weights, log: Callable[[str], None]) -> None:
        self._scope, self._model, self._weights, self._log = scope, model, weights, log
        self._reduced: ReducedModel | None = None

    @property
    def all(self) -> bool:
        """True if outer steps see all parameters."""
        return self._scope.is_full

    @property
    def known(self) -> bool:
        """False until a scope that is not the full one is found."""
        return self.all or self._reduced is not None

    @property
    def reduced(self) -> ReducedModel | None:
        """What outer steps evaluate again; None if that is everything, or not known yet."""
        return self._reduced

    def of(self, losses: LossValues) -> list[Tensor]:
        """Return the parameters that require gradients now.

        Args:
            losses: Of the outer step: their graph tells the scope, once.

        Raises:
            UserError: If nothing is in scope.
        """
        w = self._weights.now()
        if self.all:
            return w
        if self._reduced is None:
            function = losses.functions()[0]
            self._reduced = self._scope.find(
                self._model, w, lambda: function.run(graph=True, replay=True, keep_buffers=True)
            )
            count = sum(parameter.numel() for parameter in self._reduced.parameters)
            share = count / sum(parameter.numel() for parameter in w)
            self._log(f"scope: {self._scope} ({count:,} parameters, {share:.1%})")
        return [parameter for parameter in self._reduced.parameters if parameter.requires_grad]
