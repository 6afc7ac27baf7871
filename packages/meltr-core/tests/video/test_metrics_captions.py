"""Caption metrics against published values, closed forms, and formulas written out here."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from importlib.util import find_spec
from itertools import chain

import numpy as np
import pytest

from meltr.errors import MeltrError, UserError
from meltr.video.tasks import coco_captions as coco
from meltr.video.tasks.captions import corpus_scores
from places import shared

NAMES = {"BLEU-1": "bleu1", "BLEU-2": "bleu2", "BLEU-3": "bleu3", "BLEU-4": "bleu4", "ROUGE_L": "rouge_l"}
NAMES |= {"METEOR": "meteor", "CIDEr": "cider"}

needs_scorer = pytest.mark.skipif(find_spec("pycocoevalcap") is None, reason="no pycocoevalcap")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java")

pytestmark = needs_scorer


def scores(hypotheses, references, **options):
    return corpus_scores(hypotheses, references, **({"meteor": False} | options))


def numbered(texts):
    return {str(number): text for number, text in enumerate(texts)}


def known(name):
    file = shared("data", "metric_reference", name)
    return json.loads(
        gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes(), parse_float=Decimal
    )


# Published values


def agrees(metrics, expected):
    """To one unit of the last digit that is given: some are rounded, some cut."""
    for name, value in expected.items():
        if NAMES[name] in metrics:
            unit = 10.0 ** value.as_tuple().exponent if value else 0
            assert metrics[NAMES[name]] / 100 == pytest.approx(float(value), abs=unit, rel=0), name


@pytest.mark.slow
@needs_java
def test_the_worked_example_of_nlg_eval_has_its_published_values():
    example = known("nlg_eval_example.json")
    found = corpus_scores(numbered(example["hyp"]), numbered(example["refs"]))
    assert set(found.metrics) == set(NAMES.values())
    agrees(found.metrics, example["expected"])


def test_its_single_sentence_has_them_too():
    single = known("nlg_eval_example.json")["single"]
    agrees(scores({"one": single["hyp"]}, {"one": single["refs"]}).metrics, single["expected"])


@pytest.mark.parametrize("meteor", [False, pytest.param(True, marks=[pytest.mark.slow, needs_java])])
def test_human_captions_of_msvd_have_the_values_of_the_coco_code(meteor):
    sample = known("msvd_human_leave_one_out.json.gz")
    items = sample["items"]
    found = corpus_scores(
        {item["id"]: item["hyp"] for item in items}, {item["id"]: item["refs"] for item in items}, meteor=meteor
    )
    assert ("meteor" in found.metrics) is meteor
    for name, value in found.metrics.items():
        expected = next(sample["expected_corpus"][key] for key, own in NAMES.items() if own == name)
        assert value == pytest.approx(100 * float(expected), rel=1e-12), name
    for item in items:
        assert found.cider[item["id"]] == pytest.approx(100 * float(item["cider"]), rel=1e-12)
        assert found.rouge_l[item["id"]] == pytest.approx(100 * float(item["rouge_l"]), rel=1e-12)


# Closed forms


def test_captions_that_repeat_a_reference_are_perfect():
    texts = ["a man slices an onion", "two dogs run over grass", "the child sings a song"]
    found = scores(numbered(texts), numbered([[text, "something else is here"] for text in texts]))
    for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l"):
        assert found.metrics[name] == pytest.approx(100, abs=1e-5)


def test_the_only_reference_repeated_has_the_highest_cider():
    texts = ["a man slices an onion", "two dogs run over grass", "the child sings a song"]
    assert scores(numbered(texts), numbered([[text] for text in texts])).metrics["cider"] == pytest.approx(1000)


def test_bleu_is_the_geometric_mean_of_clipped_precisions_times_the_brevity_penalty():
    # 1-grams: the, cat, sat (a third "the" is clipped): 5 of 6; 2-grams: "the cat", "cat sat", "on the": 3 of 5.
    hypotheses, references = {"v": "the the cat sat on the"}, {"v": ["the cat sat down on the mat", "x"]}
    penalty = math.exp(1 - 7 / 6)
    found = scores(hypotheses, references).metrics
    assert found["bleu1"] == pytest.approx(100 * penalty * 5 / 6, rel=1e-6)
    assert found["bleu2"] == pytest.approx(100 * penalty * math.sqrt(5 / 6 * 3 / 5), rel=1e-6)


def test_the_brevity_penalty_is_one_of_the_corpus_not_of_each_video():
    hypotheses = {"short": "a b c d", "long": "e f g h i j k l"}
    references = {"short": ["a b c d x x"], "long": ["e f g h i j"]}
    assert scores(hypotheses, references).metrics["bleu1"] == pytest.approx(100 * 10 / 12, rel=1e-6)


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # Common subsequence "a dog on grass": 4 words of 5 and of 8.
    found = scores({"v": "a dog barks on grass"}, {"v": ["a big dog is lying on the grass"]})
    precision, recall, beta = 4 / 5, 4 / 8, 1.2
    expected = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert found.metrics["rouge_l"] == pytest.approx(100 * expected)


def cider_d(hypotheses, references, orders=4, sigma=6.0):
    """CIDEr-D as Vedantam et al. (2015) write it: vectors over all n-grams, a matrix an order."""
    values = np.zeros(len(hypotheses))
    for order in range(1, orders + 1):

        def grams(text, order=order):
            words = text.split()
            return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))

        every = sorted({gram for text in chain(hypotheses, *references) for gram in grams(text)})
        frequency = np.array([sum(any(gram in grams(text) for text in many) for many in references) for gram in every])
        idf = np.log(len(references) / np.maximum(frequency, 1))

        def vector(text, every=every, idf=idf, grams=grams):
            counts = grams(text)
            return np.array([counts[gram] for gram in every]) * idf

        for video, (hypothesis, many) in enumerate(zip(hypotheses, references, strict=True)):
            own = vector(hypothesis)
            for reference in many:
                other = vector(reference)
                norms = np.linalg.norm(own) * np.linalg.norm(other)
                apart = len(hypothesis.split()) - len(reference.split())
                fade = np.exp(-(apart**2) / (2 * sigma**2))
                values[video] += 10 * fade * np.minimum(own, other) @ other / (norms or 1) / len(many) / orders
    return values


def test_cider_is_that_of_its_paper():
    rng = np.random.default_rng(0)
    words = ("a", "the", "man", "dog", "red", "ball", "plays", "throws", "near", "house")

    def sentence():
        return " ".join(rng.choice(words, rng.integers(4, 11)))

    hypotheses = [sentence() for _ in range(12)]
    references = [[sentence() for _ in range(rng.integers(1, 4))] + [hypotheses[n] + " now"] for n in range(12)]
    found = scores(numbered(hypotheses), numbered(references))
    expected = 100 * cider_d(hypotheses, references)
    assert list(found.cider.values()) == pytest.approx(expected.tolist())
    assert found.metrics["cider"] == pytest.approx(expected.mean())


# Defined answers


def test_an_empty_caption_scores_nothing_and_is_no_error():
    references = {"one": ["a man sings"], "two": ["two dogs run over grass"]}
    found = scores({"one": " ", "two": "two dogs run over grass"}, references)
    assert (found.cider["one"], found.rouge_l["one"]) == (0, 0)
    assert found.cider["two"] > 0
    assert found.metrics["bleu1"] == pytest.approx(100 * math.exp(1 - 8 / 5), rel=1e-6)
    nothing = scores({"one": "", "two": ""}, references).metrics
    assert nothing == dict.fromkeys(nothing, 0)


def test_white_space_does_not_count_and_case_does():
    tidy = scores({"a": "a man sings", "b": "dogs run"}, {"a": ["a man sings"], "b": ["a dog runs"]}).metrics
    loose = {"a": " a\tman \n sings", "b": "dogs  run"}
    assert scores(loose, {"a": ["a  man sings\n"], "b": ["a dog\u2028runs"]}).metrics == tidy
    other = scores({"a": "A man sings", "b": "dogs run"}, {"a": ["a man sings"], "b": ["a dog runs"]}).metrics
    assert other["bleu1"] < tidy["bleu1"]


def test_references_without_a_word_are_left_out():
    hypotheses, references = {"a": "a man", "b": "a dog runs"}, {"a": ["the man sings"], "b": ["a dog"]}
    padded = {name: ["", *many, " \n"] for name, many in references.items()}
    assert scores(hypotheses, padded) == scores(hypotheses, references)


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ({"a": "x", "b": "x"}, {"a": ["x"], "b": []}, "1 video has no reference with a word in it: 'b'"),
        ({"a": "x"}, {"a": ["", " "]}, "1 video has no reference with a word in it: 'a'"),
        ({"a": "x"}, {"a": ["x"], "c": ["x"]}, "1 video has no hypothesis: 'c'"),
        (numbered("vwxyz"), {"0": ["x"]}, r"4 videos have no references: '1', '2', '3', \.\.\."),
        ({}, {}, "no captions to score"),
    ],
)
def test_what_cannot_be_scored_names_the_videos(hypotheses, references, message):
    with pytest.raises(UserError, match=message) as caught:
        scores(hypotheses, references)
    assert caught.value.hint


def test_unknown_tokens_are_an_error_with_the_choices():
    with pytest.raises(UserError, match="Valid choices: ptb, whitespace"):
        scores({"a": "x"}, {"a": ["x"]}, tokens="white")


def test_a_result_says_how_it_was_computed():
    found = scores({"a": "x"}, {"a": ["x"]})
    assert found.count == 1
    assert found.details()["tokens"] == "whitespace"
    assert found.details()["scorer"].startswith("pycocoevalcap ")
    assert json.loads(json.dumps(found.details())) == found.details()


# What is not installed


def test_without_the_scorer_the_error_has_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(UserError, match="need pycocoevalcap") as caught:
        scores({"a": "x"}, {"a": ["x"]})
    assert "pip install 'meltr-core[captions]'" in caught.value.hint


def test_the_module_can_be_imported_without_the_scorer():
    code = (
        "import sys; sys.modules['pycocoevalcap'] = None; import meltr.video.tasks.captions;"
        "assert not {'torch', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def program(folder, monkeypatch, body):
    """Put a program called java alone on the path."""
    file = folder / "java"
    file.write_text(f"#!{sys.executable}\n{body}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_without_java_meteor_is_skipped_and_the_rest_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = corpus_scores({"a": "a man"}, {"a": ["a man"]})
    assert found.skipped == {"meteor": "no Java"}
    assert set(found.metrics) == set(NAMES.values()) - {"meteor"}


def test_meteor_is_skipped_if_not_asked_for():
    assert scores({"a": "a man"}, {"a": ["a man"]}).skipped == {"meteor": "not asked for"}


def test_java_that_fails_is_told_with_its_last_words(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "import sys; sys.exit('first\\nUnable to locate a Java Runtime.')")
    found = corpus_scores({"a": "a man"}, {"a": ["a man"]})
    assert found.skipped == {"meteor": "Java failed: Unable to locate a Java Runtime."}
    with pytest.raises(MeltrError, match="Unable to locate a Java Runtime"):
        scores({"a": "a man"}, {"a": ["a man"]}, tokens="ptb")


def test_the_fields_of_meteors_protocol_cannot_be_forged(tmp_path, monkeypatch):
    """A stand-in that echoes what it is asked, and answers 0.5 to everything."""
    program(
        tmp_path,
        monkeypatch,
        "import sys\nlog = open(sys.argv[0] + '.log', 'w')\n"
        "for line in sys.stdin:\n"
        "    print(line.strip(), file=log, flush=True)\n"
        "    count = line.count('|||') if line.startswith('EVAL') else 0\n"
        "    print('0.5\\n' * (count + 1), end='', flush=True)\n",
    )
    found = corpus_scores({"a": "x ||| y", "b": "z"}, {"a": ["p |||\nq", "r"], "b": ["s"]})
    assert found.metrics["meteor"] == 50
    asked = (tmp_path / "java.log").read_text().splitlines()
    assert asked == ["SCORE ||| p q ||| r ||| x y", "SCORE ||| s ||| z", "EVAL ||| 0.5 ||| 0.5"]


def test_the_ptb_tokenizer_needs_java(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no Java") as caught:
        scores({"a": "a man"}, {"a": ["a man"]}, tokens="ptb")
    assert "whitespace" in caught.value.hint


@needs_java
def test_ptb_tokens_are_those_of_the_coco_code():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = ["A man isn't here.", "", "Two dogs -- a big one & a (small) one!", 'He says "hello"; then: bye...', "..."]
    theirs = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    assert coco.ptb_tokens(texts) == [line for number in range(len(texts)) for line in theirs[number]]


@needs_java
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_ptb_tokens_keep_their_letters_and_lines_in_every_locale(monkeypatch, locale):
    monkeypatch.setenv("LC_ALL", locale)
    assert coco.ptb_tokens(["Ein Café.", "one\ntwo\u2028three", "日本"]) == ["ein café", "one two three", "日本"]
    assert coco.ptb_tokens([]) == []


@needs_java
def test_a_reference_of_punctuation_alone_is_none_with_ptb_tokens():
    found = scores({"a": "A man!"}, {"a": ["a man", "..."]}, tokens="ptb")
    assert found.tokens == "ptb"
    assert found.metrics["bleu1"] == pytest.approx(100, abs=1e-5)
    with pytest.raises(UserError, match="no reference with a word in it: 'a'"):
        scores({"a": "A man!"}, {"a": ["...", "?"]}, tokens="ptb")
