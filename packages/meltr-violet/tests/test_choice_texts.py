"""Questions with choices as texts."""

from __future__ import annotations

import pytest
import torch

from meltr.video.text.wordpiece import CLS, PAD, SEP, Tokenizer, read_vocabulary, write_vocabulary
from meltr_violet.data.choice_texts import encode_choices

QUESTION = "What does the woman do 3 times ?"
CHOICES = ("jump", "stage", "roll step", "sway", "count fingers")


@pytest.fixture
def small(tmp_path):
    write_vocabulary(tmp_path / "vocabulary.txt", [QUESTION, *CHOICES, "options: answer: red square"])
    return tmp_path / "vocabulary.txt"


def words(tokenizer: Tokenizer, row: torch.Tensor) -> list[str]:
    names = {number: token for token, number in read_vocabulary(tokenizer.file).items()}
    return [names[int(number)] for number in row if int(number) not in (CLS, SEP, PAD)]


def test_prompt_lists_the_options_and_ends_with_the_choice(small):
    tokenizer = Tokenizer(small, length=40)
    rows = encode_choices(tokenizer, QUESTION, CHOICES)
    text = "what does the woman do 3 times ? options : jump stage roll step sway count fingers answer :"
    for row, choice in zip(rows, CHOICES, strict=True):
        assert words(tokenizer, row) == [*text.split(), *choice.split()]
    plain = encode_choices(tokenizer, QUESTION, CHOICES, style="plain")
    assert " ".join(words(tokenizer, plain[4])) == "what does the woman do 3 times ? count fingers"


def test_a_long_prompt_keeps_its_answers_and_the_released_one_does_not(small):
    tokenizer = Tokenizer(small, length=12)
    rows = encode_choices(tokenizer, QUESTION, CHOICES)
    assert len({tuple(row.tolist()) for row in rows}) == len(CHOICES)
    for row, choice in zip(rows, CHOICES, strict=True):
        assert words(tokenizer, row)[-2 - len(choice.split()) :] == ["answer", ":", *choice.split()]
    released = encode_choices(tokenizer, QUESTION, CHOICES, style="released")
    assert len({tuple(row.tolist()) for row in released}) == 1
    tight = encode_choices(Tokenizer(small, length=4), QUESTION, CHOICES)
    assert tight.shape == (5, 4)
    assert (tight[:, -1] == SEP).all()


def test_released_prompt_glues_the_answer_to_the_last_option(vocabulary_file):
    tokenizer = Tokenizer(vocabulary_file, length=40)
    rows = encode_choices(tokenizer, QUESTION, CHOICES, style="released")
    assert words(tokenizer, rows[0])[-6:] == ["count", "fingers", "##ans", "##wer", ":", "jump"]
    clean = encode_choices(tokenizer, QUESTION, CHOICES)
    assert words(tokenizer, clean[0])[-6:] == ["sway", "count", "fingers", "answer", ":", "jump"]
