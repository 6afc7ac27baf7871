"""A backbone that breaks one rule fails the conformance test about this rule, and says why."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from places import TOY

BROKEN = {
    "declares_more": (
        'losses=("ce", "denoise", "norm")',
        'losses=("ce", "denoise", "norm", "more")',
        "test_every_declared_loss_is_returned",
        "more",
    ),
    "not_finite": (
        "F.mse_loss(model.denoise(model(points + 0.3 * noise)), points)",
        'F.mse_loss(model.denoise(model(points + 0.3 * noise)), points) * float("inf")',
        "test_every_declared_loss_is_returned",
        "NonFiniteLossError",
    ),
    "all_or_nothing": (
        "return {name: losses[name]() for name in context.losses}",
        "return {name: loss() for name, loss in losses.items()}",
        "test_any_of_the_losses_can_be_asked_for",
        "returned the losses",
    ),
    "draws_on_demand": (
        "hidden = model(points)",
        "hidden = model(points + 0 * points if len(context.losses) > 2 else points + 0.1 * noise)",
        "test_any_of_the_losses_can_be_asked_for",
        "the primary loss 'ce' is",
    ),
    "moves_nothing": (
        '"norm": lambda: hidden.square().mean()',
        '"norm": lambda: 0 * hidden.square().mean()',
        "test_every_loss_moves_a_parameter",
        "['norm'] move no parameter",
    ),
    "has_a_state": (
        "hidden = model(points)",
        "self.calls = getattr(self, 'calls', 0) + 1\n        hidden = model(points) * (1 + 0.01 * self.calls)",
        "test_the_losses_can_be_replayed",
        "losses twice",
    ),
    "on_the_host": (
        '"norm": lambda: hidden.square().mean()',
        '"norm": lambda: (hidden - torch.ones(hidden.shape[1])).square().mean()',
        "test_the_losses_are_ready_for_a_gpu",
        "same device",
    ),
    "reads_a_value": (
        '"norm": lambda: hidden.square().mean()',
        '"norm": lambda: hidden.square().mean() * (2 if bool(hidden.detach().sum() > 0) else 1)',
        "test_the_losses_are_ready_for_a_gpu",
        "the host would wait",
    ),
    "copies_a_constant": (
        '"norm": lambda: hidden.square().mean()',
        '"norm": lambda: hidden.square().mean() * torch.tensor(2.0, device=hidden.device)',
        "test_the_losses_are_ready_for_a_gpu",
        "the host would wait",
    ),
    "impure_batches": (
        'train=batches("train", 256)',
        'train=Counting(batches("train", 256))',
        "test_batches_are_a_function_of_epoch_and_index",
        "batches(0",
    ),
    "own_seed": (
        "return Net()",
        "torch.seed()\n        return Net()",
        "test_two_builds_with_one_seed_are_the_same",
        "different weights",
    ),
    "wrong_gradient": (
        '"norm": lambda: hidden.square().mean()',
        '"norm": lambda: Wrong.apply(hidden)',
        "test_all_estimators_agree",
        "is off by",
    ),
    "hidden_weights": (
        "hit = model.classify",
        "self.seen = getattr(self, 'seen', 0) + 1\n        label = label + self.seen % 2\n        hit = model.classify",
        "test_a_checkpoint_gives_the_metrics_back",
        "top1",
    ),
    "private_generator": (
        "noise = torch.randn(points.shape, generator=context.generator, device=points.device)",
        "noise = torch.randn(points.shape, generator=PRIVATE)",
        "test_a_resumed_run_ends_like_an_uninterrupted_one",
        "differs after resuming",
    ),
    "nan_metric": (
        '{"top1": 100 * float(hit.float().mean())',
        '{"top1": float("nan")',
        "test_an_evaluation_has_the_metrics_of_its_task",
        "top1 is nan",
    ),
    "everyone_the_same": (
        'ranks = {"rank": context.rank, "world_size": context.world_size}',
        'ranks = {"rank": 0, "world_size": context.world_size}',
        "test_two_processes_agree_with_one",
        "returned the same training batch",
    ),
}
"""Kind -> a part of the toy backbone, what stands there instead, the test that fails, and words of its message."""

MORE = '''
PRIVATE = torch.Generator().manual_seed(0)


class Counting:
    """Batches whose order depends on how often they were read."""

    def __init__(self, source):
        self.source, self.size, self.calls = source, source.size, 0

    def __len__(self):
        return len(self.source)

    def batches(self, epoch, start=0):
        self.calls += 1
        return self.source.batches(epoch + 100 * self.calls, start)


class Wrong(torch.autograd.Function):
    """The mean square, whose backward pass is wrong by a factor of fifty, and whose differences are right."""

    @staticmethod
    def forward(ctx, hidden):
        ctx.save_for_backward(hidden)
        return hidden.square().mean()

    @staticmethod
    def backward(ctx, grad):
        (hidden,) = ctx.saved_tensors
        return 100 * grad * hidden / hidden.numel()
'''


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the test that each broken backbone must fail, all in one call of pytest; kind -> outcome and message."""
    folder = tmp_path_factory.mktemp("broken")
    source, lines = TOY.read_text(encoding="utf-8"), []
    for kind, (old, new, _, _) in BROKEN.items():
        assert source.count(old) == 1, kind
        (folder / f"{kind}.py").write_text(source.replace(old, new) + MORE, encoding="utf-8")
        lines.append(f"class Test_{kind}(Case):\n    plugins = ({str(folder / f'{kind}.py')!r},)\n")
    head = """
        from meltr.testing import BackboneConformance

        class Case(BackboneConformance):
            backbone = "toy"
            settings = {"train.batch_size": 16, "data.eval_limit": 32}
    """
    file = folder / "test_broken.py"
    file.write_text(textwrap.dedent(head) + "\n\n" + "\n\n".join(lines), encoding="utf-8")
    seen: dict[str, str] = {}

    class Recorder:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            kind = re.search(r"Test_(\w+)::", report.nodeid)[1]
            if report.when == "call" or report.failed:
                seen[kind] = f"{report.outcome}: {report.longreprtext}"

    chosen = [f"{file}::Test_{kind}::{test}" for kind, (_, _, test, _) in BROKEN.items()]
    words = ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", "/dev/null", "--rootdir", str(folder)]
    pytest.main([*words, *chosen], plugins=[Recorder()])
    return seen


@pytest.mark.parametrize("kind", BROKEN)
def test_the_rule_is_checked(outcomes: dict[str, str], kind: str) -> None:
    assert outcomes[kind].startswith("failed"), outcomes[kind]
    assert BROKEN[kind][3] in outcomes[kind]


def test_expected_failures_need_a_test_and_a_reason(tmp_path: Path) -> None:
    """An exception that names no test, gives no reason, or does not fail is an error itself."""
    file = tmp_path / "test_exceptions.py"
    cases = {"unknown": {"test_nothing": "x"}, "empty": {"test_fine": " "}, "passes": {"test_fine": "why"}}
    cases |= {"right": {"test_wrong": "why"}}
    body = "    def test_fine(self): pass\n    def test_wrong(self): assert False\n"
    classes = [f"class Test_{kind}(Case):\n    expected_failures = {names!r}\n{body}" for kind, names in cases.items()]
    file.write_text("from meltr.testing import Case\n\n" + "\n".join(classes), encoding="utf-8")
    seen: dict[tuple[str, str], str] = {}

    class Recorder:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            _, kind, name = report.nodeid.split("::")
            if report.when == "call" or report.failed:
                seen[kind.removeprefix("Test_"), name] = report.outcome

    words = ["-p", "no:cacheprovider", "-p", "no:terminal", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    pytest.main([*words, str(file)], plugins=[Recorder()])
    assert seen["unknown", "test_fine"] == seen["empty", "test_fine"] == seen["passes", "test_fine"] == "failed"
    assert seen["passes", "test_wrong"] == "failed"
    assert seen["right", "test_fine"] == "passed"
    assert seen["right", "test_wrong"] == "skipped"  # How pytest calls an expected failure.
