"""Metrics of the task ``text-to-text``, and the rows of predictions.

chrF and BLEU are those of sacreBLEU (extra ``generation``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from meltr.context import Evaluation, Prediction
from meltr.errors import UserError
from meltr.texts.corpus import TextCorpus, TextItem

INSTALL = "Install it: pip install 'meltr-core[generation]'"


def written(corpus: TextCorpus, items: Sequence[TextItem], outputs: Sequence[str]) -> Evaluation:
    """Return the metrics of the task ``text-to-text``, in percent, a row per text, and two baselines.

    The baselines write the text itself, and the most frequent target of training.

    Args:
        corpus: Has the targets of training.
        items: The texts, with their targets.
        outputs: What the model wrote for every text.

    Raises:
        UserError: If sacreBLEU is not installed.
    """
    targets = [item.target for item in items]
    most = Counter(item.target for item in corpus.splits["train"]).most_common(1)[0][0]
    rows = tuple(
        {"id": item.id, "text": item.text, "target": item.target, "predicted": output}
        for item, output in zip(items, outputs, strict=True)
    )
    baselines = {
        "the text itself": writing_metrics([item.text for item in items], targets),
        f"always {most[:40]!r}": writing_metrics([most] * len(items), targets),
    }
    metrics = writing_metrics(outputs, targets)
    return Evaluation(metrics=metrics, count=len(items), predictions=rows, baselines=baselines)


def writing_metrics(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Return the metrics of the task ``text-to-text`` in percent.

    ``chrf`` and ``bleu`` are corpus scores with sacreBLEU's defaults (chrF2; BLEU-4 with the tokens of mteval-v13a).
    ``exact_match`` compares the texts without white space at their ends.

    Args:
        outputs: What was written.
        targets: What is right, one for each output.

    Raises:
        UserError: If sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise UserError("the task text-to-text needs the library sacrebleu", INSTALL) from error
    exact = sum(one.strip() == other.strip() for one, other in zip(outputs, targets, strict=True))
    return {
        "chrf": CHRF().corpus_score(outputs, [targets]).score,
        "bleu": BLEU().corpus_score(outputs, [targets]).score,
        "exact_match": 100 * exact / len(targets),
    }


def writings(texts: Sequence[str], outputs: Sequence[Sequence[str]]) -> Prediction:
    """Return what was written for every text, best first.

    Args:
        texts: The texts.
        outputs: One or more outputs for each.
    """
    rows = tuple(
        {"text": text, "output": output} for text, found in zip(texts, outputs, strict=True) for output in found
    )
    return Prediction(rows, what="texts written")
