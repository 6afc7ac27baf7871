"""What is measured, against facts known beforehand: an allocation, a product of matrices, passes counted by hand."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

import meltr
from measure_cases import TOY
from meltr.autograd.flops import FlopCounter
from meltr.bench import approximations
from meltr.bench.cases import all_cases, pick, registry_with_cases, resolve_case
from meltr.bench.markdown import update
from meltr.bench.table8 import measure
from meltr.combiners.base import sensitivities
from meltr.engine.hooks import Hooks
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.verify import variants
from meltr.verify.agreement import agreement, cause
from meltr.verify.fixed_run import FixedRun
from meltr.verify.memory import peak_memory
from meltr.verify.operations import OperationCounter
from meltr.verify.replays import Traces
from meltr.verify.timing import Timing, interleaved

CPU = torch.device("cpu")
FLAGS = {
    "device": "cpu", "train.batch_size": 32, "combiner_options.width": 16, "combiner_options.heads": 2,
    "combiner_options.feedforward": 16,
}  # fmt: skip


def toy(**settings):
    registry = discover([TOY])
    spec = resolve(registry, backbone="toy", task="classification", dataset="rings", flags={**FLAGS, **settings})
    return FixedRun(spec, registry)


@pytest.fixture(scope="module")
def problem():
    torch.set_num_threads(1)
    return toy()


# memory


def test_peak_is_that_of_a_known_allocation():
    kept = []

    def work():
        first = torch.empty(2 * 2**20, dtype=torch.uint8)
        second = torch.empty(3 * 2**20, dtype=torch.uint8)
        del first
        kept.append(torch.empty(2**20, dtype=torch.uint8))
        del second

    assert peak_memory(work, CPU) == pytest.approx(5.0, abs=0.01)


def test_what_was_there_before_does_not_count():
    before = [torch.empty(8 * 2**20, dtype=torch.uint8)]

    def work():
        before.clear()
        return torch.empty(2**20, dtype=torch.uint8)

    assert peak_memory(work, CPU) == pytest.approx(1.0, abs=0.01)
    assert peak_memory(lambda: None, CPU) == 0.0


# time


def test_variants_are_timed_in_turn_and_related_turn_by_turn(monkeypatch):
    clock = itertools.count()
    now = [0.0]
    order = []

    def take(name, seconds):
        order.append(name)
        now[0] += seconds * (1 + next(clock) // 2)  # the machine gets slower with every turn

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    works = {"plain": lambda: take("plain", 1.0), "twice": lambda: take("twice", 6.0)}
    timed = interleaved(
        works,
        reference="plain",
        turns=3,
        device=CPU,
        warm_up=1,
        units={"twice": 3},
        before=lambda name: order.append(0),
    )
    assert order == [0, "plain", 0, "twice"] * 4
    assert timed["plain"].seconds == (2.0, 3.0, 4.0)
    assert timed["twice"].ratios == (2.0, 2.0, 2.0)


def test_quartiles():
    timing = Timing((1.0,) * 5, (5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.ratio, timing.quartiles) == (3.0, (2.0, 4.0))
    assert Timing((1.0,), (1.5,)).quartiles == (1.5, 1.5)


# operations


def flops(work):
    with FlopCounter() as counter:
        work()
    return counter.total


def test_dual_numbers_in_bfloat16_are_counted_and_keep_their_derivative():
    # Under a dispatch mode torch's derivative of layer_norm leaves float32 tangents here, which products refuse.
    torch.manual_seed(0)
    m, n, k = 5, 7, 8
    x, weights = torch.randn(m, k), [torch.randn(k, k), torch.ones(k), torch.randn(n, k)]
    directions = [torch.randn_like(each) for each in weights]

    def slope(*, coarse: bool):
        with forward_ad.dual_level(), torch.autocast("cpu", torch.bfloat16, enabled=coarse):
            first, scale, second = (forward_ad.make_dual(w, q) for w, q in zip(weights, directions, strict=True))
            normed = functional.layer_norm(functional.linear(x, first), (k,), scale)
            out = functional.linear(normed, second)
            return forward_ad.unpack_dual(out).tangent

    expected = slope(coarse=True)
    with FlopCounter() as counter:
        found = slope(coarse=True)
    assert counter.total == flops(lambda: slope(coarse=False)) > 0
    assert (found - expected).norm() < 2**-7 * expected.norm()


def test_a_linear_layer_costs_2mnk_forward_and_as_much_for_each_gradient():
    m, n, k = 5, 7, 11
    layer, x = nn.Linear(k, n), torch.randn(m, k)
    one = 2 * m * n * k
    assert flops(lambda: layer(x)) == one
    assert flops(lambda: layer(x).sum().backward()) == 2 * one
    assert flops(lambda: layer(x.clone().requires_grad_()).sum().backward()) == 3 * one


def test_second_derivatives_and_forward_mode_are_counted():
    m, n, k = 5, 7, 11
    weight, x = torch.randn(n, k, requires_grad=True), torch.randn(m, k)
    one = 2 * m * n * k

    def twice():
        (gradient,) = torch.autograd.grad((x @ weight.T).square().sum(), weight, create_graph=True)
        torch.autograd.grad(gradient.sum(), weight)

    def dual():
        with torch.autograd.forward_ad.dual_level():
            x @ torch.autograd.forward_ad.make_dual(weight.detach(), torch.ones(n, k)).T

    assert flops(twice) == 4 * one  # x W, its gradient, and that product differentiated: one way down, one back
    assert flops(dual) == 3 * one  # x W, x W', and x' W, which torch multiplies out although x' is zero


def test_backward_passes_are_told_apart():
    weight = torch.ones(3, requires_grad=True)
    counter = OperationCounter()
    with counter.watching([weight]):
        losses = [(weight**3).sum(), (weight**2).sum()]
        counter.saw(losses)
        torch.autograd.grad(losses[0], weight, retain_graph=True)
        torch.autograd.grad(losses, weight, [torch.ones(()), torch.ones(())], retain_graph=True)
        (gradient,) = torch.autograd.grad(losses[0], weight, create_graph=True)
        torch.autograd.grad(gradient.sum(), weight)
    assert (counter.backwards, counter.second_order) == (4, 2)
    torch.autograd.grad((weight**2).sum(), weight)
    assert counter.backwards == 4  # not of these losses, and no longer watched


DOCUMENTED = {
    # Cycle of three steps with one outer step, three losses: evaluations with graph, without, dual; backwards of
    # any kind, of second order (docs/method.md, "Four ways to compute g").
    "forward": (3, 0, 1, 4, 0),
    "one_sided": (3, 1, 0, 4, 0),
    "difference": (3, 2, 0, 4, 0),
    "per_task": (3, 0, 0, 5, 0),
    "double_backward": (3, 0, 0, 6, 2),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_each_estimator_computes_what_the_documentation_says(problem, name):
    stepper = problem.stepper({"bilevel.estimator": name})
    stepper.find()  # the difference looks for its step size once
    done = stepper.count()
    counted = (done.with_graph, done.without_graph, done.forward_mode, done.backwards, done.second_order)
    assert counted == DOCUMENTED[name]


def test_multi_task_learning_computes_one_forward_and_one_backward_a_step(problem):
    done = problem.reference.count()
    assert (done.with_graph, done.without_graph, done.forward_mode, done.backwards) == (3, 0, 0, 3)


def test_all_estimators_are_known(problem):
    assert set(DOCUMENTED) == set(variants.estimators(problem.registry))


# the problem


def test_g_is_that_of_gradients_taken_by_hand(problem):
    """With the plain sum to start with, a = 1, the regulariser has no slope, and v is the primary loss' gradient."""
    stepper = problem.stepper({"bilevel.estimator": "per_task"})
    found = stepper.find()
    problem.restore()
    problem.seed(3)  # the outer step comes with step K = 3
    losses = problem.losses(problem.batches[3])
    rows = [flat_gradient(loss, list(problem.model.parameters())) for loss in losses.values()]
    by_hand = torch.stack([row @ rows[0] for row in rows])
    torch.testing.assert_close(found.products, by_hand, rtol=1e-5, atol=1e-8)
    values = torch.stack([loss.detach() for loss in losses.values()])
    problem.seed(0)
    combiner = problem.stepper({}).combiner
    _, a = sensitivities(combiner, values, create_graph=True)
    exact = flat_gradient(-(a * by_hand.float()).sum(), list(combiner.parameters()))
    assert agreement(found.gradient, exact).error < 1e-5


def flat_gradient(loss, parameters):
    parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]).double()


def test_a_measurement_leaves_no_trace(problem):
    def state():
        problem.restore()
        return [tensor.clone() for tensor in problem.state()]

    before = state()
    problem.stepper({"bilevel.estimator": "difference"}).cycle()
    problem.stepper({"bilevel.scheme": "aid-fp"}).find()
    assert not all(map(torch.equal, problem.state(), before))
    assert all(map(torch.equal, state(), before))


def test_every_cycle_has_one_outer_step(problem):
    for settings in ({}, {"bilevel.outer_batch": "replay", "bilevel.phase": 2}, {"bilevel.every": 2}):
        stepper = problem.stepper(settings)
        for cycle in range(1, 4):
            stepper.at_outer_step()
            stepper.cycle()
            assert stepper.trainer.bilevel.outer_steps == 1, (settings, cycle)


def test_fixed_batches_are_a_pure_function(problem):
    first = list(itertools.islice(problem.batches.batches(0, start=2), 5))
    again = list(itertools.islice(problem.batches.batches(7, start=3), 4))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first[1:], again, strict=True))
    assert not torch.equal(first[0][0], first[1][0])


def test_traces_see_what_a_forward_more_leaves_behind(problem):
    traces = Traces(problem)
    assert traces.steady
    assert traces.differences() == []
    problem.losses(problem.batches[0])
    assert traces.differences() == ["buffers", "generators"]


# agreement


def test_agreement_of_known_vectors():
    found = agreement(torch.tensor([3.0, -4.0]), torch.tensor([3.0, 4.0]))
    assert found.error == pytest.approx(8 / 5)
    assert found.cosine == pytest.approx((9 - 16) / 25)
    assert (found.signs, found.size) == (1, 2)
    zero = agreement(torch.ones(2), torch.zeros(2))
    assert zero.error == pytest.approx(math.sqrt(2))
    assert math.isnan(zero.cosine)


def test_causes_name_the_operation():
    hidden = torch.randn(2, 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError) as caught:
        torch.cdist(torch.autograd.forward_ad.make_dual(hidden, hidden), hidden)
    assert cause(caught.value) == "no forward mode: aten::_cdist_forward"
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    out = nn.functional.scaled_dot_product_attention(q, q, q).sum()
    (gradient,) = torch.autograd.grad(out, q, create_graph=True)
    with pytest.raises(RuntimeError) as caught:
        gradient.sum().backward()
    assert cause(caught.value).startswith("no second derivative: aten::_scaled_dot_product")
    assert cause(UserError("Something is wrong.", "Do this.")) == "Something is wrong"
    assert cause(ValueError("bad\nvery")) == "ValueError: bad"


# variants and cases


def test_every_scheme_and_estimator_is_a_variant(problem):
    names = set(variants.all_variants(problem.spec, problem.registry))
    assert set(problem.registry.schemes) <= names
    assert set(problem.registry.estimators) - {"auto"} <= names


def test_chosen_variants_start_with_the_reference(problem):
    assert list(variants.choose(problem.spec, problem.registry, "itd, difference")) == ["sum", "itd", "difference"]
    assert list(variants.choose_approximations(problem.spec, "heads")) == ["sum", "exact", "heads"]
    with pytest.raises(UserError, match="no variant 'idt'") as caught:
        variants.choose(problem.spec, problem.registry, "idt")
    assert "Did you mean 'itd'?" in caught.value.hint


def test_any_number_of_last_blocks_is_an_approximation(problem):
    chosen = variants.choose_approximations(problem.spec, "last_3_blocks,last_12_blocks,last_2_blocks")
    assert list(chosen) == ["sum", "exact", "last_3_blocks", "last_12_blocks", "last_2_blocks"]
    assert chosen["last_12_blocks"].settings == {"bilevel.scope": "last_block", "bilevel.scope_blocks": 12}
    assert "last_12_blocks" not in variants.choose_approximations(problem.spec, None)
    for name in ("last_0_blocks", "last_03_blocks", "last_blocks"):
        with pytest.raises(UserError, match=f"no approximation '{name}'"):
            variants.choose_approximations(problem.spec, name)


def test_a_benchmark_must_be_something_the_backbone_can_do():
    task = meltr.BackboneTask(task="t", losses=("a",), datasets=("d",))
    rest = {"name": "b", "summary": "", "adapter": "m:C", "tasks": (task,)}
    case = meltr.BenchmarkInfo(name="x", summary="", task="t", dataset="d")
    assert meltr.BackboneInfo(**rest, benchmarks=(case,)).benchmarks == (case,)
    with pytest.raises(ValidationError, match="'x' is for task 't' on 'e'"):
        meltr.BackboneInfo(**rest, benchmarks=(case.model_copy(update={"dataset": "e"}),))
    with pytest.raises(ValidationError, match="two benchmarks have the same name"):
        meltr.BackboneInfo(**rest, benchmarks=(case, case))


def test_cases_of_one_name_are_told_apart_by_their_backbone(tmp_path):
    text = TOY.read_text()
    case = 'meltr.BenchmarkInfo(name="transformer-small", summary="s", task="classification", dataset="rings")'
    file = tmp_path / f"same_{tmp_path.name}.py".replace("-", "_")
    file.write_text(text.replace("tasks=(task,))]", f"tasks=(task,), benchmarks=({case},))]"))
    registry = registry_with_cases([file])
    assert {"toy/transformer-small", "shared-trunk/transformer-small"} <= set(all_cases(registry))
    assert pick(registry, ["toy/transformer-small"])[0].selection()["backbone"] == "toy"


@pytest.mark.parametrize("losses", [2, 3, 4])
def test_the_losses_of_the_shared_trunk_share_one_forward(losses, monkeypatch):
    registry = registry_with_cases()
    (case,) = pick(registry, ["transformer-small"])
    sizes = {"width": 16, "depth": 1, "heads": 2, "tokens": 4, "vocabulary": 8, "examples": 8}
    names = ["label", "masked", "restore", "contrast"][:losses]
    flags = {**FLAGS, **{f"options.{k}": v for k, v in sizes.items()}, "train.batch_size": 4, "losses": names}
    built = FixedRun(resolve_case(registry, case, flags=flags), registry)
    calls, seen = [], []
    built.model.register_forward_hook(lambda *_: calls.append(1))
    original = Hooks.losses
    monkeypatch.setattr(Hooks, "losses", lambda *args: (seen.append(1), original(*args))[1])
    found = {name: built.stepper({"bilevel.estimator": name}).find() for name in ("double_backward", "difference")}
    assert len(calls) == len(seen) > 0
    assert len(found["difference"].products) == losses
    assert agreement(found["difference"].products, found["double_backward"].products).error < 1e-2


# results


def test_table_relates_everything_to_multi_task_learning(problem):
    chosen = variants.choose(problem.spec, problem.registry, "aid-fp-lite,released,none")
    table = measure(problem, chosen, title="toy", turns=1)
    rows = {row.name: row for row in table.rows}
    assert (rows["sum"].time, rows["sum"].memory, rows["sum"].flops) == (1.0, 1.0, 1.0)
    assert rows["aid-fp-lite"].gradient.error < 1e-4
    assert rows["aid-fp-lite"].direction.cosine == pytest.approx(1.0)
    assert rows["released"].gradient is None
    assert rows["released"].flops > rows["aid-fp-lite"].flops > rows["none"].flops > 1.0
    assert rows["released"].memory > rows["none"].memory > 1.0


def test_approximations_do_not_disturb_the_training_they_are_compared_along(problem):
    def trained(names):
        chosen = variants.choose_approximations(problem.spec, names)
        result = approximations.compare(problem, chosen, title="toy", steps=9, turns=1)
        return result, [tensor.clone() for tensor in problem.model.state_dict().values()]

    alone, weights = trained("")
    result, beside = trained("heads,difference,K=6")
    assert all(map(torch.equal, weights, beside))
    assert (alone.outer_steps, result.outer_steps) == (3, 3)
    rows = {row.price.name: row for row in result.rows}
    assert rows["K=6"].late is None
    difference, heads = rows["difference"].late, rows["heads"].late
    assert difference.ratios["ce"] == pytest.approx(1.0, rel=0.05)
    assert difference.signs == {"ce": 1.0, "denoise": 1.0, "norm": 1.0}
    assert heads.ratios["norm"] == 0.0  # no head belongs to that loss
    assert 0 < heads.ratios["ce"] < 1
    assert "scope: heads" in rows["heads"].remark


def test_approximations_need_the_current_batch():
    replayed = toy(**{"bilevel.outer_batch": "replay"})
    with pytest.raises(UserError, match="outer_batch is replay"):
        approximations.compare(replayed, {}, title="toy", steps=3, turns=1)


def test_a_block_of_a_page_is_replaced_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- meltr bench: begin -->\nold\n<!-- meltr bench: end -->\n\nThe end.\n")
    update(str(page), "new\n")
    expected = "# Title\n\n<!-- meltr bench: begin -->\n\nnew\n\n<!-- meltr bench: end -->\n\nThe end.\n"
    assert page.read_text() == expected
    update(str(page), "new")
    assert page.read_text() == expected
    update(f"{page}#gpu", "other")
    block = "<!-- meltr bench: begin gpu -->\n\nother\n\n<!-- meltr bench: end gpu -->\n"
    assert page.read_text() == f"{expected}\n{block}"
    fresh = tmp_path / "deep" / "fresh.md"
    update(f"{fresh}#gpu", "other")
    assert fresh.read_text() == block


def test_half_a_block_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- meltr bench: begin -->\n")
    with pytest.raises(UserError, match="1 begin marks and 0 end marks"):
        update(str(page), "new")
