"""Recipes: every task and data set gets its own, the released ones are picked and change what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from meltr.context import RunContext
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import BilevelSpec, RunSpec, TrainSpec
from meltr_violet.adapter import VioletAdapter
from meltr_violet.data.encoder import as_batch
from meltr_violet.losses.masking import black_out
from meltr_violet.losses.tasks import Batch, draw_batch_masks, task_losses
from meltr_violet.model.config import TINY
from meltr_violet.options import VioletOptions
from meltr_violet.plugin import register_backbones
from places import reference_table

Make = Callable[..., RunContext]
(INFO,) = register_backbones()
ALL = [(entry.task, dataset) for entry in INFO.tasks for dataset in entry.datasets]


def spec_of(task: str, dataset: str, **flags: Any) -> RunSpec:
    return resolve(discover(), backbone="violet", task=task, dataset=dataset, flags=flags)


@pytest.mark.parametrize(("task", "dataset"), ALL)
@pytest.mark.parametrize("flags", [{}, {"sample": True}, {"fidelity": "released"}, {"combiner": "sum"}], ids=str)
def test_every_task_and_data_set_has_a_recipe(task: str, dataset: str, flags: dict[str, Any]) -> None:
    spec = spec_of(task, dataset, **flags)
    options = VioletOptions(**spec.options)
    assert spec.preset is not None
    assert options.size == ("tiny" if "sample" in flags else "base")
    every = INFO.task(task).losses
    assert spec.losses == (every[:2] if spec.preset == "tiny-choice" else every)


@pytest.mark.parametrize("preset", [preset.name for preset in INFO.presets])
def test_every_preset_resolves(preset: str) -> None:
    spec = resolve(discover(), backbone="violet", task="qa", dataset="msvd", preset=preset)
    assert spec.preset == preset


@pytest.mark.parametrize("dataset", ["msrvtt-7k", "msrvtt-9k", "msvd", "tgif-frame", "tgif-action", "tgif-transition"])
def test_released_argument_files(dataset: str) -> None:
    rows = reference_table("violet.md", "## 7. Hyper-parameters (argument files of the MELTR code)")
    task, title = ("retrieval", "MSRVTT 7k, 9k") if dataset.startswith("msrvtt") else ("qa", f"{dataset}-qa")
    titles = [name.lower() for name in rows.pop("")]
    column = titles.index(next(name for name in (title.lower(), dataset) if name in titles))
    spec = spec_of(task, dataset, fidelity="released")
    found = {
        "epochs": spec.train.epochs,
        "batch per GPU": spec.train.batch_size,
        "text length": spec.options["text_length"],
        "backbone lr": spec.train.lr,
        "backbone weight decay": spec.train.weight_decay,
        "MELTR lr": spec.bilevel.outer_lr,
        "MELTR weight decay": spec.bilevel.outer_weight_decay,
    }
    assert found == {name: float(rows[name][column]) for name in found}


@pytest.mark.parametrize(("task", "dataset"), ALL)
def test_the_papers_settings(task: str, dataset: str) -> None:
    rows = reference_table("violet.md", "## 13. Paper versus released code")
    spec = spec_of(task, dataset)
    told = rows["optimiser"][0]
    rates = [float(number) for number in re.findall(r"= ([\d.e-]+)", told)]
    assert [spec.train.lr, spec.bilevel.outer_lr] == rates
    assert told.lower().startswith(f"{spec.train.optimizer}, ")
    assert told.endswith(f" {spec.train.schedule} decay")
    assert spec.bilevel.outer_optimizer == spec.train.optimizer
    epochs = {words.split()[1]: int(words.split()[0]) for words in rows["epochs"][0].split(", ")[:2]}
    assert spec.train.epochs == epochs["retrieval" if task == "retrieval" else "QA"]


# What the switches change


def losses_of(context: RunContext) -> tuple[dict[str, Tensor], Batch, torch.nn.Module]:
    torch.manual_seed(0)
    adapter = VioletAdapter()
    data = adapter.build_data(context)
    model = adapter.build_model(context, data).eval()
    batch = next(iter(data.train.batches(0)))
    context.generator.manual_seed(5)
    return adapter.compute_task_losses(model, batch, context), as_batch(batch), model


def test_released_code_answers_and_matches_on_masked_clips(make_context: Make) -> None:
    clean, batch, model = losses_of(make_context())
    masked, _, _ = losses_of(make_context(fidelity="released"))
    masks = draw_batch_masks(batch, TINY.cell, generator=torch.Generator().manual_seed(5))
    blackened = Batch(black_out(batch.frames, masks.cells, TINY.cell), batch.ids, batch.answer, batch.codes)
    by_hand = task_losses(model, blackened, masks, wanted=("answer", "vtm"))
    for name in ("answer", "vtm"):
        torch.testing.assert_close(masked[name], by_hand[name])
        assert not torch.isclose(masked[name], clean[name], rtol=1e-4)
    for name in ("mtm", "mvm"):
        torch.testing.assert_close(masked[name], clean[name])


def test_released_choices(make_context: Make) -> None:
    """The texts lack spaces, and matching compares copies of the first clip."""
    choice = ("qa", "tgif-action")
    given = {"options__text_length": 40, "options__clip": "clean"}
    clean, batch, _ = losses_of(make_context(*choice, **given))
    released, glued, model = losses_of(make_context(*choice, fidelity="released", **given))
    assert not torch.equal(batch.ids, glued.ids)
    assert torch.equal(batch.frames, glued.frames)
    assert not torch.isclose(clean["mtm"], released["mtm"], rtol=1e-4)
    size = len(glued.frames)
    scores = torch.empty(size, size)
    for row in range(size):  # the first B of the B x O rows: fewer than O, so all are of clip 0
        for text in range(size):
            clip, ids = glued.frames[:1], glued.ids.flatten(0, 1)[text][None]
            scores[row, text] = model.vtm(model(clip, ids)[:, -40])[0, 0] / 0.05
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(size))
    torch.testing.assert_close(released["vtm"], expected, rtol=1e-4, atol=1e-5)


def test_registration_imports_nothing_heavy() -> None:
    code = (
        "import sys, meltr_violet.plugin as p, meltr_violet.options; p.register_backbones(); "
        "print([m for m in ('torch', 'torchvision', 'transformers', 'av', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_no_option_has_the_name_of_another_setting() -> None:
    """So that each may be written without its section."""
    taken = {name for model in (RunSpec, TrainSpec, BilevelSpec) for name in model.model_fields}
    assert not taken & set(VioletOptions.model_fields)
