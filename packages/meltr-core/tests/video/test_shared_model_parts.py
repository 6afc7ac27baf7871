"""What the models of several video backbones share: losses by name, heads, sizes of frames, parts of BERT."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import torch
from pydantic import Field, ValidationError
from transformers import BertConfig, BertForMaskedLM

from meltr.specs import Info
from meltr.video.adapter.limits import check_heads
from meltr.video.losses import wanted_losses
from meltr.video.options import multiple_of
from meltr.video.text.bert import Pooler, TiedHead


def test_only_the_wanted_losses_are_computed_in_their_order() -> None:
    computed: list[str] = []
    values = {"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(3.0)}

    def maker(name: str) -> Any:
        return lambda: computed.append(name) or values[name]

    makers = {name: maker(name) for name in values}
    assert list(wanted_losses(makers, ("c", "a")).items()) == [("c", values["c"]), ("a", values["a"])]
    assert computed == ["c", "a"]
    with pytest.raises(ValueError, match=r"unknown losses \['d'\]: choose from \('a', 'b', 'c'\)"):
        wanted_losses(makers, ("a", "d"))
    assert computed == ["c", "a"]


@pytest.mark.parametrize(("heads", "answers"), [(("mlm", "masked"), 0), (("answer",), 0)])
def test_heads_that_a_model_cannot_have(heads: tuple[str, ...], answers: int) -> None:
    with pytest.raises(ValueError, match=r"choose heads from .'mlm', 'answer'., and give 'answer' its classes"):
        check_heads(heads, ("mlm", "answer"), answers)
    check_heads(("mlm", "answer"), ("mlm", "answer"), 1)


def test_an_option_that_has_to_be_a_multiple() -> None:
    class Options(Info):
        side: Annotated[int, multiple_of(16, "the side of a patch")] = Field(224, ge=16)

    assert (Options().side, Options(side=48).side) == (224, 48)
    with pytest.raises(ValidationError, match="side=50 is not a multiple of 16, the side of a patch"):
        Options(side=50)
    with pytest.raises(ValidationError, match="greater than or equal to 16"):
        Options(side=0)


def test_the_parts_are_those_of_bert() -> None:
    torch.manual_seed(0)
    sizes = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    bert = BertForMaskedLM(sizes).eval()
    states, words = torch.randn(2, 3, 8), bert.bert.embeddings.word_embeddings.weight
    head = TiedHead(sizes, 30)
    head.load_state_dict(bert.cls.predictions.state_dict(), strict=False)
    torch.nn.init.normal_(head.bias)
    with torch.no_grad():
        bert.cls.predictions.bias.copy_(head.bias)
    torch.testing.assert_close(head(states, words), bert.cls(states))
    pooler = Pooler(8)
    expected = torch.tanh(states[:, 0] @ pooler.dense.weight.T + pooler.dense.bias)
    torch.testing.assert_close(pooler(states), expected)
