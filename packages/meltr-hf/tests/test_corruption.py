"""Changed texts: what was changed, and what has to be found out about it."""

from __future__ import annotations

import torch

from meltr_hf.losses.corruption import blank_spans, draw, hide, remove_spans, reorder, replace, words_in

PAD, CLS, SEP, MASK = 0, 2, 3, 4
SPECIAL = (PAD, 1, CLS, SEP, MASK, 50, 51, 52)


def texts(rows: int = 200, length: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts of 0 to 18 words between [CLS] and [SEP], with padding at the end."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 40, (rows, length), generator=generator)
    ends = torch.randint(1, length, (rows,), generator=generator)
    place = torch.arange(length)[None]
    ids[:, 0] = CLS
    ids = torch.where(place == ends[:, None], SEP, torch.where(place > ends[:, None], PAD, ids))
    return ids, (ids != PAD).long()


def rows_of(ids: torch.Tensor, drop: int = PAD) -> list[list[int]]:
    return [[token for token in row if token != drop] for row in ids.tolist()]


def test_words_are_neither_special_nor_padding() -> None:
    ids, mask = texts()
    assert torch.equal(words_in(ids, mask, SPECIAL), ids >= 10)


def test_hidden_tokens_follow_the_rule_of_bert() -> None:
    ids, mask = texts(4000)
    words = words_in(ids, mask, SPECIAL)
    u = draw(ids, torch.Generator().manual_seed(1)).tokens
    changed = hide(ids, mask, words, u[:3], token=MASK, vocabulary=45, rate=0.15)
    chosen = changed.wanted != -100
    assert not (chosen & ~words).any()
    assert torch.equal(changed.wanted[chosen], ids[chosen])
    assert torch.equal(changed.ids[~chosen], ids[~chosen])
    share = chosen.sum() / words.sum()
    masked = (changed.ids[chosen] == MASK).float().mean()
    kept = (changed.ids[chosen] == ids[chosen]).float().mean()
    assert abs(share - 0.15) < 0.01  # 38,000 words: standard deviation 0.002
    assert abs(masked - (0.8 + 0.1 / 45)) < 0.03  # 5,700 chosen ones: 0.005
    assert abs(kept - (0.1 + 0.1 / 45)) < 0.02


def test_replaced_tokens_are_words_of_the_batch_and_are_told_by_comparison() -> None:
    ids, mask = texts(2000)
    words = words_in(ids, mask, SPECIAL)
    u = draw(ids, torch.Generator().manual_seed(1)).tokens
    changed = replace(ids, mask, words, u[:3], rate=0.3)
    assert torch.equal(changed.wanted, torch.where(words, (changed.ids != ids).long(), -100))
    assert torch.equal(changed.ids[~words], ids[~words])
    assert (changed.ids[words] >= 10).all()
    share = changed.wanted[words].float().mean()
    assert abs(share - 0.3 * 29 / 30) < 0.01 * 1.5  # of 30 equally frequent words one is the word itself


def test_reordered_texts_have_the_same_words_in_two_swapped_spans() -> None:
    ids, mask = texts()
    words = words_in(ids, mask, SPECIAL)
    changed = reorder(ids, mask, words, draw(ids, torch.Generator().manual_seed(1)).texts)
    swapped = changed.wanted[:, 0].bool()
    assert 60 < int(swapped.sum()) < 140
    assert torch.equal(changed.ids[~swapped], ids[~swapped])
    assert torch.equal(changed.ids[~words], ids[~words])
    for before, after in zip(rows_of(ids)[:], rows_of(changed.ids), strict=True):
        one, other = before[1:-1], after[1:-1]
        cuts = [number for number in range(len(one) + 1) if one[number:] + one[:number] == other]
        assert cuts, "not two spans of the same words"
    different = [n for n, row in enumerate(rows_of(ids)) if len(set(row)) == len(row)]
    assert all(bool((changed.ids[n] != ids[n]).any()) == bool(swapped[n]) for n in different)
    assert all(not swapped[n] for n in range(len(ids)) if int(words[n].sum()) < 2)


def test_removed_spans_can_be_put_back() -> None:
    """The short text, with what is wanted in the place of every stand-in, is the whole text."""
    ids, mask = texts()
    words = words_in(ids, mask, SPECIAL)
    stand_ins = (50, 51, 52)
    u = draw(ids, torch.Generator().manual_seed(1)).tokens[0]
    changed = remove_spans(ids, words, u, rate=0.3, length=3, stand_ins=stand_ins, end=SEP, pad=PAD)
    spans = 0
    for whole, short, mask_row, wanted in zip(
        rows_of(ids), changed.ids.tolist(), changed.mask.tolist(), rows_of(changed.wanted, -100), strict=True
    ):
        count = sum(token in stand_ins for token in short)
        assert wanted[-2:] == [stand_ins[count], SEP]
        parts: dict[int, list[int]] = {}
        for token in wanted[:-2]:
            if token in stand_ins:
                current = parts.setdefault(token, [])
            else:
                current.append(token)
        assert list(parts) == list(stand_ins[:count])
        assert all(parts.values())
        visible = [token for token, there in zip(short, mask_row, strict=True) if there]
        assert [word for token in visible for word in parts.get(token, [token])] == whole
        assert short[len(visible) :] == [PAD] * (len(short) - len(visible))
        spans += count
    assert spans > 100


def test_blanked_spans_leave_one_mask_each() -> None:
    ids, mask = texts()
    words = words_in(ids, mask, SPECIAL)
    u = draw(ids, torch.Generator().manual_seed(1)).tokens[0]
    changed = blank_spans(ids, mask, words, u, rate=0.3, length=2, token=MASK, pad=PAD)
    assert torch.equal(changed.wanted, torch.where(mask.bool(), ids, -100))
    for whole, short in zip(rows_of(ids), rows_of(changed.ids), strict=True):
        assert short.count(MASK) < len(whole)
        left = iter(whole)
        assert all(token in left for token in short if token != MASK), "words in another order"
        assert [MASK, MASK] not in [short[n : n + 2] for n in range(len(short))]


def test_as_many_tokens_are_in_spans_as_asked() -> None:
    ids = torch.full((400, 50), 10)
    words = torch.ones_like(ids, dtype=torch.bool)
    for length in (1, 3):
        u = torch.rand(400, 50, generator=torch.Generator().manual_seed(length))
        changed = blank_spans(ids, words.long(), words, u, rate=0.2, length=length, token=MASK, pad=PAD)
        kept = (changed.ids == 10).float().mean()
        # The first tokens of a text lie in fewer spans than the others.
        expected = sum(0.8 ** (min(place + 1, length) / length) for place in range(50)) / 50
        assert abs(kept - expected) < 0.015
