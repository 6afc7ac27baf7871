"""Masked language modelling: frequencies, and whole words against a plain loop over shuffled groups."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations

import pytest
import torch
from torch import Tensor

from meltr.metrics.classification import IGNORED
from meltr.video.text.masking import choose, choose_words, normal_tokens
from meltr_allinone.losses.draws import mask_texts

PAD, CLS, SEP, MASK = 0, 101, 102, 103
V = 400


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(words: int, length: int = 12) -> list[int]:
    return [CLS, *range(200, 200 + words), SEP] + [PAD] * (length - words - 2)


def within(seen: int, count: int, probability: float) -> bool:
    return abs(seen - count * probability) < 5.5 * math.sqrt(count * probability * (1 - probability))


def test_tokens_are_chosen_independently():
    chosen = choose(normal_tokens(torch.tensor([text(4)] * 40_000)), generator=generator())
    assert not chosen[:, 0].any()
    assert not chosen[:, 5:].any()
    patterns = Counter(map(tuple, chosen[:, 1:5].tolist()))
    assert len(patterns) == 16
    for pattern, seen in patterns.items():
        assert within(seen, 40_000, 0.15 ** sum(pattern) * 0.85 ** (4 - sum(pattern)))


@pytest.mark.parametrize("whole", [False, True])
def test_what_becomes_of_chosen_tokens(whole):
    ids = torch.tensor([text(10)] * 20_000)
    continues = torch.zeros_like(ids, dtype=torch.bool) if whole else None
    masked = mask_texts(ids, vocabulary=V, generator=generator(), continues=continues)
    chosen = masked.labels != IGNORED
    assert torch.equal(masked.labels[chosen], ids[chosen])
    assert torch.equal(masked.ids[~chosen], ids[~chosen])
    hidden, count = masked.ids[chosen], int(chosen.sum())
    same, mask = hidden == ids[chosen], hidden == MASK
    assert within(int(mask.sum()), count, 0.8 + 0.1 / V)
    assert within(int(same.sum()), count, 0.1 + 0.1 / V)
    other = hidden[~same & ~mask]
    assert other.min() < 20
    assert other.max() >= V - 20
    assert other.max() < V
    low = int((other < V // 2).sum())
    assert within(low, len(other), 0.5)


@pytest.mark.parametrize("whole", [False, True])
def test_a_text_without_words_is_left_alone(whole):
    ids = torch.tensor([text(0), text(10)])
    continues = torch.zeros_like(ids, dtype=torch.bool) if whole else None
    for seed in range(20):
        masked = mask_texts(ids, vocabulary=V, generator=generator(seed), continues=continues)
        assert torch.equal(masked.ids[0], ids[0])
        assert (masked.labels[0] == IGNORED).all()


def test_a_replayed_generator_gives_the_same_masks_on_any_text_of_the_shape():
    """The number of draws depends on shapes alone: what is drawn next is the same whatever the texts are."""
    following = []
    for words in (0, 3, 10):
        source = generator(3)
        ids = torch.tensor([text(words)] * 4)
        first = mask_texts(ids, vocabulary=V, generator=source, continues=ids < 0)
        following.append(torch.rand(3, generator=source))
        again = mask_texts(ids, vocabulary=V, generator=generator(3), continues=ids < 0)
        assert torch.equal(first.ids, again.ids)
        assert torch.equal(first.labels, again.labels)
    assert torch.equal(following[0], following[1])
    assert torch.equal(following[0], following[2])


# Whole words

WORDS = [[1], [2, 3], [4], [5, 6, 7]]
"""Places of the words of a text of seven tokens; then [SEP] and three [PAD]."""


def split_text() -> tuple[Tensor, Tensor]:
    ids = torch.tensor(text(7))
    continues = torch.zeros(12, dtype=torch.bool)
    for word in WORDS:
        continues[word[1:]] = True
    return ids, continues


def by_loop(order: list[list[int]], budget: int, ids: Tensor) -> frozenset[int]:
    """The collator of transformers 4.2.1, in words: groups in random order, skipping those that do not fit."""
    taken: list[int] = []
    for group in order:
        if len(taken) >= budget:
            break
        if len(taken) + len(group) <= budget:
            taken += group
    return frozenset(place for place in taken if ids[place] != PAD)


def test_whole_words_are_chosen_as_by_a_loop_over_shuffled_groups():
    """The distribution over sets of tokens is that of all orders of the groups, [PAD] being groups too."""
    ids, continues = split_text()
    groups = WORDS + [[place] for place in range(9, 12)]
    expected = Counter(by_loop(list(order), 2, ids) for order in permutations(groups))
    orders = expected.total()
    count = 40_000
    chosen = choose_words(ids.expand(count, 12), continues.expand(count, 12), generator=generator())
    seen = Counter(frozenset(row.nonzero()[:, 0].tolist()) for row in torch.unique(chosen, dim=0))
    assert set(seen) == set(expected)
    weights = 2 ** torch.arange(12)
    codes = Counter((chosen.long() @ weights).tolist())
    for places, ways in expected.items():
        assert within(codes[sum(2**place for place in places)], count, ways / orders)


def test_a_text_may_start_with_a_continuation():
    """It has no word before it: it is a word of its own, and never part of [CLS]."""
    ids = torch.tensor([[CLS, 200, 201, SEP]]).expand(2000, 4)
    continues = torch.tensor([[False, True, False, False]]).expand(2000, 4)
    chosen = choose_words(ids, continues, generator=generator())
    assert (chosen.sum(1) == 1).all()
    assert within(int(chosen[:, 1].sum()), 2000, 0.5)


@pytest.mark.parametrize(("length", "budget"), [(4, 1), (10, 2), (12, 2), (24, 4), (40, 6)])
def test_a_full_text_loses_the_whole_budget(length, budget):
    ids = torch.tensor([[CLS, *range(200, 198 + length), SEP]] * 50)
    chosen = choose_words(ids, torch.zeros_like(ids, dtype=torch.bool), generator=generator())
    assert (chosen.sum(1) == budget).all()
