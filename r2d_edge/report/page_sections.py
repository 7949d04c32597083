"""The sections of the page, each from its part of the report; what is null there is said to be missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from r2d_edge.report import charts
from r2d_edge.report import page_parts as parts
from r2d_edge.report.charts import Estimate
from r2d_edge.report.flip_matrix import flip_matrix
from r2d_edge.report.markup import Content, Html, element, joined
from r2d_edge.report.wording import (
    change,
    check_figure,
    check_title,
    count,
    flip_in_words,
    flips_in_words,
    megabytes,
    notes,
    number,
    percent,
    percent_interval,
    probability,
    recall,
    severe_labels,
    small,
    under_triage_in_words,
)

_SIDES = ("reference", "candidate")
_NOTHING_MEASURED = "Nothing was measured here."


def checks(report: Mapping[str, Any]) -> list[Html]:
    """The gate, limit by limit."""
    rows = []
    for check in report["verdict"]["checks"]:
        said = check["said"]
        picture = charts.gauge(check["value"], check.get("bound"), check["limit"], said)
        needed = check.get("rows_needed")
        result = [parts.badge(check["passed"])]
        if needed is not None:
            result.append(element("span", f"about {count(needed)} rows needed", class_="interval"))
        rows.append(
            [
                joined(check_title(check), element("span", said, class_="said")),
                joined(*result),
                check_figure(check, "value"),
                check_figure(check, "bound"),
                check_figure(check, "limit"),
                picture if picture is not None else "none is allowed",
            ]
        )
    heads = ("Check", "Result", "Measured", "At most, with 95\u00a0% confidence", "Limit", "Against the limit")
    return [
        parts.table(
            "Every limit of the gate, the figure measured, and what the true figure is at most",
            heads,
            rows,
            class_="checks",
        ),
        element(
            "p",
            "In the pictures the square is what was measured, the line runs to what the figure is at most, the thin "
            "tick is zero and the thick one the limit; what lies right of it, on shaded ground, is beyond.",
            class_="note",
        ),
    ]


def quality(report: Mapping[str, Any]) -> list[Html]:
    """How good both sides are."""
    found = report.get("quality")
    if found is None:
        return [parts.paragraph(_NOTHING_MEASURED)]
    rows = []
    for key, name in (("macro_f1", "Macro-F1"), ("accuracy", "Accuracy")):
        rows.append(
            [name, *(parts.estimate(found[side][key]) for side in _SIDES), parts.difference(found["difference"][key])]
        )
    heads = ("Figure", "Reference", "Candidate", "Candidate less reference")
    mcnemar = found["mcnemar"]
    labels = report["compared"]["labels"]
    classes = [(label, *(found[side]["per_class"][label] for side in _SIDES)) for label in labels]
    chart = charts.recall([(label, *(Estimate(*recall(side)) for side in sides)) for label, *sides in classes])
    return [
        parts.table("Quality against the gold labels, with 95 % intervals", heads, rows),
        parts.paragraph(
            f"The reference alone is right on {notes(mcnemar['reference_only'])}, the candidate alone on "
            f"{notes(mcnemar['candidate_only'])}; exact McNemar test: {probability(mcnemar['p'])}."
        ),
        element(
            "div",
            parts.figure(
                chart, "Recall: of the notes of each label, the share that was found. Lines are 95 % intervals."
            ),
            _per_class(classes),
            class_="beside narrow-first",
        ),
    ]


def _per_class(classes: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> Html:
    rows = []
    for label, one, other in classes:
        recalls = [
            parts.beside(percent(value), percent_interval(low, high)) for value, low, high in map(recall, (one, other))
        ]
        rest = [percent(side[key]) for key in ("precision", "f1") for side in (one, other)]
        rows.append([label, count(one["support"]), *recalls, *rest])
    heads = ("Label", "Rows", *(("Ref.", "Cand.") * 3))
    groups = (("", 2), ("Recall", 2), ("Precision", 2), ("F1", 2))
    return parts.table("Each label by itself", heads, rows, groups=groups, class_="dense")


def flips(report: Mapping[str, Any]) -> list[Html]:
    """Where the sides decide differently."""
    flips = report.get("flips")
    if flips is None:
        return [parts.paragraph(_NOTHING_MEASURED)]
    found = [element("p", flips_in_words(report), class_="lead")]
    ordered = flips["ordered"]
    if ordered is not None:
        found.append(element("p", under_triage_in_words(report), class_="lead"))
        gold = ordered["gold_under_triage"]
        rows = [
            [
                "Under-triaged against the gold label",
                *(parts.estimate(gold[side]) for side in _SIDES),
                parts.difference(gold["difference"]),
            ]
        ]
        top = ordered.get("top_two_sensitivity")
        if top is not None:
            said = f"Sensitivity of the top two levels ({severe_labels(report)}; {notes(top['reference']['n'])})"
            ends = [top[side]["value"] for side in _SIDES]
            rows.append([said, *(parts.estimate(top[side]) for side in _SIDES), change(*ends)])
        heads = ("Figure", "Reference", "Candidate", "Candidate less reference")
        found.append(parts.table("Severity against the gold label, with 95 % intervals", heads, rows))
    found.append(flip_matrix(flips["matrix"], report["compared"]["labels"], ordered=ordered is not None))
    return found


def drift(report: Mapping[str, Any]) -> list[Html]:
    """How far the probabilities moved."""
    drift = report.get("drift")
    if drift is None:
        return [parts.paragraph(_NOTHING_MEASURED)]
    kinds = [("", drift)]
    if drift.get("uncalibrated") is not None:
        kinds.append((", without the temperatures", drift["uncalibrated"]))
    rows = []
    for key, name in (("kl", "KL divergence"), ("js", "JS divergence")):
        for suffix, figures in kinds:
            rows.append([name + suffix, *(small(figures[key][part]) for part in ("mean", "p99", "max"))])
    shifts = [
        (label, *(drift["label_shift"][label][side] for side in _SIDES)) for label in report["compared"]["labels"]
    ]
    moved = [[label, percent(one), percent(other), change(one, other)] for label, one, other in shifts]
    margins, means = drift["flipped_margins"], drift["margin"]
    where = [
        f"{number(means[key], 2)} on average where the label {what}"
        for key, what in (("flipped_mean", "flipped"), ("kept_mean", "stayed"))
        if means[key] is not None
    ]
    said = f"The reference's margin was {' and '.join(where)}." if where else ""
    if margins:
        chart = parts.figure(charts.flipped_margins(margins), f"{said} A flip far to the right is no close call.")
    else:
        chart = element("p", f"No label flipped, so there is no margin of a flip. {said}", class_="note")
    shares = element(
        "div",
        parts.figure(charts.label_shares(shifts), "How often each label is given."),
        parts.table("Share of all rows given to each label", ("Label", "Reference", "Candidate", "Change"), moved),
        class_="beside",
    )
    heads = ("Per row, in nats", "Mean", "99th percentile", "Greatest")
    return [
        parts.table("Drift of the probabilities from the reference's", heads, rows),
        element("h3", "Flips by how close a call they were"),
        chart,
        element("h3", "Labels given"),
        shares,
    ]


def _risk_coverage(curves: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    if not curves:
        return []
    picture = charts.risk_coverage([(kind, side["curve"]) for kind, side in curves.items()])
    said = (
        "If only the surest rows are decided and the others left to a person: the errors among the decided (risk) by "
        "the share decided (coverage). AURC is the mean of this curve, AUGRC the average risk of an error that goes "
        "unnoticed; lower is better."
    )
    return [parts.figure(picture, "Risk by coverage"), element("p", said, class_="note")]


def calibration(report: Mapping[str, Any]) -> list[Html]:
    """Whether confidences are what they say."""
    calibration = report.get("calibration")
    if calibration is None:
        return []
    sides = [
        ("Reference", "reference", calibration["reference"]),
        ("Candidate", "candidate", calibration["candidate"]),
    ]
    if calibration.get("candidate_refitted") is not None:
        sides.append(("Candidate refitted", "refitted", calibration["candidate_refitted"]))
    # A report of an earlier version has no curve.
    curves = {kind: side["risk_coverage"] for _, kind, side in sides if side.get("risk_coverage")}
    rows = [
        [
            name,
            percent(side["ece"]),
            number(side["brier"]),
            number(side["nll"]),
            number((curves.get(kind) or {}).get("aurc")),
            number((curves.get(kind) or {}).get("augrc")),
            number(side["temperature"]),
        ]
        for name, kind, side in sides
    ]
    note = "Refitted: the temperature fitted anew on these rows"
    note += f", {calibration['refit']}." if calibration.get("refit") else "."
    if len(sides) < 3:
        note = "The temperature was not fitted anew: the rows are too few."
    pictures = [parts.figure(charts.reliability(name, kind, side["reliability"]), name) for name, kind, side in sides]
    places = range(len(sides[0][2]["reliability"]))
    bins = []
    for place in places:
        one = sides[0][2]["reliability"][place]
        line: list[Content] = [f"{100 * one['low']:.0f} to {100 * one['high']:.0f} %"]
        for _, _, side in sides:
            here = side["reliability"][place]
            line += [count(here["count"]), percent(here["confidence"]), percent(here["accuracy"])]
        bins.append(line)
    heads = ("Confidence", *(("Rows", "Conf.", "Acc.") * len(sides)))
    groups = (("", 1), *((name, 3) for name, _, _ in sides))
    return [
        element("h3", "Calibration: does a confidence of 80 % mean right in 80 of 100?"),
        parts.table(
            "Calibration; lower is better",
            ("Side", "ECE", "Brier score", "NLL, nats", "AURC", "AUGRC", "Temperature"),
            rows,
        ),
        element("p", note, class_="note"),
        element("div", *pictures, class_="pictures"),
        element(
            "p",
            "Reliability diagrams: on the dashed line confidence is what it says; below it the model is too sure of "
            "itself, above it too careful.",
            class_="note",
        ),
        *_risk_coverage(curves),
        element(
            "details",
            element("summary", "The figures behind the diagrams"),
            parts.table("Rows, mean confidence and accuracy in each bin of confidence", heads, bins, groups=groups),
        ),
    ]


def rationales(report: Mapping[str, Any]) -> list[Html]:
    """The rationales' likeness and faults."""
    rationales = report.get("rationales")
    if rationales is None:
        return [parts.paragraph("No rationales were compared: they were not asked for, or not both sides wrote any.")]
    source = rationales.get("source")
    gold = f"gold ({source})" if source else "gold"
    pairs = (
        ("Candidate against reference", "candidate_vs_reference"),
        (f"Reference against {gold}", "reference_vs_gold"),
        (f"Candidate against {gold}", "candidate_vs_gold"),
    )
    likeness = []
    for name, key in pairs:
        one = rationales.get(key) or {}
        figures = [number(one.get("bleu"), 1), number(one.get("chrf"), 1), number(one.get("bertscore_f1"))]
        likeness.append([name, count(one.get("rows")), *figures])
    kinds = (
        ("With a number that is not in the note", "unsupported_numbers"),
        ("With a drug-like word that is not in the note", "unsupported_terms"),
        ("Repeats itself (four words in a row, twice)", "repetition"),
        ("Read alone, leads to the same label", "consistency"),
    )
    shares = []
    for name, key in kinds:
        ends = [(rationales.get(key) or {}).get(side) for side in _SIDES]
        shares.append([name, *map(percent, ends), change(*ends)])
    said = (
        f"{percent(rationales['exact_match'])} of {count(rationales['rows'])} rationales are the same word for word; "
        f"the candidate's are {number(rationales['length_ratio'], 2)} times as long as the reference's."
    )
    empty = rationales.get("empty") or {}
    if any(empty.values()):
        said += f" Empty: {count(empty['reference'])} of the reference, {count(empty['candidate'])} of the candidate."
    found = [
        element("p", said, class_="lead"),
        parts.table("Likeness of the rationales", ("Rationales", "Rows", "BLEU", "chrF", "BERTScore F1"), likeness),
        parts.table(
            "Share of rationales that show a fault, or agree with their label",
            ("Rationales", "Reference", "Candidate", "Change"),
            shares,
        ),
    ]
    signatures = (rationales.get("candidate_vs_reference") or {}).get("signatures") or {}
    settings = [f"{name}: {said}" for name, said in signatures.items()]
    if rationales.get("bertscore"):
        settings.append("BERTScore: " + ", ".join(f"{key} {value}" for key, value in rationales["bertscore"].items()))
    if settings:
        found.append(element("p", "Settings: ", element("code", "; ".join(settings)), class_="note"))
    return found


def worst(report: Mapping[str, Any]) -> list[Html]:
    """The rows that moved most, with their texts where the report holds them."""
    listed, labels = report.get("worst") or [], report["compared"]["labels"]
    ordered = report["compared"]["label_kind"] == "ordered"
    if not listed:
        return [parts.paragraph("No rows are listed.")]
    rows = []
    for one in listed:
        moved = flip_in_words(one, labels, ordered=ordered)
        rows.append(
            [
                element("bdi", one["id"]),
                one["gold"],
                parts.beside(one["reference_label"], percent(one["reference_probability"])),
                parts.beside(one["candidate_label"], percent(one["candidate_probability"])),
                moved if moved == "same" else element("strong", moved),
                small(one["drift"]),
            ]
        )
    heads = ("Row", "Gold", "Reference", "Candidate", "Label", "Drift (JS)")
    found = [parts.table("Rows whose probabilities moved most, the greatest drift first", heads, rows, class_="texts")]
    texts = [one for one in listed if "text" in one]
    if not texts:
        found.append(element("p", "Notes are left out; --show-texts puts them here.", class_="note"))
        return found
    return [*found, element("h3", "Their texts"), *map(_text_of, texts)]


def _text_of(one: Mapping[str, Any]) -> Html:
    sides = [
        element(
            "div",
            element("h4", f"{name}: {one[f'{key}_label']}"),
            element("blockquote", one.get(f"{key}_rationale") or "no rationale", dir="auto"),
        )
        for name, key in (("Reference", "reference"), ("Candidate", "candidate"))
    ]
    return element(
        "details",
        element("summary", element("bdi", one["id"]), f" (gold: {one['gold']})"),
        element("blockquote", one["text"], class_="text", dir="auto"),
        element("div", *sides, class_="beside"),
        open="",
        class_="text",
    )


def compared(compared: Mapping[str, Any]) -> list[Html]:
    """The sides, the data, the machine and the run."""
    sides = [compared[name] for name in _SIDES]
    rows: list[list[Content]] = []

    def row(name: str, values: Sequence[Content]) -> None:
        if any(value is not None for value in values):
            rows.append([name, *("n/a" if value is None else value for value in values)])

    row("Name", [side["name"] for side in sides])
    row("Kind", [side["kind"] for side in sides])
    row("SHA-256", [parts.code(side["digest"]) for side in sides])
    row("Engine", [_engine(side) for side in sides])
    row("Compute type", [side.get("compute_type") for side in sides])
    row("Device, threads", [_device(side) for side in sides])
    row("Size", [megabytes(size) if (size := side.get("size_bytes")) is not None else None for side in sides])
    row("Temperature", [number(t) if (t := side.get("temperature")) is not None else None for side in sides])
    row("Decisions made by", [", ".join(side["made_by"]) if side.get("made_by") else None for side in sides])
    for name, key in (
        ("Notes cut short", "truncated"),
        ("Abstained", "abstained"),
        ("Without an answer", "unanswered"),
    ):
        row(name, [count(side.get(key)) for side in sides])
    row("Prompts", [_settings(side.get("prompts")) for side in sides])
    row("Decoding", [_settings(side.get("decoding")) for side in sides])
    data, machine = compared["data"], compared["machine"]
    rest: list[list[Content]] = [["Data", data["name"]], ["Data, SHA-256", parts.code(data["sha256"])]]
    for file in data.get("files") or []:
        if len(data["files"]) > 1:
            rest.append([file["name"], parts.code(file["sha256"])])
    asked = f", {count(data['asked'])} drawn" if data.get("asked") not in (None, data["rows"]) else ""
    rest.append(["Rows", f"{count(data['rows'])} in the data{asked}, {count(data['used'])} answered by both and used"])
    if data.get("source") is not None:
        without = data.get("without_rationale")
        rest.append(["Gold rationales", f"{data['source']}; {count(without)} rows without one"])
    kind = "from the most to the least severe" if compared["label_kind"] == "ordered" else "without an order"
    rest.append(["Labels", f"{', '.join(compared['labels'])} ({kind})"])
    if compared.get("setting") is not None:
        rest.append(["Setting", compared["setting"]])
    rest.append(["Processor", f"{machine['cpu']}, {machine['cores']} cores"])
    rest.append(["CPU features", ", ".join(machine["features"]) or "n/a"])
    rest.append(["System", f"{machine['system']}, Python {machine['python']}"])
    if compared.get("resamples") is not None:
        rest.append(["Bootstrap", f"{count(compared['resamples'])} resamples, seed {compared['seed']}"])
    if compared.get("command"):
        rest.append(["Command", parts.code(compared["command"])])
    return [
        parts.table("The two sides", ("", "Reference", "Candidate"), rows, class_="texts facts"),
        parts.table("Data, machine and how it was run", ("", "This run"), rest, class_="texts facts"),
    ]


def _engine(side: Mapping[str, Any]) -> str | None:
    return " ".join(str(side[key]) for key in ("engine", "version") if side.get(key)) or None


def _device(side: Mapping[str, Any]) -> str | None:
    threads = side.get("threads")
    said = f"{threads} thread{'' if threads == 1 else 's'}" if threads is not None else None
    return ", ".join(part for part in (side.get("device"), said) if part) or None


def _settings(settings: Mapping[str, Any] | None) -> Html | None:
    """Names and values, one a line."""
    if not settings:
        return None
    lines = []
    for name, value in settings.items():
        said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(element("span", f"{name}: ", element("code", said), class_="setting"))
    return joined(*lines)
