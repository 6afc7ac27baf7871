"""The caption scorers of pycocoevalcap (extra ``captions``), one function per metric, and its PTB tokenizer.

Values are those of the package: 1 is 100 percent. The package is imported on first use, because it is an extra. METEOR
and the tokenizer are Java programs; BLEU, ROUGE-L and CIDEr need no Java. Parts of the package have their own licences:
the file that computes BLEU is not for commercial use.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import subprocess
import threading
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from meltr.errors import MeltrError, UserError

Pairs = Sequence[tuple[str, Sequence[str]]]
"""(hypothesis, references) of each video; tokens are separated by single spaces."""

NO_JAVA = "no Java"
"""Why METEOR is skipped if Java is missing."""

_TOKENIZER = "stanford-corenlp-3.4.1.jar"
_PUNCTUATION = frozenset(("''", "'", "``", "`", *".?!,:;-", "--", "..."))
"""Tokens that the COCO caption evaluation (Chen et al., 2015) removes. Brackets are kept, as ``-lrb-``."""


class MeteorError(MeltrError):
    """METEOR cannot be computed; the message says why in a few words."""


def scorer_version() -> str:
    """Return the name and version of the package.

    Raises:
        UserError: If it is not installed.
    """
    _module("pycocoevalcap")
    return f"pycocoevalcap {version('pycocoevalcap')}"


def bleu(pairs: Pairs) -> list[float]:
    """Return BLEU-1 to BLEU-4 of a corpus; the brevity penalty uses the reference of the closest length."""
    references, hypotheses = _tables(pairs)
    scorer = _module("pycocoevalcap.bleu.bleu").Bleu(4)
    return [float(value) for value in scorer.compute_score(references, hypotheses, verbose=0)[0]]


def rouge_l(pairs: Pairs) -> list[float]:
    """Return ROUGE-L of each video: F with beta = 1.2 of the best precision and the best recall over its references."""
    references, hypotheses = _tables(pairs)
    return [
        float(value) for value in _module("pycocoevalcap.rouge.rouge").Rouge().compute_score(references, hypotheses)[1]
    ]


def cider(pairs: Pairs) -> list[float]:
    """Return CIDEr-D of each video (Vedantam et al., CVPR 2015), between 0 and 10.

    Document frequencies come from the given references, so a single video always scores 0.
    """
    references, hypotheses = _tables(pairs)
    return [
        float(value) for value in _module("pycocoevalcap.cider.cider").Cider().compute_score(references, hypotheses)[1]
    ]


def meteor(pairs: Pairs) -> float:
    """Return METEOR 1.5 of a corpus. It takes some seconds to start.

    Raises:
        MeteorError: If Java is missing, or the program fails.
    """
    if shutil.which("java") is None:
        raise MeteorError(NO_JAVA)
    clean = [(_without_bars(hypothesis), [_without_bars(each) for each in many]) for hypothesis, many in pairs]
    references, hypotheses = _tables(clean)
    scorer = _module("pycocoevalcap.meteor.meteor").Meteor()
    process: subprocess.Popen[bytes] = scorer.meteor_p
    try:
        return float(scorer.compute_score(references, hypotheses)[0])
    except (OSError, ValueError) as error:
        raise MeteorError(f"Java failed: {_last_words(process) or error}") from error
    finally:
        scorer.lock = threading.Lock()  # if compute_score fails, the old lock stays held, and __del__ waits for it
        _stop(process)


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Return lower-case PTB tokens without punctuation, separated by spaces, as in the COCO caption evaluation.

    Raises:
        UserError: If Java is missing.
        MeltrError: If the tokenizer fails.
    """
    java = shutil.which("java")
    if java is None:
        raise UserError(
            "The PTB tokenizer is a Java program, and Java is not installed.",
            "Install a Java runtime (17 is fine), or use whitespace tokens.",
        )
    if not texts:
        return []
    jar = Path(_module("pycocoevalcap.tokenizer").__path__[0]) / _TOKENIZER
    program = ("-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
    lines = "".join(f"{' '.join(text.split())}\n" for text in texts)
    command = (java, "-Dfile.encoding=UTF-8", *program, "-encoding", "UTF-8")
    done = subprocess.run(command, input=lines.encode(), capture_output=True)  # noqa: S603 - no part of it is input
    tokenized = done.stdout.decode(errors="replace").split("\n")[:-1]
    if done.returncode or len(tokenized) != len(texts):
        raise MeltrError(
            f"The PTB tokenizer returned {len(tokenized)} lines for {len(texts)} captions (exit status "
            f"{done.returncode}): {_last_line(done.stderr)}",
            "Run `java -version` to check that Java works, or use whitespace tokens.",
        )
    return [" ".join(token for token in line.split() if token not in _PUNCTUATION) for line in tokenized]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Caption metrics need {error.name}, which is not installed.",
            "Install it with: pip install 'meltr-core[captions]'",
        ) from error


def _tables(pairs: Pairs) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and hypotheses by number, as the package expects them."""
    return {n: list(many) for n, (_, many) in enumerate(pairs)}, {n: [each] for n, (each, _) in enumerate(pairs)}


def _without_bars(text: str) -> str:
    """Return `text` without ``|||``, which separates the fields of METEOR's protocol."""
    return " ".join(text.replace("|||", " ").split())


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _last_words(process: subprocess.Popen[bytes]) -> str:
    process.kill()
    return _last_line(process.stderr.read()) if process.stderr is not None else ""


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or [""])[-1].strip()
