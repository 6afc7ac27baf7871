"""Beds on real data: what their tasks see, where their files belong, and the catalogue."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

import places
from command_line import assert_stopped, call
from meltr.errors import UserError
from meltr.helps import catalogue, shared_data
from meltr.helps.real import Filled, Reversed, Turned

FILES = {"mosi": "mosi", "pom": "pom", "pom-contrary": "pom", "cifar-few": "cifar100", "cifar-coarse": "cifar100"}


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setenv("MELTR_SHARED", str(places.SHARED))


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return catalogue.build("digits", [3, 8])


def batch_of(bed):
    return next(bed.batches(0))


def test_a_turned_image_has_the_quarter_turns_of_numpy():
    images, drawn = torch.rand(2, 5, 16), torch.from_numpy(np.random.default_rng(0).integers(0, 4, (2, 5)))
    turned, wanted = Turned()(images, drawn)
    assert torch.equal(wanted, drawn)
    for place in np.ndindex(2, 5):
        expected = np.rot90(images[place].numpy().reshape(4, 4), int(drawn[place]))
        assert np.array_equal(turned[place].numpy().reshape(4, 4), expected)


def test_hidden_values_and_reversed_series():
    values, drawn = torch.rand(1, 3, 4) + 1, torch.tensor([[[1.0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]])
    seen, wanted = Filled(4)(values, drawn)
    assert torch.equal(wanted, values)
    assert torch.equal(seen == 0, drawn == 0)
    share = Filled(500).draw(np.random.default_rng(0), 40).mean()
    assert share == pytest.approx(0.7, abs=0.01)
    series, backwards = Reversed()(values, torch.tensor([[0, 1, 0]]))
    assert torch.equal(series[0, 1], values[0, 1].flip(0))
    assert torch.equal(series[0, [0, 2]], values[0, [0, 2]])
    assert backwards.tolist() == [[0, 1, 0]]


def test_the_losses_of_the_digits_are_those_of_their_parts(digits):
    """Every loss written out: labels on labelled images, views on changed ones, scale ten on what is filled in."""
    network, batch = digits.network(), batch_of(digits)
    found = digits.task_losses(network, batch)
    assert found.shape == (2, 6)
    for seed in range(2):
        own = digits.only(seed)
        alone = own.network()

        def outputs(images, alone=alone):
            return alone(images[None])[0]

        images, labelled = own.inputs[0][batch.rows[seed]], own.inputs[0][batch.labelled[seed]]
        holes, turns = batch.drawn["fill"][seed], batch.drawn["turn"][seed]
        turned = torch.stack(
            [torch.rot90(image.view(8, 8), int(n)).flatten() for image, n in zip(images, turns, strict=True)]
        )
        entropy = torch.nn.functional.cross_entropy
        labels = own.tasks[0].targets[0]
        expected = [
            entropy(outputs(labelled)[:, :10], labels[batch.labelled[seed]]),
            10 * (outputs(images * holes)[:, 10:74] - images).square().mean(),
            entropy(outputs(turned)[:, 74:78], turns),
            entropy(outputs(images)[:, 78:80], labels[batch.rows[seed]] % 2),
        ]
        assert torch.allclose(found[seed, :4], torch.stack(expected), rtol=1e-4)


def test_a_seed_has_the_same_real_data_in_any_company(digits):
    alone = catalogue.build("digits", [8])
    assert torch.equal(alone.inputs[0], digits.inputs[1])
    first, second = batch_of(alone), batch_of(digits.only(1))
    assert torch.equal(first.drawn["turn"], second.drawn["turn"])
    assert torch.equal(first.labelled, second.labelled)


def test_random_classes_are_random_in_training_only(digits):
    noise, labels = digits.tasks[5].targets, digits.tasks[0].targets
    assert (noise == labels)[:, digits.training :].all()
    assert (noise == labels)[:, : digits.training].double().mean() < 0.2


def test_mnist1d_is_made_without_touching_global_random_numbers():
    pytest.importorskip("mnist1d")
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.RandomState(5).rand(), torch.Generator().manual_seed(5).initial_seed()
    bed = catalogue.build("mnist1d", [0])
    assert np.random.rand() == expected[0]
    assert torch.initial_seed() == expected[1]
    assert bed.inputs.shape == (1, 5000, 40)
    assert float(bed.inputs.std()) == pytest.approx(1, abs=0.01)  # as its paper standardises it


@pytest.mark.parametrize("name", FILES)
def test_beds_of_files_train_on_what_they_say(name, shared):
    for part in shared_data.FILES[FILES[name]]:
        places.shared(f"data/{part}")
    if FILES[name] == "cifar100":
        pytest.importorskip("PIL")
    bed = catalogue.build(name, [2])
    assert bed.training + bed.validation < bed.inputs.shape[1]
    network = bed.network()
    losses = bed.task_losses(network, batch_of(bed))
    assert losses.shape == (1, len(bed.losses))
    assert losses.isfinite().all()
    chance = {"cifar-few": 0.99, "cifar-coarse": 0.95}
    if name in chance:
        assert float(bed.scores(network, "test")[0]) == pytest.approx(chance[name], abs=0.02)
    if name == "pom-contrary":
        ratings, contrary = bed.tasks[0].targets, bed.tasks[17].targets
        assert torch.equal(ratings, -contrary)
        assert bed.tasks[17].outputs == bed.tasks[0].outputs == (0, 1)


def test_a_bed_without_its_files_is_skipped_and_says_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("MELTR_SHARED", str(tmp_path))
    with pytest.raises(UserError, match=r"index\.tsv\.gz and .*features\.npz not found; MELTR_SHARED names"):
        catalogue.build("mosi", [0])
    assert "mosi is skipped" in call("helps", "--list").stdout
    (tmp_path / "data/mosi").mkdir(parents=True)
    (tmp_path / "data/mosi/index.tsv.gz").write_bytes(gzip.compress(b"row\n")[:-9])
    (tmp_path / "data/mosi/features.npz").write_bytes(b"no archive")
    shared_data._utterances.cache_clear()
    assert_stopped(call("helps", "--bed", "mosi", "--seeds", "0,1"), "index.tsv.gz")
