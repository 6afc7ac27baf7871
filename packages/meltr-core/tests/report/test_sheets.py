"""A table in Markdown, HTML and LaTeX holds the same cells, whatever letters they have."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from meltr.report.sheets import Sheet, escaped_latex, to_html, to_latex, to_markdown

NASTY = r"a_b & c | 50 % of $5 #1 {x} ~ ^ \n <b>&amp; `code` --set"
SHEET = Sheet(
    title="T & _title_",
    header=["row", "r@1"],
    rows=[[NASTY, "28.6 ± 0.1"], ["", "missing"]],
    notes=["a note with <tags> & more"],
    commands=[("missing: x_1", "meltr run --recipe table9/gamma-1 --seed 0,1")],
)


class Cells(HTMLParser):
    """The text of every element, by tag."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
            self.found.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, "elements are nested"

    def handle_data(self, data):
        if self.open:
            self.found[self.open[-1]][-1] += data


def test_html_shows_every_cell_and_command_as_it_is():
    page = Cells()
    page.feed(to_html(SHEET))
    page.close()
    assert page.open == []
    assert page.found["th"] == SHEET.header
    assert page.found["td"] == [cell for row in SHEET.rows for cell in row]
    assert page.found["caption"] == [SHEET.title]
    assert page.found["code"] == [SHEET.commands[0][1]]
    assert "b" not in page.found
    assert not re.search(r"(src|href)=", to_html(SHEET)), "it needs nothing else"


def test_markdown_has_the_same_number_of_cells_in_every_row():
    lines = [line for line in to_markdown(SHEET).splitlines() if line.startswith("|")]
    assert [len(re.split(r"(?<!\\)\|", line)) for line in lines] == [4] * 4
    assert lines[1] == "| --- | ---: |"
    plain = re.sub(r"\\([\\|*_<`])", r"\1", lines[2])
    assert plain == f"| {NASTY} | 28.6 ± 0.1 |"
    assert "`meltr run --recipe table9/gamma-1 --seed 0,1`" in to_markdown(SHEET)


WORDS = {
    r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
    r"\textgreater{}": ">", r"\textbar{}": "|", r"\textquotedbl{}": '"', r"$\pm$": "±", "{-}": "-",
}  # fmt: skip


def typeset(text: str) -> str:
    """Return what LaTeX shows for the escapes of `escaped_latex`; any other command or bare special is an error."""
    pattern = "|".join(map(re.escape, sorted(WORDS, key=len, reverse=True))) + r"|\\[&%$#_{}]|[^\\&%$#_{}~^]"
    parts = re.findall(pattern, text)
    assert "".join(parts) == text, f"LaTeX would take part of {text!r} for a command"
    return "".join(WORDS.get(part, part.removeprefix("\\")) for part in parts)


@pytest.mark.parametrize("text", [NASTY, "28.6 ± 0.1", '"|"', "\\\\", "100%", ""])
def test_latex_shows_what_was_written(text):
    assert typeset(escaped_latex(text)) == text


def test_latex_has_a_row_per_row():
    text = to_latex(SHEET)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    rows = [line.removeprefix("    ").removesuffix(r" \\") for line in body.splitlines()[1:] if line.strip()]
    assert [[typeset(cell) for cell in re.split(r" (?<!\\)& ", row)] for row in rows] == [
        [NASTY, "28.6 ± 0.1"],
        ["", "missing"],
    ]
    assert r"\begin{tabular}{lr}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
