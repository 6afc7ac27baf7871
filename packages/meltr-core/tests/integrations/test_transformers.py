"""MeltrTrainer: the gradients of the plain loop, logs, checkpoints with phi, and errors."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch

import integration_cases as cases
from meltr import SAMA, Bilevel, Setup, UserError
from ranks_helper import run_ranks

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState  # noqa: E402

from meltr.integrations.transformers import FILE, BilevelTraining, MeltrTrainer  # noqa: E402


class Data(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.points = cases.dataset(count)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int):
        x, y = self.points[index]
        return {"x": x, "y": y}


class InOrder:
    """Takes the data without shuffling."""

    def get_train_dataloader(self):
        loader = torch.utils.data.DataLoader(self.train_dataset, batch_size=6)
        return self.accelerator.prepare(loader)


class MyTrainer(InOrder, MeltrTrainer):
    def compute_losses(self, model, inputs):
        return cases.losses(model, inputs.pop("x"), inputs.pop("y"), len(self.combiner.names))


def arguments(folder, **settings):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    defaults = {
        "per_device_train_batch_size": 6, "max_grad_norm": 0.0, "report_to": "none", "use_cpu": True,
        "save_strategy": "no", "remove_unused_columns": False, "logging_steps": 1, "disable_tqdm": True,
    }  # fmt: skip
    return transformers.TrainingArguments(str(folder), **{**defaults, **settings})


class Case:
    """A trainer of the small model; SGD with momentum and a constant learning rate."""

    def __init__(self, folder, *, count=3, batches=7, dropout=0.0, kind=MyTrainer, bilevel=None, **settings) -> None:
        self.model, self.combiner = cases.net(dropout), cases.combiner(count)
        optimizer = cases.inner(self.model)
        self.gradients = cases.Gradients(optimizer)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        self.trainer = kind(
            self.model,
            arguments(folder, **settings),
            train_dataset=Data(batches),
            optimizers=(optimizer, schedule),
            combiner=self.combiner,
            outer_optimizer=cases.outer(self.combiner),
            bilevel={"every": 2, **(bilevel or {})},
        )


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_are_those_of_the_plain_loop(tmp_path, number, count):
    """Two epochs of seven batches; the Trainer divides a short last window by its own size."""
    case = Case(tmp_path, count=count, gradient_accumulation_steps=number, num_train_epochs=2)
    case.trainer.train()
    plain = cases.Plain(2 * cases.windows(7, number), number, count=count, each=lambda size: size)
    case.gradients.equal(plain.gradients)
    cases.agree((case.model, case.combiner), plain)


def test_clipping_is_that_of_the_trainer(tmp_path):
    case = Case(tmp_path, max_grad_norm=0.1, num_train_epochs=1)
    case.trainer.train()
    plain = cases.Plain(cases.windows(7, 1), 1, clip=0.1)
    cases.agree((case.model, case.combiner), plain)


def test_bf16_is_the_autocast_of_the_plain_loop(tmp_path):
    case = Case(tmp_path, bf16=True, num_train_epochs=1)
    case.trainer.train()
    plain = cases.Plain(cases.windows(7, 1), 1, setup=Setup(autocast=torch.bfloat16))
    case.gradients.equal(plain.gradients)


def test_a_scheme_gets_the_inner_optimiser(tmp_path):
    """SAMA differentiates its step."""
    case = Case(tmp_path, num_train_epochs=1, bilevel={"scheme": SAMA()})
    case.trainer.train()
    plain = cases.Plain(cases.windows(7, 1), 1, scheme=SAMA())
    cases.agree((case.model, case.combiner), plain)


def test_logs_hold_losses_and_task_weights_by_name(tmp_path):
    """Means since the last log; the alignment at outer steps."""
    case = Case(tmp_path, num_train_epochs=1, logging_steps=3)
    case.trainer.train()
    plain = cases.Plain(cases.windows(7, 1), 1)
    logs = [each for each in case.trainer.state.log_history if "loss" in each]
    assert [each["step"] for each in logs] == [3, 6]
    for log, results in zip(logs, (plain.results[:3], plain.results[3:6]), strict=True):
        for name in cases.NAMES:
            loss = sum(float(each.named_losses[name]) for each in results) / 3
            weight = sum(float(each.weights[name]) for each in results) / 3
            assert log[f"loss/{name}"] == pytest.approx(loss, rel=1e-5)
            assert log[f"weight/{name}"] == pytest.approx(weight, rel=1e-5)
        combined = sum(float(each.combined) for each in results) / 3
        assert log["loss"] == pytest.approx(combined, rel=1e-4)
        last = [each.outer for each in results if each.outer is not None][-1]
        assert log["alignment/size"] == pytest.approx(float(last.alignment["size"]), rel=1e-4)


@pytest.mark.parametrize("number", [1, 2])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path, number):
    """With dropout. The checkpoint is in the middle of an epoch, and its next step begins with an outer step."""
    how = {"dropout": 0.2, "gradient_accumulation_steps": number, "max_steps": 8, "save_strategy": "steps"}
    whole = Case(tmp_path, **how, save_steps=2)
    whole.trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert {file.name for file in checkpoint.iterdir()} >= {FILE, "optimizer.pt", "trainer_state.json"}
    resumed = Case(tmp_path / "again", **how, save_steps=2)
    resumed.trainer.train(resume_from_checkpoint=str(checkpoint))
    assert cases.same_bits(resumed.model, whole.model)
    assert cases.same_bits(resumed.combiner, whole.combiner)
    assert not cases.same_bits(whole.combiner, cases.combiner())
    one, two = (each.trainer.bilevel.bilevel for each in (resumed, whole))
    assert (one.steps, one.outer_steps) == (two.steps, two.outer_steps) == (8, 3)


def test_resume_true_takes_the_last_checkpoint(tmp_path):
    how = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    Case(tmp_path, **how).trainer.train()
    again = Case(tmp_path, **{**how, "max_steps": 5})
    again.trainer.train(resume_from_checkpoint=True)
    assert again.trainer.bilevel.bilevel.steps == 5


def test_a_checkpoint_without_phi_is_an_error(tmp_path):
    Case(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).trainer.train()
    (tmp_path / "checkpoint-2" / FILE).unlink()
    again = Case(tmp_path, max_steps=4)
    before = cases.copied(again.model)
    with pytest.raises(UserError, match=f"checkpoint-2 has no {FILE}: a MeltrTrainer did not write this checkpoint"):
        again.trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(before[name], value) for name, value in again.model.state_dict().items())


def test_every_trial_of_a_search_starts_with_the_same_phi(tmp_path):
    """With ``model_init`` the model is new in every training, so phi must be too."""
    combiner = cases.combiner()
    trainer = MyTrainer(
        None,
        arguments(tmp_path, max_steps=5, learning_rate=0.01),
        model_init=lambda: cases.net(),
        train_dataset=Data(7),
        combiner=combiner,
        outer_optimizer=cases.outer(combiner),
        bilevel={"every": 2},
    )
    ends = []
    for _ in range(2):
        trainer.train()
        ends.append(cases.copied(combiner))
        assert trainer.bilevel.bilevel.steps == 5
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not cases.same_bits(combiner, cases.combiner())


def test_a_training_that_stopped_within_a_window_can_be_continued(tmp_path):
    """The open window ends, so that the next training starts one of its own."""

    class Stop(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1
            return control

    case = Case(tmp_path, gradient_accumulation_steps=3, num_train_epochs=1)
    stop = Stop()
    case.trainer.add_callback(stop)
    case.trainer.train()
    case.trainer.remove_callback(stop)
    case.trainer.train()
    assert case.trainer.bilevel.bilevel.steps == 1 + 1 + 3


def test_any_trainer_takes_the_mixin(tmp_path):
    class Sequence(InOrder, BilevelTraining, transformers.Seq2SeqTrainer):
        compute_losses = MyTrainer.compute_losses

    AcceleratorState._reset_state(reset_partial_state=True)
    combiner = cases.combiner()
    args = transformers.Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=3, use_cpu=True, report_to="none", remove_unused_columns=False, save_strategy="no"
    )
    trainer = Sequence(cases.net(), args, train_dataset=Data(4), combiner=combiner)
    trainer.train()
    assert trainer.bilevel.bilevel.steps == 3


def test_bad_use_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"MyTrainer needs a combiner, got None.\n.*LossTransformer"):
        MyTrainer(cases.net(), arguments(tmp_path))
    with pytest.raises(UserError, match="MyTrainer does not use compute_loss_func"):
        MyTrainer(cases.net(), arguments(tmp_path), combiner=cases.combiner(), compute_loss_func=print)
    nothing = Case(tmp_path, kind=type("Nothing", (InOrder, MeltrTrainer), {}), max_steps=1)
    with pytest.raises(UserError, match=r"Nothing does not define compute_losses.\nDefine compute_losses"):
        nothing.trainer.train()


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "meltr.integrations.transformers")
    with pytest.raises(
        ImportError, match=r"needs the package 'transformers'.*\n.*'meltr-core\[transformers\]'"
    ) as found:
        importlib.import_module("meltr.integrations.transformers")
    assert isinstance(found.value, UserError)


class Classify(InOrder, MeltrTrainer):
    def compute_losses(self, model, inputs):
        outputs = model(**inputs)
        return {"label": outputs.loss, "size": outputs.logits.square().mean()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_of_the_library(tmp_path, checkpointing):
    """A small BERT, with its dropout off so that the plain loop draws nothing; files of a saved model."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    plain = copy.deepcopy(model)
    tokens = torch.randint(50, (24, 7), generator=torch.Generator().manual_seed(1))
    combiner = cases.combiner(2)
    optimizer, settings = cases.inner(model), {"gradient_checkpointing": True} if checkpointing else {}
    found = cases.Gradients(optimizer)
    trainer = Classify(
        model,
        arguments(tmp_path, num_train_epochs=1, **settings),
        train_dataset=[{"input_ids": row, "labels": row[0] % 3} for row in tokens],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        combiner=combiner,
        outer_optimizer=cases.outer(combiner),
        bilevel={"every": 2},
    )
    trainer.train()
    beside, optimizer = cases.combiner(2), cases.inner(plain)
    expected = cases.Gradients(optimizer)
    bilevel = Bilevel(plain, beside, cases.outer(beside), every=2)
    for start in range(0, 24, 6):
        rows = tokens[start : start + 6]
        inputs = {"input_ids": rows, "labels": rows[:, 0] % 3}
        bilevel.backward(lambda inputs=inputs: Classify.compute_losses(None, plain.train(), inputs))
        optimizer.step()
        optimizer.zero_grad()
    found.equal(expected)
    data = trainer.train_dataset
    assert trainer.evaluate(data)["eval_loss"] < 3
    trainer.save_model()
    assert {FILE, "model.safetensors", "config.json"} <= {file.name for file in tmp_path.iterdir()}
    saved = torch.load(tmp_path / FILE, weights_only=True)
    assert (saved["steps"], saved["outer_steps"], saved["names"]) == (4, 1, ["label", "size"])


class Halves(MyTrainer):
    def get_train_dataloader(self):
        return self.accelerator.prepare(torch.utils.data.DataLoader(self.train_dataset, batch_size=3))


def distributed(_, folder, number):
    """Return weights and phi of this process, which gets every other three examples."""
    model, combiner = cases.without_batch_norm(), cases.combiner()
    optimizer = cases.inner(model)
    settings = {"num_train_epochs": 1, "gradient_accumulation_steps": int(number), "per_device_train_batch_size": 3}
    trainer = Halves(
        model,
        arguments(folder, **settings),
        train_dataset=Data(6),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        combiner=combiner,
        outer_optimizer=cases.outer_sgd(combiner),
        bilevel={"every": 2},
    )
    trainer.train()
    return cases.together(trainer.model, combiner)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_two_processes_train_as_one_does(tmp_path, number):
    results = [ended.result for ended in run_ranks(distributed, words=[tmp_path, number], join=False)]
    cases.agree_with_one_process(results, cases.alone(number))
