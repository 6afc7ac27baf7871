"""Which parameters are w, and which of them an outer step considers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.reduced_model import ReducedModel
from meltr.hypergradients.scope import Scope


class Weights:
    """The parameters w: at every step those that then require gradients, so that layers can be frozen and unfrozen.

    Args:
        model: The backbone.
        given: The parameters, if they are not those of the model.
        fixed: Look up the model's parameters once (those of a sharded model change while it is gathered).

    Raises:
        ValueError: If none requires a gradient.
    """

    def __init__(self, model: nn.Module, given: Iterable[Tensor] | None, *, fixed: bool) -> None:
        self._model = model
        self._listed = list(given) if given is not None else list(model.parameters()) if fixed else None
        if not self.now():
            raise ValueError("the model has no trainable parameters")

    def now(self) -> list[Tensor]:
        """Return the parameters that currently require gradients."""
        listed = self._model.parameters() if self._listed is None else self._listed
        return [parameter for parameter in listed if parameter.requires_grad]


class OuterWeights:
    """The parameters that outer steps consider: all, or those in scope, found from the graph of the first outer step.

    Args:
        scope: The scope.
        model: The backbone.
        weights: Its parameters w.
        log: Called with one line of text when the parameters in scope are found.
    """

    def __init__(self, scope: Scope, model: nn.Module, weights: Weights, log: Callable[[str], None]) -> None:
        self._scope, self._model, self._weights, self._log = scope, model, weights, log
        self._reduced: ReducedModel | None = None

    @property
    def all(self) -> bool:
        """True if outer steps consider all parameters."""
        return self._scope.is_full

    @property
    def known(self) -> bool:
        """False until the parameters in scope have been found; always True for the full scope."""
        return self.all or self._reduced is not None

    @property
    def reduced(self) -> ReducedModel | None:
        """The part of the model that outer steps evaluate again; None if that is all of it, or not known yet."""
        return self._reduced

    def of(self, losses: LossValues) -> list[Tensor]:
        """Return the parameters in scope that currently require gradients.

        Args:
            losses: Losses of the outer step; the scope is found from their graph, once.

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
