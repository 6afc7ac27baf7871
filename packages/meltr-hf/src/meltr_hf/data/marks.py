"""The tokens of a tokenizer that do not stand for words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meltr_hf.names import Kind

MOST_SENTINELS = 100


@dataclass(frozen=True)
class Marks:
    """Ids of tokens that do not stand for words.

    Args:
        special: All of them.
        pad: The token after the end of a text.
        end: The token that ends a text; None: none.
        mask: The token that stands for a hidden one; None: none.
        sentinels: Tokens that stand for the first, second, ... removed span, as T5 has them.
        vocabulary: V, the number of all tokens.
    """

    special: tuple[int, ...]
    pad: int
    end: int | None
    mask: int | None
    sentinels: tuple[int, ...]
    vocabulary: int

    def hides(self, kind: Kind) -> bool:
        """Tell whether a model of this kind has the tokens that its own pre-training objective needs."""
        if kind == "encoder":
            return self.mask is not None
        return kind == "decoder" or self.mask is not None or (bool(self.sentinels) and self.end is not None)


def marks_of(tokenizer: Any) -> Marks:
    """Return the marks of a tokenizer of transformers, which gets its end as padding if it has none."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    ids = [tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>") for number in range(MOST_SENTINELS)]
    known = [each for each in ids if each is not None and each != tokenizer.unk_token_id]
    return Marks(
        special=tuple(sorted({*tokenizer.all_special_ids, *known})),
        pad=tokenizer.pad_token_id,
        end=tokenizer.eos_token_id,
        mask=tokenizer.mask_token_id,
        sentinels=tuple(known),
        vocabulary=len(tokenizer),
    )
