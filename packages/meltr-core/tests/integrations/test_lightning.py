"""MeltrModule: the gradients of the plain loop under Lightning's Trainer; checkpoints with phi; errors."""

from __future__ import annotations

import os
import warnings

import pytest
import torch

import integration_cases as cases
from meltr import OneSidedDifference, Setup, UserError
from ranks_helper import run_ranks

lightning = pytest.importorskip("lightning.pytorch")

from lightning.pytorch.plugins import MixedPrecision  # noqa: E402

from meltr.integrations.lightning import KEY, MeltrModule  # noqa: E402

warnings.filterwarnings("ignore", module="lightning")


class Net(MeltrModule, lightning.LightningModule):
    def __init__(self, *, count=3, dropout=0.0, **bilevel) -> None:
        super().__init__()
        self.net, self.count, self.settings = cases.net(dropout), count, {"every": 2, **bilevel}
        self.results = []

    def forward(self, x):
        return self.net(x)

    def compute_losses(self, batch):
        return cases.losses(self.net, *batch, self.count)

    def configure_bilevel(self):
        combiner = cases.combiner(self.count)
        return {"combiner": combiner, "outer_optimizer": cases.outer(combiner), **self.settings}

    def configure_optimizers(self):
        optimizer = cases.inner(self)
        self.gradients = cases.Gradients(optimizer)
        return optimizer


def trainer(folder, **settings):
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "max_epochs": 1, "use_distributed_sampler": False,
    }  # fmt: skip
    return lightning.Trainer(default_root_dir=folder, **{**defaults, **settings})


def loader(count=7):
    return torch.utils.data.DataLoader(cases.dataset(count), batch_size=6)


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_the_plain_loop(tmp_path, number, count):
    """Two epochs of seven batches: the last batch of an epoch steps, as with automatic optimisation."""
    module = Net(count=count)
    module.accumulate_grad_batches = number
    trainer(tmp_path, max_epochs=2).fit(module, loader())
    plain = cases.Plain(2 * cases.windows(7, number), number, count=count)
    module.gradients.equal(plain.gradients)
    cases.agree((module.net, module.bilevel.combiner), plain)


def test_accumulation_is_that_of_automatic_optimisation(tmp_path):
    """With a combiner that stays the plain sum: against Lightning's own ``accumulate_grad_batches``."""

    class Automatic(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.net()

        def training_step(self, batch, batch_idx):
            return sum(cases.losses(self.net, *batch).values())

        def configure_optimizers(self):
            return cases.inner(self)

    class Sum(Net):
        def configure_bilevel(self):
            return {"combiner": FixedCombiner(cases.NAMES, weights=[1.0, 1.0, 1.0])}

    from meltr.combiners.fixed import FixedCombiner

    automatic, module = Automatic(), Sum()
    module.accumulate_grad_batches = 3
    trainer(tmp_path, max_epochs=2, accumulate_grad_batches=3).fit(automatic, loader())
    trainer(tmp_path, max_epochs=2).fit(module, loader())
    for name, value in automatic.net.state_dict().items():
        torch.testing.assert_close(module.net.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name)


def test_clipping(tmp_path):
    module = Net()
    module.gradient_clip_val = 0.1
    trainer(tmp_path).fit(module, loader())
    cases.agree((module.net, module.bilevel.combiner), cases.Plain(cases.windows(7, 1), 1, clip=0.1))


def test_bf16_is_the_autocast_of_the_plain_loop(tmp_path):
    """The losses are within autocast; an estimator of differences evaluates them in float32."""
    module = Net()
    trainer(tmp_path, precision="bf16-mixed").fit(module, loader())
    plain = cases.Plain(cases.windows(7, 1), 1, setup=Setup(autocast=torch.bfloat16))
    module.gradients.equal(plain.gradients)
    cases.agree((module.net, module.bilevel.combiner), plain)
    other = Net(estimator=OneSidedDifference())
    trainer(tmp_path, precision="bf16-mixed").fit(other, loader())
    assert other.bilevel.bilevel.estimator.error < 0.05


@pytest.mark.parametrize("number", [1, 3])
def test_gradients_are_scaled_as_lightning_scales_them(tmp_path, number):
    """A gradient scaler, as for fp16 on a GPU, without rounding; clipping sees the unscaled gradient."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    plugin.precision = "32-true"
    plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
    module = Net()
    module.accumulate_grad_batches, module.gradient_clip_val = number, 0.1
    trainer(tmp_path, plugins=[plugin]).fit(module, loader())
    plain = cases.Plain(cases.windows(7, number), number, clip=0.1)
    cases.agree((module.net, module.bilevel.combiner), plain)


def test_a_resumed_fit_ends_with_the_same_bits(tmp_path):
    """With dropout, from the checkpoint after the second epoch; Lightning seeds nothing, so each batch does."""

    class Seeded(Net):
        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(100 * self.trainer.current_epoch + batch_idx)

    def checkpoints():
        return lightning.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    whole, resumed = Seeded(dropout=0.2), Seeded(dropout=0.2)
    for module in (whole, resumed):
        module.accumulate_grad_batches = 3
    trainer(tmp_path, max_epochs=4, enable_checkpointing=True, callbacks=[checkpoints()]).fit(whole, loader())
    path = tmp_path / "epoch=1.ckpt"
    assert torch.load(path, weights_only=True)[KEY]["steps"] == 6
    trainer(tmp_path, max_epochs=4).fit(resumed, loader(), ckpt_path=path)
    assert cases.same_bits(resumed.net, whole.net)
    assert cases.same_bits(resumed.bilevel.combiner, whole.bilevel.combiner)
    one, two = resumed.bilevel.state_dict(), whole.bilevel.state_dict()
    assert (one["steps"], one["outer_steps"]) == (two["steps"], two["outer_steps"]) == (12, 5)


def test_a_checkpoint_without_phi_is_an_error(tmp_path):
    class Forgets(Net):
        def on_save_checkpoint(self, checkpoint):
            """Without super()."""

    fitted = trainer(tmp_path)
    fitted.fit(Forgets(), loader())
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"last.ckpt has no state of the combiner.\n.*call super\(\)"):
        trainer(tmp_path, max_epochs=2).fit(Net(), loader(), ckpt_path=tmp_path / "last.ckpt")


def test_a_module_is_fitted_anew_with_a_new_combiner(tmp_path):
    module = Net()
    trainer(tmp_path).fit(module, loader())
    first = module.bilevel
    trainer(tmp_path).fit(module, loader())
    assert module.bilevel is not first
    assert (first.bilevel.steps, module.bilevel.bilevel.steps) == (7, 7)


def test_logs_and_schedulers(tmp_path):
    """Losses and task weights by name; a schedule of epochs and one of steps, stepped as Lightning would."""

    class Scheduled(Net):
        def __init__(self, interval: str, frequency: int) -> None:
            super().__init__()
            self.plan = {"interval": interval, "frequency": frequency}

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 1.0)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), **self.plan}]

    for interval, frequency, halvings in (("epoch", 1, 2), ("step", 3, 4)):
        module = Scheduled(interval, frequency)
        mine = trainer(tmp_path, max_epochs=2)
        mine.fit(module, loader())
        assert mine.optimizers[0].param_groups[0]["lr"] == 0.5**halvings
        assert {"loss/label", "weight/label", "weight/shift", "alignment/size"} <= mine.callback_metrics.keys()


class WithHead(Net):
    """A module whose combiner is an attribute."""

    def configure_bilevel(self):
        self.combiner = cases.combiner()
        return {"combiner": self.combiner}


class Two(Net):
    def configure_optimizers(self):
        return [cases.inner(self), cases.inner(self)]


def test_bad_use_is_an_error(tmp_path):
    def fit(module, **settings):
        trainer(tmp_path, **settings).fit(module, loader())

    with pytest.raises(UserError, match=r"returns a combiner that is a part of the module.\n.*do not assign"):
        fit(WithHead())
    with pytest.raises(UserError, match=r"Two has 2 optimisers, expected one.\n.*belongs to configure_bilevel"):
        fit(Two())
    bare = type("Bare", (MeltrModule, lightning.LightningModule), {"configure_optimizers": cases.inner})
    module = bare()
    module.net = cases.net()
    with pytest.raises(UserError, match="Bare does not define configure_bilevel"):
        fit(module)
    half = type("Half", (Net,), {"compute_losses": MeltrModule.compute_losses})
    with pytest.raises(UserError, match="Half does not define compute_losses"):
        fit(half())
    with pytest.raises(UserError, match="Bilevel has no setting 'evry'"):
        fit(Net(evry=1))


def distributed(_, folder):
    """Return weights and phi of this process, which holds a half of every batch."""
    points, rank = cases.dataset(6), int(os.environ["RANK"])
    mine = torch.utils.data.Subset(points, [index for index in range(len(points)) if index // 3 % 2 == rank])
    module = Halves()
    trainer(folder, strategy="ddp", devices=2, num_nodes=1).fit(module, torch.utils.data.DataLoader(mine, batch_size=3))
    return cases.together(module.net, module.bilevel.combiner)


class Halves(Net):
    accumulate_grad_batches = 2

    def __init__(self) -> None:
        super().__init__()
        self.net = cases.without_batch_norm()

    def configure_bilevel(self):
        combiner = cases.combiner()
        return {"combiner": combiner, "outer_optimizer": cases.outer_sgd(combiner), "every": 2}


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """Also with accumulation."""
    results = [ended.result for ended in run_ranks(distributed, words=[tmp_path], join=False)]
    cases.agree_with_one_process(results, cases.alone(2))
