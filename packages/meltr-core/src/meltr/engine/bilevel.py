"""Algorithm 1 of the paper in loss space: the class that a plain training loop needs.

Example::

    meltr = Bilevel(model, combiner, outer_optimizer, every=3)
    for batch in loader:
        optimizer.zero_grad()
        meltr.backward(lambda: task_losses(model, batch))     # instead of loss.backward()
        optimizer.step()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.combiners.base import Combiner, GradientCombiner, SelfTrained, sensitivities
from meltr.engine.own_rule import OwnStep
from meltr.engine.results import OuterResult, StepResult
from meltr.errors import UserError
from meltr.hypergradients.estimators import Auto, Estimator
from meltr.hypergradients.evaluation import Evaluation, LossEvaluation, LossFunction, Setup, SplitEvaluation
from meltr.hypergradients.outer_gradient import outer_gradient
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.schemes import AIDFPLite, Scheme
from meltr.hypergradients.scope import Kind, Scope, find_scope
from meltr.hypergradients.vectors import Direction, accumulate
from meltr.parallel.data_parallel import sharing_of
from meltr.parallel.sharing import Compute, Sharing
from meltr.torch_private import keep_buffers_of_compiled_graphs


class Bilevel:
    """Descend the unified loss, and every K steps train the combiner so that doing so lowers the primary loss.

    After K inner steps Algorithm 1 evaluates the losses at the new w; the next inner step starts from the same w. So
    one forward serves both: v comes from its graph, g needs one or two forwards without a graph (or one backward per
    task), the combiner steps, and the inner gradient is taken with the new combiner.

    Args:
        model: The backbone; its trainable parameters are w, unless `parameters` are given. It may be wrapped in
            DistributedDataParallel: losses, g and phi's gradient are then averaged over the processes.
        combiner: Maps the vector of losses to a scalar, e.g. `meltr.LossTransformer`.
        outer_optimizer: Optimiser of the combiner's parameters; None: the combiner stays as it is.
        every: K, inner steps between two outer steps.
        gamma: Weight of the regulariser |m(l) - sum(l)| in the primary objective (eq. 6).
        scheme: Chooses the direction q, e.g. ``AIDFP(terms=3)``; None: `AIDFPLite` (see
            `meltr.hypergradients.schemes`).
        estimator: Computes g = J q, e.g. ``ForwardMode()``; None: `Auto` (see `meltr.hypergradients.estimators`).
        retain_graph: Keep the graph of an outer step's forward for the inner gradient that follows; False: evaluate
            again, which costs a forward an outer step, and no memory beyond that of an ordinary step.
        direct_term: Add the regulariser's own derivative by phi.
        outer_clip_norm: Clip phi's gradient to this norm.
        inner_optimizer: The optimiser of w, for schemes that look at its step (``itd``, ``sama``).
        parameters: The parameters w, if not all trainable ones of `model`.
        scope: ``full``; ``last_block`` or ``heads``: the outer step sees only those parameters.
        scope_blocks: How many of the last blocks ``last_block`` takes.
        blocks: The model's blocks, for `scope`; None: found by `meltr.blocks.find_blocks`.
        generators: Generators that the losses draw from besides the global ones; replayed for extra forwards.
        autocast: Data type of an autocast context around the losses; None: none.
        scaler: Gradient scaler (float16): ``.grad`` is then scaled, as `scaler.step(optimizer)` expects.
        sharing: How processes share the batch; None: found from `model`.
        log: Called with a line when a choice is made.

    Raises:
        ValueError: If a number is out of range, or w is empty.
        UserError: If `scheme` or `estimator` is something else, or the combiner cannot work with sharded weights.
    """

    def __init__(
        self,
        model: nn.Module,
        combiner: nn.Module,
        outer_optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 3,
        gamma: float = 0.1,
        scheme: Scheme | None = None,
        estimator: Estimator | None = None,
        retain_graph: bool = True,
        direct_term: bool = False,
        outer_clip_norm: float | None = None,
        inner_optimizer: torch.optim.Optimizer | None = None,
        parameters: Iterable[Tensor] | None = None,
        scope: Kind = "full",
        scope_blocks: int = 1,
        blocks: Sequence[nn.Module] | None = None,
        generators: Sequence[torch.Generator] = (),
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        sharing: Sharing | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        if scope_blocks < 1:
            raise ValueError(f"scope_blocks must be at least 1, got {scope_blocks}")
        wanted = model.parameters() if parameters is None else parameters
        self.parameters = [parameter for parameter in wanted if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no trainable parameters")
        self.combiner, self.outer_optimizer, self.inner_optimizer = combiner, outer_optimizer, inner_optimizer
        self.every, self.gamma, self.direct_term, self.retain_graph = every, gamma, direct_term, retain_graph
        self.outer_clip_norm = outer_clip_norm
        self.scheme, self.estimator = _checked(
            AIDFPLite() if scheme is None else scheme, Auto() if estimator is None else estimator
        )
        self.sharing, self.model = (sharing, model) if sharing is not None else sharing_of(model)
        enabled = scaler if scaler is not None and scaler.is_enabled() else None
        self.setup = Setup(self.model, tuple(generators), autocast, enabled, self.sharing)
        if outer_optimizer is not None:
            # An outer step keeps the graph for the inner gradient; a compiled model must not give its buffers away.
            keep_buffers_of_compiled_graphs()
        if isinstance(combiner, GradientCombiner) and not self.sharing.whole_weights:
            raise UserError(
                f"{type(combiner).__name__} needs whole task gradients, but the weights are sharded.",
                "Use --set parallel=ddp.",
            )
        self._scope_kind, self._scope_blocks, self._blocks = scope, scope_blocks, blocks
        self._scope: Scope | None = None
        self._scope_known = scope == "full"
        self._log = log or (lambda line: None)
        self._waiting: OwnStep | None = None
        self._prepared = False
        self.steps = 0
        self.outer_steps = 0

    @property
    def outer_step_due(self) -> bool:
        """True if the next call of `backward` starts with an outer step (K inner steps were taken since the last)."""
        return self._has_outer_loop and self.steps > 0 and self.steps % self.every == 0

    @property
    def _has_outer_loop(self) -> bool:
        return self.outer_optimizer is not None and not isinstance(self.combiner, (SelfTrained, GradientCombiner))

    def backward(
        self,
        compute: Compute | Sequence[Compute],
        *,
        primary: Compute | None = None,
        outer_part: Compute | None = None,
        others: Callable[[int], Compute] | None = None,
        outer: bool | None = None,
    ) -> StepResult:
        """Add the inner gradient grad_w m(l) to ``.grad`` of w; every K-th time train the combiner first.

        Args:
            compute: Returns the task losses of the current batch, primary first; called again for the outer step with
                the same random numbers. Several functions are pieces of one batch (gradient accumulation): the losses
                are averaged over them before the combiner sees them.
            primary: Returns the primary loss on a held-out batch, for the outer step; None: the current batch serves.
            outer_part: Returns all losses on a part of the batch; the outer step then sees that part alone.
            others: Number i -> the loss function on independent batch i, for schemes that draw fresh ones.
            outer: Whether to take an outer step now; None: every K-th call.

        Raises:
            ValueError: If `compute` returns something else than scalars, or there are no pieces.
        """
        self.after_step()
        take_outer = self.outer_step_due if outer is None else outer and self._has_outer_loop
        shared = take_outer and outer_part is None
        found, problem = None, None
        if take_outer and outer_part is not None:
            found = self._outer_step_on_part(outer_part, primary, others)
        evaluation = self._evaluate_inner(compute, shared=shared)
        self._prepare(evaluation.values)
        if shared:
            held_out = None if primary is None else self._evaluate_aside(primary)
            found, problem = self._outer_step(evaluation, held_out, others)
        combined, a = self._inner_step(evaluation, problem)
        self.steps += 1
        return StepResult(evaluation.values, combined, a, found)

    def outer_step(
        self, primary: Compute, auxiliary: Compute, *, others: Callable[[int], Compute] | None = None
    ) -> OuterResult:
        """Take an outer step on two batches of their own, as the released code does with its replay buffer.

        Args:
            primary: Returns the losses (or the primary alone) of the first batch; the first one counts.
            auxiliary: Returns all losses of the second batch.
            others: Number i -> the loss function on independent batch i, for schemes that draw fresh ones.

        Raises:
            ValueError: If there is no outer optimiser.
        """
        if self.outer_optimizer is None:
            raise ValueError("outer_step needs an outer_optimizer")
        held_out = self._evaluate_aside(primary)
        return self._outer_step(self._evaluate_aside(auxiliary), held_out, others)[0]

    def after_step(self) -> None:
        """Let a combiner with a rule of its own see the weights after the optimiser's step (FAMO).

        Call it after ``optimizer.step()``; otherwise the next `backward` does.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            assert isinstance(self.combiner, SelfTrained)
            self._apply_own(self.combiner.own_gradients(waiting))

    def state_dict(self) -> dict[str, Any]:
        """Return counters and the state of the estimator; weights and optimisers are the caller's."""
        return {"steps": self.steps, "outer_steps": self.outer_steps, "estimator": self.estimator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps, self.outer_steps = int(state["steps"]), int(state["outer_steps"])
        self.estimator.load_state_dict(state["estimator"])

    def _function(self, compute: Compute, *, outer: bool) -> LossFunction:
        """Return the loss function of a batch; one that an outer step sees can be evaluated again."""
        # The fused attention kernels have no second derivative.
        math = outer and (self.estimator.needs_second_derivative or self.scheme.needs_second_derivative)
        own = isinstance(self.combiner, SelfTrained) and (self.combiner.sees_moved_weights or not self._scope_known)
        scope = self._scope if outer else None
        return LossFunction(compute, self.setup, scope=scope, math_attention=math, snapshot=outer or own)

    def _evaluate_inner(self, compute: Compute | Sequence[Compute], *, shared: bool) -> Evaluation:
        if callable(compute) or len(compute) == 1:
            only = compute if callable(compute) else compute[0]
            function = self._function(only, outer=shared)
            if shared and not self.retain_graph and self._scope_kind == "full":
                return SplitEvaluation.first([function])
            return function.first(inner=True)
        return SplitEvaluation.first([self._function(each, outer=shared) for each in compute])

    def _prepare(self, losses: Tensor) -> None:
        """Let the combiner see the first losses of the run, once."""
        if self.steps == 0 and not self._prepared and isinstance(self.combiner, Combiner):
            self.combiner.prepare(losses)
        self._prepared = True

    def _outer_step_on_part(
        self, part: Compute, primary: Compute | None, others: Callable[[int], Compute] | None
    ) -> OuterResult:
        """Take an outer step on a part of the batch: before the batch, so that their graphs are not alive together.

        The batch draws the random numbers that it would draw without.
        """
        before = self.setup.random_state()
        auxiliary = self._evaluate_aside(part)
        self._prepare(auxiliary.values)
        held_out = None if primary is None else self._evaluate_aside(primary)
        found, _ = self._outer_step(auxiliary, held_out, others)
        before.restore()
        return found

    def _evaluate_aside(self, compute: Compute) -> LossEvaluation:
        with self.setup.preserved_buffers():
            return self._function(compute, outer=True).first(inner=False)

    def _outer_step(
        self, auxiliary: Evaluation, primary: Evaluation | None, others: Callable[[int], Compute] | None
    ) -> tuple[OuterResult, OuterProblem]:
        with self._alike():
            state = self.setup.random_state()
            combined, a = sensitivities(self.combiner, auxiliary.values)
        problem = OuterProblem(
            self._outer_parameters(auxiliary),
            auxiliary,
            self.combiner,
            combined,
            a,
            gamma=self.gamma,
            primary=primary,
            inner_optimizer=self.inner_optimizer,
            others=None if others is None else lambda number: self._evaluate_aside(others(number)),
            combiner_state=state,
            log=self._log,
        )
        problem.keep_rows = self.estimator.keeps_rows(auxiliary)
        # An inner gradient beyond the scope, and second derivatives, need the graph after the rows were taken.
        problem.retain_graph = self._scope is not None or self.scheme.needs_second_derivative
        with self.setup.preserved_buffers():  # a backward through checkpointed regions moves them
            direction = self.scheme.direction(problem)
            products = self._products(problem, direction)
        direct_at = problem.primary_losses if self.direct_term else None
        with problem.one_draw():
            gradients = outer_gradient(self.combiner, auxiliary.values, products, gamma=self.gamma, direct_at=direct_at)
        result = self._apply(gradients, products)
        self.outer_steps += 1
        return result, problem

    def _outer_parameters(self, auxiliary: Evaluation) -> Sequence[Tensor]:
        """Return w, or the parameters in scope: found from the graph of the first outer step."""
        if not self._scope_known:
            evaluate = auxiliary.functions()[0].fresh
            self._scope = find_scope(
                self._scope_kind, self.model, self.parameters, evaluate, self._blocks, count=self._scope_blocks
            )
            self._scope_known = True
            assert self._scope is not None
            count = sum(parameter.numel() for parameter in self._scope.parameters)
            share = count / sum(parameter.numel() for parameter in self.parameters)
            several = self._scope_kind == "last_block" and self._scope_blocks > 1
            name = f"last {self._scope_blocks} blocks" if several else self._scope_kind
            self._log(f"scope: {name} ({count:,} parameters, {share:.1%})")
        return self.parameters if self._scope is None else self._scope.parameters

    def _products(self, problem: OuterProblem, direction: Direction) -> Tensor:
        if all(part is None for part in direction):
            return torch.zeros(problem.size, dtype=torch.float64, device=problem.auxiliary.values.device)
        return self.estimator(problem, direction)

    def _apply(self, gradients: Sequence[Tensor | None], products: Tensor) -> OuterResult:
        assert self.outer_optimizer is not None
        gradients = self.sharing.mean_small(gradients)
        present = [gradient for gradient in gradients if gradient is not None]
        size = torch.nn.utils.get_total_norm(present) if present else torch.zeros((), device=products.device)
        if not bool(torch.isfinite(size)) or not bool(torch.isfinite(products).all()):
            self._log("outer step left out: the hypergradient is not finite")
            return OuterResult(products, size, applied=False)
        self._step_combiner(gradients)
        return OuterResult(products, size, applied=True)

    def _step_combiner(self, gradients: Sequence[Tensor | None]) -> None:
        """Clip phi's gradient and let the outer optimiser step."""
        assert self.outer_optimizer is not None
        trainable = [parameter for parameter in self.combiner.parameters() if parameter.requires_grad]
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient
        if self.outer_clip_norm is not None and any(gradient is not None for gradient in gradients):
            torch.nn.utils.clip_grad_norm_(trainable, self.outer_clip_norm)
        self.outer_optimizer.step()
        self.outer_optimizer.zero_grad(set_to_none=True)

    def _apply_own(self, gradients: Sequence[Tensor | None]) -> None:
        """Apply what a rule of its own wants."""
        assert isinstance(self.combiner, SelfTrained)
        present = [gradient for gradient in gradients if gradient is not None]
        if self.outer_optimizer is not None and present:
            averaged = self.sharing.mean_small(gradients)
            if not all(bool(gradient.isfinite().all()) for gradient in averaged if gradient is not None):
                self._log("the combiner stays as it is for a step: its own gradient is not finite")
                return
            self._step_combiner(averaged)
        self.combiner.after_update()

    def _inner_step(self, evaluation: Evaluation, problem: OuterProblem | None) -> tuple[Tensor, Tensor]:
        """Add the inner gradient to ``.grad``; return m(l) and a."""
        if isinstance(self.combiner, GradientCombiner):
            with self.setup.preserved_buffers():
                rows = [evaluation.gradient(evaluation.only(task), self.parameters) for task in range(evaluation.size)]
            with self._alike():
                gradient, a = self.combiner.from_gradients(evaluation.values, rows)
            self._add(gradient, evaluation)
            return (a * evaluation.values).sum(), a
        with self._alike():
            combined, a = sensitivities(self.combiner, evaluation.values)
        own = self._own_gradients(evaluation)
        if problem is not None and problem.rows is not None and self._scope is None:
            self._add(problem.spend_rows(a), evaluation)
        else:
            evaluation.inner_backward(a, self.parameters)
        if own is not None:
            self._apply_own(own)
        return combined, a

    @contextlib.contextmanager
    def _alike(self) -> Iterator[None]:
        """With several processes, a context in which all combiners draw the same random numbers (dropout)."""
        if self.sharing.one_process:
            yield
            return
        before = self.setup.random_state()
        torch.manual_seed(self.steps)
        try:
            yield
        finally:
            before.restore()

    def _own_gradients(self, evaluation: Evaluation) -> Sequence[Tensor | None] | None:
        """Ask a combiner with a rule of its own, or note that it wants to see the step's outcome first."""
        if not isinstance(self.combiner, SelfTrained):
            return None
        view = OwnStep(evaluation, self._outer_parameters(evaluation))
        if self.combiner.sees_moved_weights:
            self._waiting = view.release()
            return None
        return self.combiner.own_gradients(view)

    def _add(self, gradient: Iterable[Tensor | None], evaluation: Evaluation) -> None:
        """Add a gradient of these losses to ``.grad`` in place of a backward, scaled where there is a scaler."""
        evaluation.settle()
        scaler, sharing = self.setup.scaler, self.sharing

        def whole(parameter: Tensor, part: Tensor | None) -> Tensor | None:
            scaled = part if part is None or scaler is None else scaler.scale(part)
            return None if scaled is None else sharing.as_gradient(parameter, scaled)

        accumulate(self.parameters, map(whole, self.parameters, gradient))


def _checked(scheme: object, estimator: object) -> tuple[Scheme, Estimator]:
    """Return scheme and estimator; UserError if one is something else, such as the name of one."""
    if not isinstance(scheme, Scheme):
        raise UserError(
            f"scheme must be a meltr.Scheme, got {scheme!r}.", "For example: Bilevel(..., scheme=meltr.AIDFP(terms=3))."
        )
    if not isinstance(estimator, Estimator):
        raise UserError(
            f"estimator must be a meltr.Estimator, got {estimator!r}.",
            "For example: Bilevel(..., estimator=meltr.ForwardMode()).",
        )
    return scheme, estimator
