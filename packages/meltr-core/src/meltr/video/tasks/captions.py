"""Captioning: BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr of one sentence a video against its references.

All in percent, as papers on video captioning print them: CIDEr of 1.38 is 138. Computed by pycocoevalcap, the code of
the COCO caption evaluation (extra ``captions``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from meltr.errors import UserError, did_you_mean
from meltr.video.tasks import coco_captions as coco

Tokens = Literal["whitespace", "ptb"]
"""How captions are cut into tokens. Scores of the one and of the other cannot be compared.

| value | tokens |
| --- | --- |
| ``whitespace`` | what stands between white space, as it is: case and punctuation count (nlg-eval's corpus scores) |
| ``ptb`` | Penn Treebank tokens in lower case without punctuation, as on COCO; needs Java |
"""

_NAMED = 3


@dataclass(frozen=True)
class CaptionScores:
    """How good captions are.

    Args:
        metrics: ``cider``, ``bleu4``, ``rouge_l``, ``meteor``, ``bleu1``, ``bleu2``, ``bleu3`` in percent; without
            those that were skipped.
        skipped: Metric -> why there is no value.
        count: Number of videos.
        tokens: How the captions were cut, see `Tokens`.
        scorer: Name and version of the code that computed the values.
        cider: Video -> its CIDEr in percent; the corpus' CIDEr is their mean.
        rouge_l: Video -> its ROUGE-L in percent; the corpus' ROUGE-L is their mean.
    """

    metrics: Mapping[str, float]
    skipped: Mapping[str, str]
    count: int
    tokens: Tokens
    scorer: str
    cider: Mapping[str, float] = field(repr=False)
    rouge_l: Mapping[str, float] = field(repr=False)

    def details(self) -> dict[str, Any]:
        """Return what a result must say besides its numbers, for `meltr.context.Evaluation.details`."""
        return {"tokens": self.tokens, "scorer": self.scorer}


def corpus_scores(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokens: Tokens = "whitespace",
    meteor: bool = True,
) -> CaptionScores:
    """Score a corpus.

    An empty hypothesis counts as a caption without any n-gram: 0 for the video, and its references' length in the
    brevity penalty of BLEU. References without a token are left out. Any white space is one space. CIDEr takes its
    document frequencies from `references`: it depends on which videos are scored together, and is 0 for a single one.

    Args:
        hypotheses: Video -> its caption.
        references: Video -> its reference captions, at least one.
        tokens: See `Tokens`.
        meteor: Compute METEOR too, if there is Java; its start takes some seconds.

    Raises:
        UserError: If the two name different videos, a video has no reference, there are no videos, pycocoevalcap is
            missing, `tokens` is unknown, or it is ``ptb`` and there is no Java.
        MeltrError: If the PTB tokenizer fails.
    """
    if tokens not in get_args(Tokens):
        raise UserError(f"there are no tokens {tokens!r}", did_you_mean(tokens, get_args(Tokens)))
    scorer = coco.scorer_version()
    _check_names(hypotheses, references)
    pairs = _tokenized(hypotheses, references, tokens)
    cider, rouge = ([100 * value for value in score(pairs)] for score in (coco.cider, coco.rouge_l))
    bleu = {f"bleu{n}": 100 * value for n, value in enumerate(coco.bleu(pairs), start=1)}
    metrics = {"cider": float(np.mean(cider)), "bleu4": bleu["bleu4"], "rouge_l": float(np.mean(rouge))}
    skipped = {}
    if not meteor:
        skipped["meteor"] = "not asked for"
    else:
        try:
            metrics["meteor"] = 100 * coco.meteor(pairs)
        except coco.MeteorError as error:
            skipped["meteor"] = error.message
    return CaptionScores(
        metrics=metrics | bleu,
        skipped=skipped,
        count=len(pairs),
        tokens=tokens,
        scorer=scorer,
        cider=dict(zip(references, cider, strict=True)),
        rouge_l=dict(zip(references, rouge, strict=True)),
    )


def _check_names(hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not references:
        raise UserError("There are no captions to score: no video has references.", "Choose a split that has some.")
    lacking = [name for name in references if name not in hypotheses]
    if lacking:
        raise UserError(
            f"{_count(lacking)} no hypothesis: {_few(lacking)}.", "Give every video with references a caption, '' too."
        )
    unknown = [name for name in hypotheses if name not in references]
    if unknown:
        raise UserError(f"{_count(unknown)} no references: {_few(unknown)}.", "Score only videos that have some.")


def _tokenized(
    hypotheses: Mapping[str, str], references: Mapping[str, Sequence[str]], tokens: Tokens
) -> list[tuple[str, list[str]]]:
    """Return hypothesis and references of each video, in the order of `references`."""
    texts = [text for name, many in references.items() for text in (hypotheses[name], *many)]
    cut = iter(coco.ptb_tokens(texts) if tokens == "ptb" else [" ".join(text.split()) for text in texts])
    pairs = [(next(cut), [text for text in [next(cut) for _ in many] if text]) for many in references.values()]
    bare = [name for name, (_, many) in zip(references, pairs, strict=True) if not many]
    if bare:
        raise UserError(
            f"{_count(bare)} no reference with a word in it: {_few(bare)}.",
            "Give each a reference caption, or leave it out.",
        )
    return pairs


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} video has" if len(names) == 1 else f"{len(names):,} videos have"


def _few(names: Iterable[str]) -> str:
    every = [repr(name) for name in names]
    return ", ".join(every[:_NAMED]) + (", ..." if len(every) > _NAMED else "")
