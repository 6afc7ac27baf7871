"""Combiners, schemes and estimators: the parts of the method that a run names and core creates."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from meltr.specs.info import Info


class MadeInfo(Info):
    """Description of something that core creates by calling a factory with settings as keyword arguments.

    Args:
        name: The name that users write.
        summary: One line for ``meltr list``.
        factory: ``"module:callable"``, imported only when a run needs it.
        options: ``"module:Model"``, a pydantic model (extra="forbid", importing no torch) of its settings, or None.
    """

    name: str
    summary: str
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    options: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")


class CombinerInfo(MadeInfo):
    """A combiner: a rule that combines the task losses into the loss that training minimises.

    Args:
        name: The name used with ``--combiner``.
        summary: One line for ``meltr list``.
        factory: ``"module:callable"``, called as ``factory(losses, **options)`` with the loss names, primary first; it
            returns a `meltr.combiners.Combiner`.
        options: ``"module:Model"``, a pydantic model (extra="forbid", importing no torch) of its settings
            (``combiner_options.*``), or None.
        learned: True if the outer loop trains it by a hypergradient.
        primary_only: True if it needs only the primary loss; the others are then not computed.
        settings: Dotted setting -> value that the method needs (for example ``{"bilevel.scheme": "itd"}``). They
            override presets, which are tuned for other combiners, and are overridden by file and flags.
    """

    learned: bool = False
    primary_only: bool = False
    settings: dict[str, Any] = Field({})


class SchemeInfo(MadeInfo):
    """A scheme: the rule that chooses the direction q of the hypergradient; ``--set scheme=NAME``.

    The factory returns a `meltr.Scheme`; its settings are ``scheme_options.*``.
    """


class EstimatorInfo(MadeInfo):
    """An estimator: a way to compute g = J q; ``--set estimator=NAME``.

    The factory returns a new `meltr.Estimator`; its settings are ``estimator_options.*``.
    """
