"""The report as one HTML page: nothing is fetched, no script runs, and it prints whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from r2d_edge.report import page_parts as parts
from r2d_edge.report import page_sections as sections
from r2d_edge.report.charts import verdict_icon
from r2d_edge.report.markup import Content, Html, element
from r2d_edge.report.wording import (
    DISCLAIMER,
    SECTIONS,
    VERDICTS,
    data_in_words,
    definitions,
    for_clinicians,
    for_engineers,
    side_in_words,
    summary,
)


def html(report: Mapping[str, Any]) -> str:
    """The page of a report of schema 1 (see `compare.make_report`)."""
    style = resources.files("r2d_edge.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    compared = report["compared"]
    title = f"{VERDICTS[report['verdict']['passed']]}: {side_in_words(compared['candidate'])}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title} – quantization-accuracy report"),
        element("style", Html(style)),
    )
    found = [
        _section("checks", *sections.checks(report)),
        _section("quality", *sections.quality(report)),
        _section("flips", *sections.flips(report)),
        _section("drift", *sections.drift(report), *sections.calibration(report)),
        _section("rationales", *sections.rationales(report)),
        _section("worst", *sections.worst(report)),
        _section("compared", *sections.compared(compared)),
        _section("definitions", element("dl", *parts.terms(definitions(report)), class_="definitions")),
    ]
    body = element(
        "body",
        element("header", *_title(report)),
        element("main", _verdict(report), *found),
        element("footer", parts.paragraph(element("strong", DISCLAIMER)), parts.paragraph(_made(compared))),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _title(report: Mapping[str, Any]) -> list[Html]:
    compared = report["compared"]
    candidate, reference = (side_in_words(compared[name]) for name in ("candidate", "reference"))
    sides = element(
        "p",
        *("Candidate ", element("b", candidate), " in place of reference ", element("b", reference)),
        f", {data_in_words(report)}, ",
        element("time", str(compared["made"])[:10]),
        class_="sides",
    )
    return [element("h1", "Quantization-accuracy report"), sides]


def _verdict(report: Mapping[str, Any]) -> Html:
    passed = report["verdict"]["passed"]
    warnings = report["compared"].get("warnings") or []
    return element(
        "section",
        element("h2", verdict_icon(passed), element("span", VERDICTS[passed]), id="verdict"),
        element("p", summary(report), class_="summary"),
        element(
            "dl",
            *parts.terms([("For clinicians", for_clinicians(report)), ("For engineers", for_engineers(report))]),
            class_="meaning",
        ),
        element("div", element("h3", "Take note"), parts.items(warnings), class_="warnings") if warnings else None,
        element("p", element("strong", DISCLAIMER), " A person decides about every patient.", class_="disclaimer"),
        class_=f"verdict {parts.STATES[passed]}",
        aria_labelledby="verdict",
    )


def _section(key: str, *children: Content) -> Html:
    return element("section", element("h2", SECTIONS[key], id=key), *children, aria_labelledby=key)


def _made(compared: Mapping[str, Any]) -> str:
    return f"Made by r2d-edge on {str(compared['made']).replace('T', ' ')}. Figures: report.json beside this page."
