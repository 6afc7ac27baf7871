"""The adapter against scikit-learn's accuracies, its parameter groups, and that it learns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score
from torch import Tensor, nn

from meltr.context import RunContext
from meltr.specs import BackboneInfo, BilevelSpec, DataSpec, RunSpec, TrainSpec
from meltr_vision import plugin
from meltr_vision.adapter import VisionAdapter
from meltr_vision.data.batches import EvalSplit
from meltr_vision.data.transforms import Pipeline
from meltr_vision.options import VisionOptions

Make = Callable[..., RunContext]


class Table(nn.Module):
    """Reads the scores of image i from a table: pixel (0, 0) of the image is i."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor:
        return self.scores[images[:, 0, 0, 0].round().long()]


def split(count: int, classes: int) -> tuple[EvalSplit, Tensor]:
    rng = np.random.default_rng(0)
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    labels = torch.from_numpy(np.concatenate([np.arange(classes), rng.integers(0, classes, count - classes)]))
    pipeline = Pipeline(mean=(0.0,), std=(1 / 255,), image_size=8)
    names = tuple(f"n{i}" for i in range(classes))
    scores = torch.from_numpy(rng.normal(size=(count, classes))).float()
    return EvalSplit(images, labels, torch.arange(count), pipeline, names), scores


def test_accuracies_like_scikit_learn(make_context: Make) -> None:
    data, scores = split(60, 12)
    found = VisionAdapter().evaluate(Table(scores), data, make_context(eval_batch_size=7, per_class=True))
    labels = data.labels.numpy()
    assert found.count == 60
    assert found.metrics["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=1))
    assert found.metrics["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=5))
    probabilities = scores.double().softmax(1).numpy()
    assert found.metrics["loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(12)), rel=1e-5)
    right = scores.argmax(1).numpy() == labels
    for c in range(12):
        assert found.details["per_class"][f"n{c}"] == pytest.approx(100 * right[labels == c].mean(), abs=0.01)
    assert found.predictions == ()


def test_few_classes_and_scores_that_are_not_finite(make_context: Make) -> None:
    data, scores = split(20, 3)
    scores[4] = float("nan")
    found = VisionAdapter().evaluate(Table(scores), data, make_context(save_predictions=True))
    assert found.metrics["top5"] == pytest.approx(95.0)
    assert len(found.predictions) == 20
    assert found.predictions[1] == {"index": 1, "label": 1, "predicted": int(scores[1].argmax())}


def test_parameter_groups(make_context: Make) -> None:
    adapter = VisionAdapter()
    context = make_context(model="resnet20")
    model = adapter.build_model(context, adapter.build_data(context))
    (only,) = adapter.parameter_groups(model, context)
    assert only["lr_scale"] == 1
    assert len(only["params"]) == len(list(model.parameters()))
    tuned = make_context(model="resnet20", trunk_lr_scale=0.1, decay_all=False)
    groups = adapter.parameter_groups(model, tuned)
    sizes = {(g["lr_scale"], g.get("weight_decay")): sum(p.numel() for p in g["params"]) for g in groups}
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())
    assert sizes[1.0, None] == 64 * 10 + 64 * 4
    assert sizes[1.0, 0.0] == 10 + 4
    normalisation = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sizes[0.1, 0.0] == sum(2 * m.num_features for m in normalisation)


def test_learns_digits_with_all_three_losses(make_context: Make) -> None:
    torch.manual_seed(0)
    adapter, spec = VisionAdapter(), {"data": {"train_limit": 400}, "train": {"batch_size": 20}}
    context = make_context("digits", model="resnet20", spec=spec)
    data = adapter.build_data(context)
    model = adapter.build_model(context, data).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    for epoch in range(4):
        for batch in data.train.batches(epoch):
            losses = adapter.compute_task_losses(model, batch, context)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    with torch.no_grad():
        found = adapter.evaluate(model.eval(), data.test, context)
    assert found.metrics["top1"] > 50  # chance: 10; seeds 0 to 2 gave 80 to 85


def test_discovery_imports_nothing_heavy() -> None:
    code = (
        "import sys, meltr_vision.plugin as p, meltr_vision.options; p.register_backbones(); p.register_datasets(); "
        "print([m for m in ('torch', 'timm', 'torchvision', 'sklearn', 'PIL', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def backbone() -> BackboneInfo:
    (info,) = plugin.register_backbones()
    return info


@pytest.mark.parametrize("preset", backbone().presets, ids=lambda preset: preset.name)
def test_presets_are_valid_settings(preset: object) -> None:
    sections = {"train": TrainSpec, "bilevel": BilevelSpec, "data": DataSpec, "options": VisionOptions}
    values: dict[str, dict[str, object]] = {name: {} for name in sections}
    for key, value in preset.settings.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    for name, model in sections.items():
        model(**values[name])


def test_registrations_fit_together() -> None:
    info, datasets = backbone(), {each.name: each for each in plugin.register_datasets()}
    task = info.task("classification")
    assert set(task.datasets) == set(datasets) == set(info.default_presets)
    assert set(info.default_presets.values()) <= {preset.name for preset in info.presets}
    assert all(each.embedded or each.layout for each in datasets.values())
    taken = set().union(*(set(model.model_fields) for model in (TrainSpec, BilevelSpec, DataSpec, RunSpec)))
    assert not taken & set(VisionOptions.model_fields)
    from meltr.combiners import options as combiner_options

    for model in (
        combiner_options.LossTransformerOptions,
        combiner_options.LinearOptions,
        combiner_options.FixedOptions,
    ):
        assert not set(model.model_fields) & set(VisionOptions.model_fields)
