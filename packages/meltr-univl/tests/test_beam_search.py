"""Beam search: against a search over everything, and against one that decodes all words anew at every step."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from meltr.errors import UserError
from meltr_univl.model.beam_search import NOTHING, beam_search
from meltr_univl.model.config import ModelConfig
from meltr_univl.model.decoder import Kept
from meltr_univl.model.univl import Univl

CLS, SEP = 101, 102
CONFIG = ModelConfig(
    width=16,
    heads=2,
    feedforward=32,
    text_layers=1,
    visual_layers=1,
    cross_layers=1,
    decoder_layers=2,
    vocabulary=104,
    text_positions=12,
    visual_positions=8,
    cross_positions=20,
    video_dim=6,
    dropout=0.0,
    spread=0.3,
)


@pytest.fixture(params=["fused", "eager"])
def model(request: pytest.FixtureRequest) -> Univl:
    torch.manual_seed(3)
    made = Univl(replace(CONFIG, attention=request.param), parts=("decoder",)).double().eval()
    with torch.no_grad():
        assert made.decoder is not None
        bias = made.decoder.classifier.cls.predictions.bias
        bias.fill_(-30.0)  # a vocabulary of four words and [SEP]
        bias[[5, 6, 7, 8, SEP]] = torch.tensor([0.2, 0.0, 0.1, -0.2, 0.3], dtype=torch.float64)
    return made


@pytest.fixture
def memory() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return 2 * torch.randn(3, 6, 16, generator=generator, dtype=torch.float64), mask


@torch.no_grad()
def log_probabilities(model: Univl, tokens: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """Of the next word of each row, all words decoded anew."""
    many = len(tokens)
    logits = model.decode(tokens, torch.ones_like(tokens), memory.expand(many, -1, -1), mask.expand(many, -1))
    return logits[:, -1].log_softmax(-1)


def plainly(
    model: Univl, memory: Tensor, mask: Tensor, *, beams: int, length: int
) -> tuple[list[list[int]], list[float]]:
    """The rules, for one example, without anything kept."""
    tokens, sums = torch.tensor([[CLS]]), torch.zeros(1, dtype=torch.float64)
    for _ in range(length):
        totals = sums[:, None] + log_probabilities(model, tokens, memory, mask)
        sums, places = totals.flatten().topk(beams)
        tokens = torch.cat([tokens[places // totals.shape[1]], (places % totals.shape[1])[:, None]], 1)
        if int(tokens[0, -1]) == SEP:
            break
    return tokens[:, 1:].tolist(), sums.tolist()


@pytest.mark.parametrize(("beams", "length"), [(1, 7), (3, 7), (5, 4), (5, 1)])
def test_nothing_changes_by_keeping_keys_and_values(
    model: Univl, memory: tuple[Tensor, Tensor], beams: int, length: int
) -> None:
    found = beam_search(model, *memory, beams=beams, length=length)
    assert found.ids.shape == (3, beams, length)
    for row in range(3):
        tokens, sums = plainly(model, memory[0][row], memory[1][row], beams=beams, length=length)
        ours = [[number for number in line if number != NOTHING] for line in found.ids[row].tolist()]
        assert ours == tokens
        torch.testing.assert_close(found.scores[row], torch.tensor(sums, dtype=torch.float64))


@pytest.mark.parametrize("ending", [-4.0, 0.3, 0.8, 25.0])
def test_a_beam_that_cuts_nothing_finds_the_best_of_all_sentences(
    model: Univl, memory: tuple[Tensor, Tensor], ending: float
) -> None:
    """All sentences of the five words, scored whole: those of the first length at which one that just ends is best."""
    with torch.no_grad():
        assert model.decoder is not None
        model.decoder.classifier.cls.predictions.bias[SEP] = ending
    found = beam_search(model, *memory, beams=104, length=3)
    for row in range(3):
        for length in (1, 2, 3):
            sentences, scores = every_sentence(model, memory[0][row], memory[1][row], length)
            if int(sentences[0, -1]) == SEP:
                break
        most = min(len(sentences), 104)
        assert (found.ids[row, :, length:] == NOTHING).all()
        assert found.ids[row, :most, :length].tolist() == sentences[:most].tolist()
        torch.testing.assert_close(found.scores[row, :most], scores[:most])


@torch.no_grad()
def every_sentence(model: Univl, memory: Tensor, mask: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return all sentences of so many of the five words, (N, length), best first, and their log-probabilities (N,)."""
    sentences = torch.tensor(list(product((5, 6, 7, 8, SEP), repeat=length)))
    many = len(sentences)
    given = torch.cat([torch.full((many, 1), CLS), sentences[:, :-1]], 1)
    logits = model.decode(given, torch.ones_like(given), memory.expand(many, -1, -1), mask.expand(many, -1))
    scores = logits.log_softmax(-1).gather(2, sentences[..., None])[..., 0].sum(1)
    order = scores.argsort(descending=True)
    return sentences[order], scores[order]


def test_sums_are_exact_where_the_decoder_is_in_half_precision(model: Univl, memory: tuple[Tensor, Tensor]) -> None:
    seen, step = [], model.float().decode_step
    with torch.no_grad():
        assert model.decoder is not None
        model.decoder.classifier.cls.predictions.bias[SEP] = -4.0

    def watched(ids: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        logits, kept = step(ids, kept)
        seen.append(logits.float().log_softmax(-1).amax((1, 2)))
        return logits, kept

    model.decode_step = watched  # type: ignore[method-assign]
    with torch.autocast("cpu", torch.bfloat16):
        found = beam_search(model, memory[0][:1].float(), memory[1][:1], beams=1, length=10)
    assert len(seen) == 10
    torch.testing.assert_close(found.scores[:, 0], torch.stack(seen).sum(0))


def test_it_ends_when_the_best_has_just_ended(model: Univl, memory: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        assert model.decoder is not None
        model.decoder.classifier.cls.predictions.bias[SEP] = 25.0
    found = beam_search(model, *memory, beams=3, length=9)
    assert (found.ids[:, 0, 0] == SEP).all()
    assert (found.ids[:, :, 1:] == NOTHING).all()


def test_examples_do_not_see_each_other(model: Univl, memory: tuple[Tensor, Tensor]) -> None:
    together = beam_search(model, *memory, beams=3, length=6)
    for row in range(3):
        alone = beam_search(model, memory[0][row : row + 1], memory[1][row : row + 1], beams=3, length=6)
        assert torch.equal(alone.ids[0], together.ids[row])
        torch.testing.assert_close(alone.scores[0], together.scores[row])


def test_more_hypotheses_than_words_are_refused(model: Univl, memory: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="cannot keep 105 hypotheses: the vocabulary has 104 tokens"):
        beam_search(model, *memory, beams=105, length=2)


def test_no_example_at_all(model: Univl) -> None:
    found = beam_search(model, torch.zeros(0, 4, 16, dtype=torch.float64), torch.zeros(0, 4), beams=2, length=3)
    assert found.ids.shape == (0, 2, 3)
