"""Captioning metrics: BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr of one sentence per video against its references.

All values are in percent, as papers on video captioning report them: a CIDEr of 1.38 is 138. They are computed by
pycocoevalcap, the code of the COCO caption evaluation (extra ``captions``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from meltr.errors import UserError, did_you_mean
from meltr.video.tasks import coco_captions as coco

Tokens = Literal["whitespace", "ptb"]
"""How captions are split into tokens. Scores with different tokens cannot be compared.

| value | tokens |
| --- | --- |
| ``whitespace`` | split at white space, unchanged: case and punctuation count (nlg-eval's corpus scores) |
| ``ptb`` | lower-case Penn Treebank tokens without punctuation, as for COCO; needs Java |
"""

_NAMED = 3


@dataclass(frozen=True)
class CaptionScores:
    """Scores of captions.

    Args:
        metrics: ``cider``, ``bleu4``, ``rouge_l``, ``meteor``, ``bleu1``, ``bleu2``, ``bleu3`` in percent, without
            skipped metrics.
        skipped: Metric -> why it was skipped.
        count: Number of videos.
        tokens: How the captions were tokenised, see `Tokens`.
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
        """Return the details of a result besides its metrics, for `meltr.context.Evaluation.details`."""
        return {"tokens": self.tokens, "scorer": self.scorer}


def corpus_scores(
    hypotheses: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tokens: Tokens = "whitespace",
    meteor: bool = True,
) -> CaptionScores:
    """Score a corpus.

    An empty hypothesis counts as a caption without n-grams: it scores 0, and its references' length counts in the
    brevity penalty of BLEU. References without tokens are skipped. White space is normalised to single spaces. CIDEr
    takes its document frequencies from `references`. So it depends on which videos are scored together, and is 0 for a
    single video.

    Args:
        hypotheses: Video -> its caption.
        references: Video -> its reference captions, at least one.
        tokens: See `Tokens`.
        meteor: Compute METEOR too, if Java is installed; it takes some seconds to start.

    Raises:
        UserError: If the two hold different videos, a video has no reference, there are no videos, pycocoevalcap is
            missing, `tokens` is unknown, or `tokens` is ``ptb`` and Java is missing.
        MeltrError: If the PTB tokenizer fails.
    """
    if tokens not in get_args(Tokens):
        raise UserError(f"unknown tokens {tokens!r}", did_you_mean(tokens, get_args(Tokens)))
    scorer = coco.scorer_version()
    _check_names(hypotheses, references)
    pairs = _tokenized(hypotheses, references, tokens)
    cider, rouge = ([100 * value for value in score(pairs)] for score in (coco.cider, coco.rouge_l))
    bleu = {f"bleu{n}": 100 * value for n, value in enumerate(coco.bleu(pairs), start=1)}
    metrics = {"cider": float(np.mean(cider)), "bleu4": bleu["bleu4"], "rouge_l": float(np.mean(rouge))}
    skipped = {}
    if not meteor:
        skipped["meteor"] = "not requested"
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
            f"{_count(lacking)} no hypothesis: {_few(lacking)}.",
            "Give every video with references a caption, which may be ''.",
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
            "Give each of them a reference caption, or remove it.",
        )
    return pairs


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} video has" if len(names) == 1 else f"{len(names):,} videos have"


def _few(names: Iterable[str]) -> str:
    every = [repr(name) for name in names]
    return ", ".join(every[:_NAMED]) + (", ..." if len(every) > _NAMED else "")
