"""Algorithm 1 of the paper in loss space, for a plain training loop.

Example::

    meltr = Bilevel(model, combiner, outer_optimizer, every=3)
    for batch in loader:
        optimizer.zero_grad()
        meltr.backward(lambda: task_losses(model, batch))     # instead of loss.backward()
        optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.losses import Compute
from meltr.bilevel import checks
from meltr.bilevel.average import AveragedAlignment
from meltr.bilevel.beginning import Beginning
from meltr.bilevel.combiner_update import CombinerUpdate
from meltr.bilevel.draws import CombinerDraws
from meltr.bilevel.evaluations import Evaluations
from meltr.bilevel.given import GivenLosses
from meltr.bilevel.inner_step import inner_step_of
from meltr.bilevel.last_weights import AccumulateWeights, LastWeights
from meltr.bilevel.outer_batches import OuterBatches
from meltr.bilevel.outer_step import OuterRule, OuterStep
from meltr.bilevel.own_rule import OwnRule
from meltr.bilevel.pace import pace_of
from meltr.bilevel.primary_inner_step import PrimaryInnerStep
from meltr.bilevel.results import OuterResult, StepResult
from meltr.bilevel.saved import Progress
from meltr.bilevel.weights import OuterWeights, Weights
from meltr.bilevel.window import Window
from meltr.combiners.base import GradientCombiner, SelfTrained
from meltr.hypergradients.combiner_function import CombinerFunction
from meltr.hypergradients.estimators import Estimator
from meltr.hypergradients.estimators.checking import EstimatorInUse
from meltr.hypergradients.schemes import Scheme
from meltr.hypergradients.scope import Scope
from meltr.hypergradients.setup import ModelSetup, Setup
from meltr.parallel.data_parallel import sharing_of
from meltr.torch_private import keep_buffers_of_compiled_graphs


class Bilevel:
    """Trains the model on the combined loss m(l), and after every K steps trains the combiner m.

    After K inner steps Algorithm 1 evaluates the losses at the new w, and the next inner step starts from the same w.
    So both share one forward pass. v comes from its graph. g needs one or two forward passes without a graph, or one
    backward pass per task. Then the combiner steps, and the inner gradient is taken with the updated combiner.

    Args:
        model: The backbone. Its parameters that require gradients are w, unless `parameters` are given. It must contain
            the modules whose buffers the losses change (such as a head with BatchNorm). It may be wrapped in
            DistributedDataParallel: losses, g and phi's gradient are then averaged over the processes.
        combiner: Maps the vector of losses to a scalar, e.g. `meltr.LossTransformer`.
        outer_optimizer: Optimiser of the combiner's parameters; None: the combiner is not trained.
        scheme: The rule for the direction q; None: `AIDFPLite()`.
        estimator: The way to compute g = J q; None: `Auto()`. An estimator with state serves one training loop only.
        every: K, the number of inner steps between two outer steps; with a `budget` the smallest.
        budget: Share of the operations of the inner steps, above 0 and at most 1, that outer steps may take: their
            spacing then follows how much g moves (`meltr.bilevel.pace.BudgetPace`). None: an outer step after every K.
        gamma: Weight of the regulariser ``|m(l) - sum(l)|`` in the primary objective (eq. 6).
        scope: The parameters that an outer step considers; None: all.
        average: Momentum of the moving average of g over outer steps, in [0, 1); 0: every outer step uses its own g.
        direct_term: Add the direct derivative of the regulariser with respect to phi.
        outer_clip_norm: Clip phi's gradient to this norm.
        retain_graph: Keep the graph of the outer step's forward pass for the inner gradient that follows. False:
            evaluate again, which costs one forward pass per outer step and no more memory than an ordinary step.
        accumulate_weights: Task weights of several micro-batches of one call: those of their ``current`` mean losses,
            with two evaluations of each, or of the ``last`` inner step, with one (not in a step with an outer step).
        parameters: The parameters w, if they are not those of `model`.
        inner_optimizer: The optimiser of w, for schemes that use its step (`ITD`, `SAMA`).
        setup: Precision, generators and processes; None: float32, the global generators, processes found from `model`.
        seed: Seed of the run; several processes derive the combiner's random numbers from it.
        log: Called with one line of text when a choice is made.
        old: ``scheme_name`` and ``estimator_name``, as they were once given, with a warning.

    Raises:
        ValueError: If a number is out of range, or w is empty.
        UserError: If `scheme` or `estimator` has the wrong type, the combiner does not support sharded weights, or the
            outer optimiser does not hold exactly the trainable parameters of the combiner.
    """

    def __init__(
        self,
        model: nn.Module,
        combiner: nn.Module,
        outer_optimizer: torch.optim.Optimizer | None = None,
        *,
        scheme: Scheme | None = None,
        estimator: Estimator | None = None,
        every: int = 3,
        budget: float | None = None,
        gamma: float = 0.1,
        scope: Scope | None = None,
        average: float = 0.0,
        direct_term: bool = False,
        outer_clip_norm: float | None = None,
        retain_graph: bool = True,
        accumulate_weights: AccumulateWeights = "current",
        parameters: Iterable[Tensor] | None = None,
        inner_optimizer: torch.optim.Optimizer | None = None,
        setup: Setup | None = None,
        seed: int = 0,
        log: Callable[[str], None] = lambda line: None,
        **old: str,
    ) -> None:
        checks.check_gamma(gamma)
        self.scheme, self.estimator = checks.check_rule(scheme, estimator, old)
        self.estimator_in_use = EstimatorInUse(self.estimator)
        self.combiner, self.every, self.budget, self.steps = combiner, every, budget, 0
        self.gamma, self.outer_optimizer = gamma, outer_optimizer
        self._window, self._on_primary = Window(), False
        setup, scope = setup or Setup(), scope or Scope()
        sharing, inside = (setup.sharing, model) if setup.sharing is not None else sharing_of(model)
        self._setup = ModelSetup(inside, setup, sharing)
        trained = outer_optimizer is not None and not isinstance(combiner, (SelfTrained, GradientCombiner))
        self._pace = pace_of(every, budget if trained else None, self._setup, self.scheme, self.estimator_in_use, log)
        self._beginning = Beginning(self._setup, combiner)
        self._weights = Weights(inside, parameters, fixed=not sharing.whole_weights)
        self._given = GivenLosses(combiner)
        self._seen = OuterWeights(scope, inside, self._weights, log)
        draws, function = CombinerDraws(self._setup, seed), CombinerFunction(combiner, gamma, log)
        self._average = AveragedAlignment(average)
        update = None
        if outer_optimizer is not None:
            checks.check_optimizer(outer_optimizer, combiner)
            # An outer step keeps the graph for the inner gradient, so a compiled model must not free its saved buffers.
            keep_buffers_of_compiled_graphs()
            update = CombinerUpdate(combiner, outer_optimizer, sharing, outer_clip_norm, log)
        self._own = OwnRule(combiner, update, self._seen) if isinstance(combiner, SelfTrained) else None
        self._outer, self._primary = None, None
        if update is not None and trained:
            rule = OuterRule(self.scheme, self.estimator_in_use, gamma, direct_term, inner_optimizer)
            self._outer = OuterStep(
                function, rule, update=update, weights=self._seen, draws=draws, average=self._average,
                saw=self._pace.saw, log=log,
            )  # fmt: skip
            self._primary = PrimaryInnerStep(function, self._outer, gamma) if self.scheme.takes_inner_step else None
        self._inner = inner_step_of(
            combiner, function, self._weights, draws=draws, rule=self._own,
            keeps_rows=self._outer is not None and self._seen.all, sharing=sharing,
        )  # fmt: skip
        self._last = LastWeights(accumulate_weights, self._inner, type(combiner).__name__)
        self._evaluations = Evaluations(
            self._setup, self._given, checks.Fresh(self._setup, self._weights), self._seen, retain_graph,
            self._inner.averaged_by_backward,
            lambda: self.estimator.needs_second_derivative or self.scheme.needs_second_derivative,
        )  # fmt: skip
        self._batches = None
        if self._outer is not None:
            self._batches = OuterBatches(self._outer, self._evaluations, self._beginning)

    def __repr__(self) -> str:
        """Return the model, the combiner with its names, and how it is trained."""
        names = ", ".join(self._given.names or ())
        parts = [
            f"model={type(self._setup.model).__name__}",
            f"combiner={type(self.combiner).__name__}({names})",
            f"scheme={self.scheme!r}, estimator={self.estimator_in_use.name}",
            f"every={self.every}{'' if self.budget is None else f', budget={self.budget:g}'}",
            f"gamma={self.gamma:g}, steps={self.steps}, outer_steps={self.outer_steps}",
        ]
        return f"Bilevel({', '.join(parts)})"

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters w that currently require gradients."""
        return self._weights.now()

    @property
    def outer_steps(self) -> int:
        """Outer steps taken so far."""
        return 0 if self._outer is None else self._outer.taken

    @property
    def outer_share(self) -> float | None:
        """Operations of the outer steps so far, divided by those of the inner steps; None without a `budget`."""
        return self._pace.share

    @property
    def outer_step_due(self) -> bool:
        """True if the next call of `backward` starts with an outer step: after K inner steps, or by the budget."""
        return self._outer is not None and not self._window.is_open and self._pace.due(self.steps)

    def backward(
        self,
        compute: Compute | Sequence[Compute],
        *,
        primary: Compute | None = None,
        outer_part: Compute | None = None,
        others: Callable[[int], Compute] | None = None,
        outer: bool | None = None,
        cross: bool = False,
        accumulate: int = 1,
    ) -> StepResult:
        """Add the inner gradient grad_w m(l) to ``.grad``; if an outer step is due, train the combiner first.

        With or without an outer step, the result is that of ``loss.backward()`` on the weighted sum sum_t a_t l_t: the
        same ``.grad`` on every leaf that the losses reach, each gradient hook called once, and each buffer updated
        once.

        Args:
            compute: Returns the task losses of the current batch: a mapping from the combiner's names to tensors, in
                any order, or a sequence with the primary loss first. For the outer step it is called again with the
                same random numbers. A sequence of functions means micro-batches (gradient accumulation): the
                losses are averaged over them before the combiner sees them.
            primary: Returns the primary loss on a held-out batch, for the outer step, alone or with others; None: use
                the current batch.
            outer_part: Returns all losses on a part of the batch; the outer step then uses only that part.
            others: Maps i to the loss function on independent batch i, for schemes that need independent batches.
            outer: Whether to take an outer step now; None: if it is due (`outer_step_due`).
            cross: In an outer step, the first half of the micro-batches gives the direction q and the second half the
                Jacobian J, so that g is not too large by the noise that both would share.
            accumulate: n, if the micro-batches of an inner step come one call at a time: n calls form a window, their
                gradients are averaged, and they count as one inner step. An outer step is taken at the first call of a
                window, with the losses of that call. If the optimiser steps before the n-th call, call `after_step`.

        Raises:
            LoopError: If `compute` is not a function, or returns losses with other names than the combiner's.
            ValueError: If `compute` does not return scalars, or there are no micro-batches.
        """
        self._window.check(accumulate)
        if outer:
            self._window.require_closed("outer=True")
        if self._own is not None:
            self._own.resting = self._window.is_open
            if not self._window.is_open:
                self._own.after_step()
        checks.check_line_search(outer, trained=self._outer is not None or self._own is not None)
        self._beginning.share()
        due = self.outer_step_due if outer is None else outer and self._outer is not None
        if due and self._primary is not None:
            checks.check_primary_step(primary, outer_part, cross=cross)
        with self._pace.counting(outer=due, steps=self.steps):
            result = self._call(compute, primary, outer_part, others, due=due, cross=cross, accumulate=accumulate)
        self._pace.took(len(result.losses), inner=True, outer=due, steps=self.steps)
        self.steps += self._window.count(accumulate)
        self._on_primary = self._on_primary and self._window.is_open
        return result

    def _call(
        self,
        compute: Compute | Sequence[Compute],
        primary: Compute | None,
        outer_part: Compute | None,
        others: Callable[[int], Compute] | None,
        *,
        due: bool,
        cross: bool,
        accumulate: int,
    ) -> StepResult:
        """Take the steps of a call of `backward`, whose arguments these are; `due`: an outer step too."""
        found, rows = None, None
        if due and outer_part is not None and self._batches is not None:
            found, due = self._batches.take_part(outer_part, primary, others, step=self.steps), False
        several = None if due or found is not None or self._on_primary else self._last.served(compute)
        if several is not None:
            values, combined, a = self._last.descend(self._evaluations, several, self.steps, 1 / accumulate)
            return self._result(values, combined, a, None)
        again = (due and self._primary is not None) or (self._own is not None and self._own.evaluates_again)
        losses = self._evaluations.first(compute, outer=due and self._primary is None, cross=cross, again=again)
        checks.check_device(self.combiner, losses.values)
        self._beginning.prepare(losses.values, self.steps)
        if self._primary is not None and (due or self._on_primary):
            if due:
                combined, a, found = self._primary.take(losses, self.steps, 1 / accumulate)
            else:
                combined, a = self._primary.descend(losses, 1 / accumulate)
            self._on_primary = True
        else:
            if due and self._batches is not None:
                found, rows = self._batches.take_shared(losses, primary, others, step=self.steps)
            combined, a = self._inner.take(losses, rows, self.steps, 1 / accumulate)
            self._last.keep(a)
        return self._result(losses.values, combined, a, found)

    def _result(self, losses: Tensor, combined: Tensor, a: Tensor, found: OuterResult | None) -> StepResult:
        names = self._given.names_of(len(losses))
        return StepResult(losses, combined, a, found and replace(found, names=names), names)

    def outer_step(
        self, primary: Compute, auxiliary: Compute, *, others: Callable[[int], Compute] | None = None
    ) -> OuterResult:
        """Take an outer step on two separate batches, as the released code does with its replay buffer.

        Args:
            primary: Returns the losses of the first batch, or only its primary loss; the first entry is used.
            auxiliary: Returns all losses of the second batch.
            others: Maps i to the loss function on independent batch i, for schemes that need independent batches.

        Raises:
            ValueError: If the combiner is not trained by outer steps.
        """
        if self._batches is None or self._primary is not None:
            raise ValueError("outer_step needs an outer_optimizer, and a combiner that is trained by outer steps")
        self._window.require_closed("outer_step()")
        self._beginning.share()
        with self._pace.counting(outer=True, steps=self.steps, alone=True):
            found = self._batches.take_separate(primary, auxiliary, others, step=self.steps)
        self._pace.took(len(found.products), inner=False, outer=True, steps=self.steps)
        return replace(found, names=self._given.names_of(len(found.products)))

    def after_step(self) -> None:
        """Show the updated weights to a self-trained combiner that needs them (FAMO), and end a window early.

        Call it after ``optimizer.step()``. Otherwise the next `backward` does it, unless the optimiser stepped before
        the last call of a window (see `accumulate` of `backward`).
        """
        self.steps += self._window.close()
        self._on_primary = False
        if self._own is not None:
            self._own.after_step()

    def count_from(self, steps: int, outer_steps: int) -> None:
        """Set the step counters, to measure a step in the middle of a run.

        Args:
            steps: Inner steps taken.
            outer_steps: Outer steps taken.
        """
        self.steps = steps
        if self._outer is not None:
            self._outer.count_from(outer_steps)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed loop needs besides the model and its optimiser; save it after ``optimizer.step()``.

        It holds plain values and tensors: phi, the outer optimiser, the counters, the names of the losses and the state
        of the estimator. A window of micro-batches that is not complete is not part of it.
        """
        if self._own is not None and not self._window.is_open:
            self._own.after_step()
        outer = None if self.outer_optimizer is None else self.outer_optimizer.state_dict()
        return {**self._progress(), "combiner": self.combiner.state_dict(), "outer_optimizer": outer}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned; older states without phi and the optimiser load too.

        Raises:
            LoopError: If the state belongs to losses with other names.
        """
        self._continue(state)
        if "combiner" in state:
            self.combiner.load_state_dict(state["combiner"])
        if self.outer_optimizer is not None and state.get("outer_optimizer") is not None:
            self.outer_optimizer.load_state_dict(state["outer_optimizer"])

    @property
    def progress(self) -> Progress:
        """The state without phi and the outer optimiser, for programs that save these two themselves."""
        return Progress(self._progress, self._continue)

    def _progress(self) -> dict[str, Any]:
        names = None if self._given.names is None else list(self._given.names)
        counters = {"steps": self.steps, "outer_steps": self.outer_steps}
        state = {"estimator": self.estimator_in_use.state_dict(), "average": self._average.state_dict()}
        parts = {"last_weights": self._last.state_dict(), "pace": self._pace.state_dict()}
        return {**counters, "names": names, **state, **parts}

    def _continue(self, state: Mapping[str, Any]) -> None:
        self._given.continue_with(state.get("names"))
        self._window.close()
        self.count_from(int(state["steps"]), int(state["outer_steps"]))
        self.estimator_in_use.load_state_dict(state["estimator"])
        self._average.load_state_dict(state.get("average", {}))
        self._last.load_state_dict(state.get("last_weights", {}))
        self._pace.load_state_dict(state.get("pace", {}))
