"""The page of a report: what it says, that it is whole and escaped, and how a browser shows it."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browser import Browser, find_browser
from command_line import assert_stopped, call
from meltr.report.compare import compare
from meltr.report.page.answer import answer
from meltr.report.page.samples import choose
from run_folders import make_seeds

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

EVIL = '<script>alert("x")</script>&<img src=x onerror=alert(1)>'
VOID = {"meta", "img", "source", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """The elements of a page, its headings and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def predictions(run: Path, wrong: int) -> None:
    """Write answers to ten questions of which the first `wrong` are wrong; one question is hostile."""
    rows = [
        {
            "id": f"q{i}",
            "file": f"{i}.png",
            "question": EVIL if i == 0 else f"what is {i}?",
            "predicted": "no" if i < wrong else "yes",
            "right": ["yes"],
            "probability": 0.5,
        }
        for i in range(10)
    ]
    (run / "predictions").mkdir()
    (run / "predictions" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Two configurations of three seeds with predictions, verdicts and pictures, and hostile names."""
    folder = tmp_path_factory.mktemp("page")
    data = folder / "data"
    data.mkdir()
    for place in range(10):
        Image.new("RGB", (400, 300), (20 * place, 90, 120)).save(data / f"{place}.png")
    common: dict[str, Any] = {"losses": ["ce", EVIL], "data_root": str(data)}
    found = {
        "sum": make_seeds(folder / "sum", [70.0, 71.0, 72.5], combiner="sum", **common),
        "meltr": make_seeds(folder / "meltr", [75.0, 76.1, 77.4], combiner="meltr", **common),
    }
    for name, path in found.items():
        predictions(path / "seed-0", 5 if name == "sum" else 2)
        command = ["meltr", "run", "--combiner", name, "--name", EVIL]
        (path / "seed-0" / "environment.json").write_text(json.dumps({"command": command}))
    verdict = {"task": "rotation", "verdict": "helps", "sentence": f"It lowers the primary loss {EVIL}", "seeds": 3}
    (found["meltr"] / "diagnose.json").write_text(json.dumps({"verdicts": [verdict]}))
    return found


@pytest.fixture(scope="module")
def page(runs) -> Path:
    path = runs["sum"].parent / "report.html"
    result = call("report", runs["sum"], runs["meltr"], "-o", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(path)
    assert "meltr wins" in result.stderr
    return path


@pytest.fixture(scope="module")
def parsed(page) -> Page:
    return Page(page.read_text(encoding="utf-8"))


def test_question_and_answer_come_first(parsed):
    text = " ".join(parsed.text.split())
    for sentence in (
        "Which of 2 configurations has the best test top1 on d?",
        "meltr wins: test top1 76.17, better than every other configuration beyond chance.",
        "meltr is ahead of sum by 5.00 over 3 common seeds: significant",
    ):
        assert sentence in text
        assert text.index(sentence) < text.index("Settings that differ")
    for heading in ("Figures", "Sample predictions", "Commands", "Who helps whom"):
        assert heading in text
    assert "meltr run --combiner sum" in text


def test_the_page_is_well_formed(parsed):
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    for link in parsed.all("a"):
        assert str(link["href"]).startswith("#")
        assert str(link["href"])[1:] in ids
    for _, attributes in parsed.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    levels = [int(tag[1]) for tag, _ in parsed.elements if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert parsed.all("html") == [{"lang": "en"}]


def test_the_page_loads_nothing(parsed):
    assert len(parsed.all("img")) > 6
    for image in parsed.all("img"):
        assert str(image["src"]).startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,"))
        assert image["alt"]
    assert all(str(source["srcset"]).startswith("data:image/svg") for source in parsed.all("source"))
    assert not parsed.all("link") + parsed.all("script") + parsed.all("iframe")


def test_texts_from_files_mean_nothing_to_the_browser(page, parsed):
    assert EVIL in parsed.text
    assert "<script" not in page.read_text(encoding="utf-8")
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]


def test_samples_have_pictures_of_the_data_set_and_no_other_file(runs, parsed):
    assert sum(str(image["src"]).startswith("data:image/jpeg") for image in parsed.all("img")) == 8
    from meltr.video.thumbnails import Stills

    outside = runs["sum"].parent / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    run = runs["sum"] / "seed-0"
    assert Stills()(run, "3.png")
    for name in ("../outside.png", str(outside), "none.png", "../sum/results.json"):
        assert Stills()(run, name) is None


def test_examples_on_which_runs_differ_come_first():
    def rows(right: set[int]) -> list[dict[str, Any]]:
        return [{"id": str(i), "predicted": "a" if i in right else "b", "right": "a"} for i in range(6)]

    chosen = choose({"one": rows({0, 1, 2}), "two": rows({0, 1, 3})}, shown=4)
    assert [sample.title for sample in chosen[:2]] == ["id 2", "id 3"]
    assert {tuple(said.right for said in sample.said.values()) for sample in chosen[2:]} == {
        (True, True),
        (False, False),
    }


@pytest.mark.parametrize(
    ("values", "headline", "sentence"),
    [
        ([70.0, 71.0, 72.0], "No clear winner", "undefined"),
        ([70.5, 70.0, 72.5], "No clear winner", "not significant"),
        ([69.0, 70.5, 70.5], "a and b have the same mean", "have the same mean"),
        ([80.0, 81.5, 82.0], "b wins", "significant"),
        ([60.0, 61.5, 62.0], "a wins", "significant"),
    ],
)
def test_the_answer_depends_on_the_paired_test(tmp_path, values, headline, sentence):
    make_seeds(tmp_path / "a", [69.0, 70.0, 71.0], combiner="sum")
    make_seeds(tmp_path / "b", values, combiner="meltr")
    found = answer(compare([tmp_path / "a", tmp_path / "b"]))
    assert found.headline.startswith(headline)
    assert any(sentence in each for each in found.sentences)


def test_one_seed_and_one_run_claim_nothing(tmp_path):
    make_seeds(tmp_path / "a", [71.0], combiner="sum")
    make_seeds(tmp_path / "b", [72.0], combiner="meltr")
    both = answer(compare([tmp_path / "a", tmp_path / "b"]))
    assert "one seed cannot tell" in both.headline
    assert any("--seed 0,1,2" in each for each in both.sentences)
    alone = answer(compare([tmp_path / "a"]))
    assert alone.headline == "test top1 71.00."
    assert alone.best is None


def test_what_cannot_be_reported_is_an_error(tmp_path, runs):
    assert_stopped(call("report", tmp_path), "not a run folder")
    assert_stopped(call("report", runs["sum"], "-o", tmp_path / "x.pdf"), "report.html")
    (tmp_path / "broken" / "seed-0").mkdir(parents=True)
    broken = make_seeds(tmp_path / "more", [1.0, 2.0], combiner="sum")
    (broken / "diagnose.json").write_text('{"verdicts": [{"task": 3}]}')
    assert_stopped(call("report", broken, "-o", tmp_path / "x.html"), "diagnose.json", "meltr diagnose")
    assert not (tmp_path / "x.html").exists()


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium")
    with Browser(program) as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_on_a_phone(browser, page, scheme):
    browser.screen(width=390, height=844, scheme=scheme)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    assert browser.run("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    seen = browser.run("[...document.querySelectorAll('figure img')].map(i => i.currentSrc)")
    browser.screen(width=1100, height=900, scheme=scheme)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= 1100
    wide = browser.run("[...document.querySelectorAll('figure img')].map(i => i.currentSrc)")
    assert len(wide) == len(seen)
    assert all(one != other for one, other in zip(seen, wide, strict=True))
    assert browser.problems == []


def test_it_can_be_used_with_the_keyboard(browser, page):
    browser.screen(width=390, height=844, scheme="light")
    browser.open(page)
    every = "[...document.querySelectorAll('a, summary, [tabindex]')]"
    wanted = browser.run(f"{every}.filter(each => each.checkVisibility()).length")  # not what is folded away
    reached = []
    for _ in range(wanted):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.outerHTML.slice(0, 200)"))
    assert "skip" in reached[0]
    assert len(set(reached)) > 6
    assert not any(element.startswith("<body") for element in reached)
    browser.run("document.querySelector('summary').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelector('details').open") is True
    assert browser.problems == []
