"""Losses of small models of every kind against those of transformers, and against a calculation by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from meltr.texts import Column, TextItem
from meltr.texts.batches import Collate
from meltr_hf.data.encoding import Tokens
from meltr_hf.data.marks import marks_of
from meltr_hf.losses.corruption import draw, hide
from meltr_hf.losses.tasks import TextLosses
from meltr_hf.model.building import build_network
from meltr_hf.model.kind import kind_of
from meltr_hf.model.network import Network
from meltr_hf.options import HfOptions
from meltr_hf.weights.pretrained import load_config, load_tokenizer

TEXTS = (
    "the film was great today",
    "the book was not dull at noon",
    "a new song",
    "a long and weak story in the end was not fine",
)
COLUMNS = (Column("topic", "classes", ("x", "y", "z")), Column("stars", "number", mean=3.0, deviation=2.0))
ITEMS = [
    TextItem(TEXTS[0], "a", "0", {"topic": "x", "stars": "5"}, target="a good film"),
    TextItem(TEXTS[1], "b", "1", {"topic": "z"}, target="a book"),
    TextItem(TEXTS[2], "a", "2", {"stars": "1"}, target="song"),
    TextItem(TEXTS[3], "b", "3", {"topic": "new"}, target="the story was weak"),
]


class Case:
    """A small model with its batch; dropout is off."""

    def __init__(self, folder: Path, task: str, *losses: str, **options: Any) -> None:
        self.options = HfOptions(model=str(folder), text_length=12, **options)
        spec = SimpleNamespace(task=task, seed=0)
        context: Any = SimpleNamespace(
            spec=spec, options=self.options, losses=losses, weights_follow=False, notes=[], run_dir=None
        )
        config, tokenizer = load_config(str(folder)), load_tokenizer(str(folder))
        self.marks, kind = marks_of(tokenizer), kind_of(config, task, "m")
        self.encoder = Tokens(tokenizer, self.marks, kind, text_length=12, target_length=6)
        sizes = {"classes": 2, "vocabulary": len(tokenizer), "columns": COLUMNS}
        self.model: Network = build_network(context, config, kind, **sizes).eval()
        self.batch = Collate(self.encoder, () if task == "text-to-text" else ("a", "b"), COLUMNS)(ITEMS)
        self.drawn, self.notes = draw(self.batch["ids"], torch.Generator().manual_seed(3)), context.notes

    def losses(self, *names: str) -> dict[str, float]:
        with torch.no_grad():
            found = TextLosses(self.model, self.batch, self.drawn, self.marks, COLUMNS, self.options).losses(names)
        return {name: float(loss) for name, loss in found.items()}


@pytest.fixture(scope="module")
def case(folder_of: Callable[[str], Path]) -> Callable[..., Case]:
    made: dict[Any, Case] = {}

    def make(model_type: str, task: str, *losses: str, **options: Any) -> Case:
        key = (model_type, task, losses, *options.items())
        if key not in made:
            made[key] = Case(folder_of(model_type), task, *losses, **options)
        return made[key]

    return make


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_mlm_is_the_loss_of_transformers(model_type: str, case: Callable[..., Case], folder_of: Any) -> None:
    found = case(model_type, "text-classification", "mlm", mask_rate=0.5)
    ids, mask, u = found.batch["ids"], found.batch["mask"], found.drawn.tokens
    words = mask.bool() & (ids > 4)
    changed = hide(ids, mask, words, u[:3], token=found.marks.mask or 0, vocabulary=found.marks.vocabulary, rate=0.5)
    theirs = AutoModelForMaskedLM.from_pretrained(folder_of(model_type)).eval()
    with torch.no_grad():
        expected = theirs(input_ids=changed.ids, attention_mask=mask, labels=changed.wanted).loss
    assert found.losses("mlm")["mlm"] == pytest.approx(float(expected), rel=1e-5)


def test_lm_is_the_loss_of_transformers(case: Callable[..., Case], folder_of: Any) -> None:
    found = case("gpt2", "text-classification", "lm")
    ids, mask = found.batch["ids"], found.batch["mask"]
    theirs = AutoModelForCausalLM.from_pretrained(folder_of("gpt2")).eval()
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, labels=torch.where(mask.bool(), ids, -100)).loss
    assert found.losses("lm")["lm"] == pytest.approx(float(expected), rel=1e-5)


def test_denoising_and_generation_are_the_losses_of_transformers(case: Callable[..., Case], folder_of: Any) -> None:
    found = case("t5", "text-to-text", "generation", "denoising", mask_rate=0.4)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder_of("t5")).eval()
    losses = TextLosses(found.model, found.batch, found.drawn, found.marks, COLUMNS, found.options)
    changed = losses.without_spans()
    assert (changed.wanted >= 0).sum() > 2 * len(ITEMS)
    given = {
        "denoising": {"input_ids": changed.ids, "attention_mask": changed.mask, "labels": changed.wanted},
        "generation": {
            "input_ids": found.batch["ids"],
            "attention_mask": found.batch["mask"],
            "labels": found.batch["target"],
        },
    }
    ours = found.losses("generation", "denoising")
    for name, arguments in given.items():
        with torch.no_grad():
            assert ours[name] == pytest.approx(float(theirs(**arguments).loss), rel=1e-5), name


def test_a_decoder_learns_the_target_after_the_text(case: Callable[..., Case], folder_of: Any) -> None:
    """The mean over the tokens of the targets, one sequence at a time and without padding."""
    found = case("gpt2", "text-to-text", "generation")
    theirs = AutoModelForCausalLM.from_pretrained(folder_of("gpt2")).eval()
    tokenizer, total, count = found.encoder.tokenizer, 0.0, 0
    for item in ITEMS:
        text = tokenizer(item.text)["input_ids"][:12]
        text = text if text[-1] == 2 else [*text, 2]
        target = tokenizer(item.target)["input_ids"]
        assert target[-1] == 2
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([text + target])).logits[0].log_softmax(1)
        total -= sum(float(logits[len(text) - 1 + n, token]) for n, token in enumerate(target))
        count += len(target)
    assert found.losses("generation")["generation"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_features_by_hand(model_type: str, case: Callable[..., Case], folder_of: Any) -> None:
    """From features that transformers' bare model gives for each text alone."""
    found = case(model_type, "text-classification")
    bare: Any = AutoModel.from_pretrained(folder_of(model_type)).eval()
    bare = bare.get_encoder() if model_type == "t5" else bare
    rows = []
    for item in ITEMS:
        ids = torch.tensor([found.encoder.tokenizer(item.text, truncation=True, max_length=12)["input_ids"]])
        with torch.no_grad():
            states = bare(input_ids=ids).last_hidden_state[0]
        rows.append({"bert": states[0], "gpt2": states[-1], "t5": states.mean(0)}[model_type])
    text = torch.stack(rows)
    ours = found.losses("classification", "topic", "stars", "contrastive")
    with torch.no_grad():
        logits = found.model.heads["classification"](text).log_softmax(1)
        topics = found.model.columns[0](text).log_softmax(1)
        stars = found.model.columns[1](text)[:, 0]
    assert ours["classification"] == pytest.approx(-float(logits[[0, 1, 2, 3], [0, 1, 0, 1]].mean()), rel=1e-4)
    assert ours["topic"] == pytest.approx(-float(topics[0, 0] + topics[1, 2]) / 2, rel=1e-4)  # a new class is skipped
    assert ours["stars"] == pytest.approx(float((stars[0] - 1) ** 2 + (stars[2] + 1) ** 2) / 2, rel=1e-4)
    total = 0.0
    for row in range(4):
        cosines = [float(F.cosine_similarity(text[row], text[other], dim=0)) / 0.05 for other in range(4)]
        total += math.log(sum(math.exp(each - cosines[row]) for each in cosines))
    assert ours["contrastive"] == pytest.approx(total / 4, rel=1e-3)


def test_contrast_compares_two_dropouts(case: Callable[..., Case]) -> None:
    found = case("bert", "text-classification")
    found.model.train()
    try:
        torch.manual_seed(0)
        ids, mask = found.batch["ids"], found.batch["mask"]
        one, other = found.model.texts(ids, mask), found.model.texts(ids, mask)
        cosines = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T / 0.05
        expected = F.cross_entropy(cosines, torch.arange(4))
        torch.manual_seed(0)
        assert found.losses("contrastive")["contrastive"] == pytest.approx(float(expected.detach()), rel=1e-5)
        assert not torch.equal(one, other)
    finally:
        found.model.eval()


def test_replaced_and_reordered_are_mean_binary_cross_entropies(case: Callable[..., Case]) -> None:
    """With heads that always say 0.3, whatever the text."""
    found = case("bert", "text-classification", "replaced", "reordered", mask_rate=0.5)
    for name in ("replaced", "reordered"):
        with torch.no_grad():
            found.model.heads[name].weight.zero_()
            found.model.heads[name].bias.fill_(math.log(0.3 / 0.7))
    losses = TextLosses(found.model, found.batch, found.drawn, found.marks, COLUMNS, found.options)
    ours, words = found.losses("replaced", "reordered"), losses.words
    low, high = -math.log(0.7), -math.log(0.3)
    shares = {name: (value - low) / (high - low) for name, value in ours.items()}
    assert shares["reordered"] == pytest.approx(float((found.drawn.texts[0] < 0.5).float().mean()), abs=1e-5)
    replaced = shares["replaced"] * int(words.sum())
    assert replaced == pytest.approx(round(replaced), abs=1e-3)
    assert 0.1 < shares["replaced"] < 0.7


def test_padding_changes_nothing(case: Callable[..., Case]) -> None:
    found = case("t5", "text-classification")
    ids, mask = found.batch["ids"], found.batch["mask"]
    with torch.no_grad():
        whole = found.model.texts(ids, mask)
        longer = found.model.texts(F.pad(ids, (0, 5)), F.pad(mask, (0, 5)))
    torch.testing.assert_close(whole, longer, rtol=1e-4, atol=1e-5)
