"""Parts of an adapter's hook `predict` that all backbones share. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meltr.context import Prediction, PredictRequest, RunContext
from meltr.errors import UserError
from meltr.video.frames.media_files import kind

SHOWN = 5
"""Number of answers shown in a message."""


class Use(NamedTuple):
    """The requests that runs of a task accept.

    Args:
        does: What such a run does, in a few words.
        ask: Example arguments of ``meltr predict``.
        needs: The required argument, ``question`` or ``search``; empty: neither.
        choosing: True if it can choose among given answers.
    """

    does: str
    ask: str
    needs: str = ""
    choosing: bool = False


USES = {
    "qa": Use("answers questions about videos", "--video FILE --question 'what is the man doing?'", "question", True),
    "retrieval": Use("finds videos by a text", "--search 'a man plays the guitar' --videos DIR", "search"),
    "action": Use("names the action of a video", "--video FILE", choosing=True),
    "captioning": Use("describes videos", "--video FILE"),
    "sentiment": Use("says how positive the speaker of a video is", "--video FILE"),
}
"""Task -> the requests that its runs accept."""


def check_request(request: PredictRequest, context: RunContext, *, must_choose: bool = False) -> None:
    """Check that a request has exactly the arguments that the run's task can use.

    Args:
        request: The request.
        context: The run.
        must_choose: True if the run cannot answer without choices.

    Raises:
        UserError: If an argument cannot be used, or is missing.
    """
    use = USES[context.spec.task]
    hint = f"For example: meltr predict {context.run_dir} {use.ask}{' --choices a,b,c' if must_choose else ''}"
    given = {"question": request.question, "search": request.search, "choices": request.choices or None}
    given["text"] = request.text or None
    useful = {use.needs, "choices"} if use.choosing else {use.needs}
    for name, value in given.items():
        if value is not None and name not in useful:
            raise UserError(f"This run {use.does}: it cannot use --{name}.", hint)
    if use.needs and given[use.needs] is None:
        raise UserError(f"This run {use.does}: it needs --{use.needs}.", hint)
    if must_choose and not request.choices:
        raise UserError("This run chooses among given answers: it needs --choices.", hint)
    if not request.media:
        raise UserError(f"This run {use.does}: it needs at least one video or image.", hint)


def chosen_answers(request: PredictRequest, names: Sequence[str]) -> list[int]:
    """Return the indices of the allowed answers: those of the choices, or all.

    Args:
        request: The request.
        names: The answers that the run knows.

    Raises:
        UserError: If a choice is not among the answers.
    """
    unknown = [choice for choice in request.choices if choice not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=SHOWN, cutoff=0.0)
        raise UserError(
            f"{unknown[0]!r} is not among the {len(names):,} answers that this run knows.",
            f"Closest answers: {', '.join(near)}. Without --choices, all answers are tried.",
        )
    return [names.index(choice) for choice in request.choices] or list(range(len(names)))


def answer_rows(
    files: Sequence[Path], probabilities: Sequence[Sequence[float]], names: Sequence[str], *, column: str, top: int
) -> list[dict[str, Any]]:
    """Return the `top` most probable answers for each file, best first; in a tie, the first answer.

    Args:
        files: The N files.
        probabilities: Probability of each answer for each file, (N, A).
        names: The A answers.
        column: Name of the column with the answer.
        top: Number of answers per file.
    """
    rows = []
    for file, row in zip(files, probabilities, strict=True):
        best = sorted(range(len(row)), key=lambda place: -row[place])[:top]
        rows += [{kind(file): file, column: names[place], "probability": row[place]} for place in best]
    return rows


def ranked_files(scored: Iterable[tuple[float, Path]], top: int, *, remark: str = "") -> Prediction:
    """Return the `top` files with the highest scores, best first; in a tie, the first given.

    Args:
        scored: (score, file) pairs.
        top: Number of files.
        remark: Text appended to the description of the rows.
    """
    found = sorted(scored, key=lambda pair: -pair[0])
    rows = tuple({kind(file): file, "score": score} for score, file in found[:top])
    return Prediction(rows, f"best of {len(found):,} files{remark}")
