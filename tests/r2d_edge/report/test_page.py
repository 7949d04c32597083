from __future__ import annotations

import base64
import copy
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from r2d_edge.report.gate import Gate
from r2d_edge.report.markup import Html, element, escaped, joined
from r2d_edge.report.page import html
from r2d_edge.report.wording import DISCLAIMER, SECTIONS, VERDICTS
from tests.r2d_edge.report.made_reports import LEVELS, made_report

STYLE = resources.files("r2d_edge.report").joinpath("page.css").read_text(encoding="utf-8")
HOSTILE = "</style></title></svg><script>fetch('http://evil.example/')</script><img src=x onerror=alert(1)> & \"'"
LONG = [f"a rather long label name of the kind that service number {number} may have" for number in range(12)]
_ELEMENTS = """
html head meta title style body header main section footer h1 h2 h3 h4 p dl dt dd div span strong b bdi time code
table caption thead tbody tfoot tr th td br figure figcaption details summary blockquote ul li
svg circle path line rect polyline text
"""
ELEMENTS = set(_ELEMENTS.split())
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Reads a page strictly: what is not closed in order is refused."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # the element's path and the text in it
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(("/".join(self.open), data))

    def text(self, *without: str) -> str:
        return " ".join(text for path, text in self.texts if not set(without) & set(path.split("/")))

    def of(self, tag: str) -> list[str]:
        return [text for path, text in self.texts if path.split("/")[-1] == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made_report(tmp_path_factory.mktemp("page"))


def variants(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "ordered", made_report(folder / "ordered", show_texts=True)
    yield "two labels, one row", made_report(folder / "one", labels=("no", "yes"), rows=1, noise=0.0, ordered=False)
    yield "two ordered labels", made_report(folder / "two", labels=("admit", "discharge"))
    yield "many long labels", made_report(folder / "long", labels=LONG, rows=300, noise=0.9)
    yield "no rationales", made_report(folder / "bare", rationales=False, ordered=False)
    yield "no flips", made_report(folder / "same", noise=0.0)
    labels = (HOSTILE, "\u202eurgent", "other\x1b[31m")
    yield "hostile", made_report(folder / "hostile", labels=labels, note=HOSTILE * 2, show_texts=True)
    bare = made_report(folder / "null")
    for key in ("quality", "drift", "calibration", "rationales"):
        bare[key] = None
    bare["worst"] = []
    bare["compared"]["command"] = None
    yield "null sections", bare


def test_it_reads_in_order_and_the_verdict_comes_first(report: dict[str, Any]) -> None:
    page = html(report)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page, re.DOTALL)
    assert [re.sub(r"<[^>]+>", "", heading) for heading in headings] == [VERDICTS[False], *SECTIONS.values()]
    ids = re.findall(r'<h2 id="([^"]+)"', page)
    assert ids == ["verdict", *SECTIONS]
    assert page.count(DISCLAIMER) == 2


@pytest.mark.parametrize("passed", [True, False, None])
def test_each_verdict_has_a_word_a_shape_and_a_border_of_its_own(report: dict[str, Any], passed: bool | None) -> None:
    changed = copy.deepcopy(report)
    changed["verdict"]["passed"] = passed
    page = html(changed)
    state = {True: "pass", False: "fail", None: "open"}[passed]
    assert f'<section class="verdict {state}"' in page
    assert f"<span>{VERDICTS[passed]}</span>" in page
    assert len(re.findall(r'<section class="verdict', page)) == 1
    borders = {"pass": "solid", "fail": "double", "open": "dashed"}
    place = rf"\.verdict\.{state} {{[^}}]*" if state != "open" else r"\.verdict {[^}]*"
    assert re.search(place + borders[state], STYLE)


def test_every_variety_of_report_makes_a_sound_page(tmp_path: Path) -> None:
    styled = set(re.findall(r"\.([a-z][a-z0-9-]*)", STYLE))
    for name, report in variants(tmp_path):
        page = html(report)
        reader = Reader(page.removeprefix("<!doctype html>\n"))
        tags = {tag for tag, _ in reader.elements}
        assert tags <= ELEMENTS, (name, tags - ELEMENTS)
        attributes = [(key, value) for _, pairs in reader.elements for key, value in pairs.items()]
        keys = {key for key, _ in attributes}
        assert not {key for key in keys if key.startswith("on") or key in {"style", "src", "href", "srcset"}}, name
        ids = [value for key, value in attributes if key == "id"]
        assert len(set(ids)) == len(ids), name
        assert {value for key, value in attributes if key == "aria-labelledby"} <= set(ids), name
        used = {one for key, value in attributes if key == "class" for one in value.split()}
        # No class without a rule, but for those that only name what stands there.
        assert used - styled <= {"sides", "mark", "checks"}, (name, used - styled)
        shown = reader.text("style", "blockquote")
        assert not re.search(r"\bnan\b|\bNone\b|\binf\b", shown), name


def test_nothing_can_be_fetched_and_no_script_can_run(report: dict[str, Any]) -> None:
    page = html(report)
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', page)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#x27;", "'").split("; "))
    assert rules == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.index("Content-Security-Policy") < page.index("<style>")
    assert not re.search(r"url\(|@import|https?:", page)
    assert "<script" not in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    report = made_report(tmp_path, labels=(HOSTILE, "b", "c"), note=HOSTILE, show_texts=True)
    report["compared"]["warnings"] = [HOSTILE]
    report["compared"]["command"] = HOSTILE
    report["compared"]["machine"]["cpu"] = HOSTILE
    report["verdict"]["checks"][0]["said"] = HOSTILE
    report["worst"][0]["id"] = HOSTILE
    report["worst"][0]["text"] = "lone \ud800 surrogate \x00 \x1b]0;title\x07 \u202e turned\nnext line"
    page = html(report)
    page.encode("utf-8")
    reader = Reader(page.removeprefix("<!doctype html>\n"))
    assert {tag for tag, _ in reader.elements} <= ELEMENTS
    assert "onerror=alert(1)>" not in page
    assert HOSTILE in reader.text()
    assert HOSTILE.split(" ")[0] in "".join(reader.of("blockquote"))
    assert "\n".join(("lone  surrogate    turned", "next line")) in reader.of("blockquote")


def test_texts_stand_there_only_where_the_report_holds_them(tmp_path: Path, report: dict[str, Any]) -> None:
    assert "Sweating" not in html(report)
    assert "--show-texts" in html(report)
    told = html(made_report(tmp_path, show_texts=True))
    assert told.count("Sweating; “cannot breathe”.") == 20
    assert "as candidate reads it" in told


def test_tables_have_captions_and_heads_with_scope(report: dict[str, Any]) -> None:
    page = html(report)
    tables = re.findall(r"<table.*?</table>", page, re.DOTALL)
    assert len(tables) >= 12
    for table in tables:
        assert len(re.findall(r"<caption[^>]*>[^<]+</caption>", table)) == 1
        assert all('scope="' in head for head in re.findall(r"<th\b[^>]*>", table))
        rows = re.findall(r"<tr\b.*?</tr>", table, re.DOTALL)
        columns = {sum(int(n or 1) for n in re.findall(r'<t[hd]\b(?:[^>]*colspan="(\d+)")?', row)) for row in rows}
        assert len(columns) == 1, table
    assert page.count('tabindex="0"') == len(tables)  # each can be scrolled by key


def test_the_flip_matrix_can_be_read_without_colour(report: dict[str, Any]) -> None:
    [table] = re.findall(r'<table class="matrix">.*?</table>', html(report), re.DOTALL)
    cells = re.findall(r"<td([^>]*)>(.*?)</td>", table, re.DOTALL)
    matrix = report["flips"]["matrix"]
    k = len(LEVELS)
    assert len(cells) == (k + 1) ** 2
    for y in range(k):
        for x in range(k):
            attributes, inside = cells[y * (k + 1) + x]
            shown = re.sub(r'<span class="unseen">.*?</span>|<[^>]+>', "", inside)
            sign = "=" if x == y else "" if not matrix[y][x] else "▼" if x > y else "▲"
            assert shown == f"{sign}{matrix[y][x]}"
            if x != y and matrix[y][x]:
                assert f'class="{"under" if x > y else "over"}-' in attributes
                assert ("less severe" if x > y else "more severe") in inside  # for who hears the page
        assert re.sub(r"<[^>]+>", "", cells[y * (k + 1) + k][1]) == str(sum(matrix[y]))
    most = max(matrix[y][x] for y in range(k) for x in range(k) if x != y)
    assert [inside for attributes, inside in cells if '-4"' in attributes]  # the most frequent flip is the darkest
    assert all(str(most) in inside for attributes, inside in cells if '-4"' in attributes)


def test_labels_without_an_order_have_no_severity(tmp_path: Path) -> None:
    page = html(made_report(tmp_path, ordered=False, noise=0.8))
    assert "≠" in page
    for word in ("▼", "▲", "less severe", "nder-triage"):
        assert word not in page.partition("</style>")[2]


def test_many_or_long_labels_are_numbered_in_the_matrix(tmp_path: Path) -> None:
    page = html(made_report(tmp_path, labels=LONG, rows=200))
    [table] = re.findall(r'<table class="matrix">.*?</table>', page, re.DOTALL)
    assert f'<span aria-hidden="true">12</span><span class="unseen">{LONG[11]}</span>' in table
    assert f"12\u2002{LONG[11]}</th>" in table


def test_figures_have_their_intervals_and_what_is_unknown_says_so(report: dict[str, Any]) -> None:
    page = html(report)
    one = report["quality"]["reference"]["accuracy"]
    interval = f"({100 * one['low']:.1f} to {100 * one['high']:.1f})"
    assert f'{100 * one["value"]:.1f}\u00a0% <span class="interval">{interval}</span>' in page
    assert report["rationales"]["candidate_vs_gold"]["bertscore_f1"] is None
    reader = Reader(page.removeprefix("<!doctype html>\n"))
    assert "n/a" in reader.of("span")
    for check in report["verdict"]["checks"]:
        assert check["said"] in page
    for side in ("reference", "candidate"):
        assert report["compared"][side]["digest"] in page
    assert "r2d-edge report --reference &lt;A&gt; --candidate B" in page


def test_warnings_stand_with_the_verdict(report: dict[str, Any]) -> None:
    changed = {**report, "compared": {**report["compared"], "warnings": ["the sides differ in the prompts"]}}
    first = html(changed).partition('id="checks"')[0]
    assert "the sides differ in the prompts" in first
    assert "Take note" not in html(report)


def test_no_text_is_markup_unless_it_was_made_as_such() -> None:
    assert element("p", "<b>", Html("<i></i>"), None, class_='a"b') == '<p class="a&quot;b">&lt;b&gt;<i></i></p>'
    assert element("br") == "<br>"
    assert joined("a & b", 3) == "a &amp; b3"
    assert escaped("one\n\x1b[2Jtwo\x07") == "one\ntwo"
    assert element("rect", x=1.23456, stroke_width=2, y=None) == '<rect x="1.23" stroke-width="2"></rect>'


# Contrast, WCAG 2.2: 4.5 for text (1.4.3), 3 for what must be told apart in pictures and borders (1.4.11).


def schemes() -> dict[str, dict[str, str]]:
    """The colours by name, of the light and the dark page."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    assert len(blocks) == 2
    light, dark = (dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    assert set(light) == set(dark)
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_worked_out_as_published() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough(scheme: str) -> None:
    colours = schemes()[scheme]
    shades = [f"{way}-{shade}" for way in ("under", "over") for shade in (1, 2, 3)]
    text = [
        *((ink, ground) for ink in ("ink", "muted") for ground in ("ground", "paper")),
        *((state, f"{state}-ground") for state in ("pass", "fail", "open")),
        *(("ink", f"{state}-ground") for state in ("pass", "fail", "open")),
        *(("ink", ground) for ground in ("kept-ground", *shades)),
        *(("deep-ink", ground) for ground in ("under-4", "over-4")),
    ]
    pictures = [
        *((side, "paper") for side in ("reference", "candidate", "refitted")),
        *((state, "paper") for state in ("pass", "fail", "open")),
        ("candidate", "fail-ground"),  # a gauge's line beyond the limit
        ("ink", "fail-ground"),
        ("muted", "paper"),
        ("reference", "paper"),
    ]
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in text}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 4.5} == {}
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pictures}
    assert {pair: ratio for pair, ratio in low.items() if ratio < 3} == {}
    tested = {name for pair in (*text, *pictures) for name in pair}
    assert set(colours) - tested == {"line", "faint"}  # hairlines, which carry nothing


def test_every_colour_that_is_used_is_there_and_print_is_light() -> None:
    colours = set(schemes()["light"])
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", STYLE)) - colours == {"state", "state-ground"}
    beyond = STYLE.partition("@media screen and (prefers-color-scheme: dark)")[2].partition("\n}\n")[2]
    assert "@media screen and (prefers-color-scheme: dark)" in STYLE  # on screen alone: what is printed stays light
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b", beyond)  # no colour but by name


def test_a_passed_gate_says_so(tmp_path: Path) -> None:
    report = made_report(tmp_path, noise=0.0, rows=400, gate=Gate(0.2, 0.2, 0.2, 0.2))
    page = html(report)
    assert '<section class="verdict pass"' in page
    assert "<title>Passed: candidate.jsonl (decisions)" in page
