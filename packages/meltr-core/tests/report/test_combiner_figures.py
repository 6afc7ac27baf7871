"""Figures 3 and 7: what is drawn is the combiner of the last checkpoint, computed a second way."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import assert_stopped, call
from meltr.combiners.loss_transformer import LossTransformer
from meltr.engine.checkpoints import load_module
from meltr.engine.run import execute
from meltr.plugins import discover
from meltr.report.embedding_figure import embedding_parts
from meltr.settings import resolve
from places import TOY

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def registry():
    return discover([TOY])


def trained(folder: Path, registry, **settings) -> Path:
    flags = {"device": "cpu", "train.max_steps": 12, "train.log_every": 1, "bilevel.outer_lr": 0.01, **settings}
    spec = resolve(registry, backbone="toy", task="classification", dataset="rings", flags=flags)
    execute(spec, run_dir=folder, registry=registry)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, registry):
    settings = {"combiner_options.width": 16, "combiner_options.heads": 2}
    return trained(tmp_path_factory.mktemp("runs") / "run", registry, **settings)


def table(path: Path) -> tuple[list[str], list[list[str]]]:
    header, *rows = csv.reader(path.read_text().splitlines())
    return header, rows


def combiner(run: Path) -> tuple[LossTransformer, list[str], np.ndarray]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line["losses"] for line in lines if line["kind"] == "train"]
    names = list(logged[0])
    m = LossTransformer(names, width=16, heads=2)
    load_module(run / "checkpoints" / "last" / "combiner.safetensors", m, "combiner")
    return m.double(), names, np.array([[line[name] for name in names] for line in logged])


def test_the_response_is_that_of_the_trained_combiner(run):
    assert call("plot", run, "--figure", "3", "--format", "svg").exit_code == 0
    assert "<svg" in (run / "plots" / "combiner_response.svg").read_text()
    header, rows = table(run / "plots" / "combiner_response.csv")
    assert header == ["loss", "value", "combined", "task_weight", "sum"]
    m, names, logged = combiner(run)
    middle = np.median(logged, axis=0)
    for place, name in enumerate(names):
        own = np.array([[float(cell) for cell in row[1:]] for row in rows if row[0] == name])
        assert own[0, 0] == pytest.approx(logged[:, place].min(), rel=1e-6)
        assert own[-1, 0] == pytest.approx(logged[:, place].max(), rel=1e-6)
        for value, combined, weight, total in own[::12]:
            losses = torch.tensor(middle)
            losses[place] = value
            ahead, behind = losses.clone(), losses.clone()
            ahead[place] += 1e-6
            behind[place] -= 1e-6
            with torch.no_grad():
                slope = float(m(ahead) - m(behind)) / 2e-6
                assert combined == pytest.approx(float(m(losses)), rel=1e-4)
            assert weight == pytest.approx(slope, rel=1e-3)
            assert total == pytest.approx(float(losses.sum()), rel=1e-5)


def test_the_surface_covers_the_logged_range(run):
    assert call("plot", run, "--figure", "7", "--figure", "4").exit_code == 0
    assert (run / "plots" / "combiner_surface.png").stat().st_size > 5000
    assert (run / "plots" / "sensitivities.png").exists()
    assert not (run / "plots" / "losses.png").exists()
    header, rows = table(run / "plots" / "combiner_surface.csv")
    m, names, logged = combiner(run)
    assert header[0] == names[0]
    other = names.index(header[1])
    middle = np.median(logged, axis=0)
    for first, second, combined, total in [[float(cell) for cell in row] for row in rows[::97]]:
        losses = torch.tensor(middle)
        losses[0], losses[other] = first, second
        with torch.no_grad():
            assert combined == pytest.approx(float(m(losses)), rel=1e-4)
        assert total == pytest.approx(float(losses.sum()), rel=1e-5)


def test_the_parts_of_a_weight_are_those_of_the_embeddings(run):
    assert call("plot", run, "--figure", "5").exit_code == 0
    assert (run / "plots" / "embeddings.svg").exists()
    assert (run / "plots" / "embeddings.png").exists()
    m, names, logged = combiner(run)
    parts = embedding_parts(m.float(), logged[:3])
    assert parts.neither == pytest.approx(np.repeat(parts.neither[:, :1], len(names), axis=1), rel=1e-5)
    assert parts.neither + parts.from_scale + parts.from_task == pytest.approx(parts.both, rel=1e-9)
    swapped = m.float()
    with torch.no_grad():
        swapped.task_embedding.weight.copy_(swapped.task_embedding.weight[[1, 0, 2]])
    other = embedding_parts(swapped, logged[:3])
    assert other.from_scale.shape == (3, 3)
    assert other.scale == pytest.approx(parts.scale, rel=1e-5)  # the loss alone does not know its task
    assert other.task[:, 0] == pytest.approx(parts.task[:, 1], rel=1e-5)  # the task alone goes with its embedding


def test_what_cannot_be_drawn_is_an_error(tmp_path, run, registry):
    assert_stopped(call("plot", run, "--figure", "8"), "Valid choices: 3, 4, 5, 6, 7, alignment")
    assert_stopped(call("plot", run, "--figure", "3", "--format", "bmp"), "bmp")
    weighed = trained(tmp_path / "gradients", registry, combiner="torchjd")
    assert_stopped(call("plot", weighed, "--figure", "3"), "--figure 4")
    assert_stopped(call("plot", weighed, "--figure", "5"), "--figure 4")
    assert_stopped(call("plot", weighed, "--figure", "alignment"), "no outer step", "--combiner meltr")
    assert_stopped(call("plot", run, "--figure", "cosines"), "toy")  # its plugin is not installed
