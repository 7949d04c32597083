"""A report's figures and findings as a person reads them: the same words on the page and in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "n/a"
DISCLAIMER = "Decision support, not a medical device."
SECTIONS = {
    "checks": "Checks against the gate",
    "quality": "Quality: how often each side is right",
    "flips": "Flips: where the candidate decides otherwise",
    "drift": "Drift and calibration: how the probabilities moved",
    "rationales": "Rationales",
    "worst": "Rows that moved most",
    "compared": "What was compared",
    "definitions": "How each figure is defined",
}
VERDICTS = {True: "Passed", False: "Failed", None: "Not enough rows to certify"}
RESULTS = {True: "Passed", False: "Failed", None: "Not certified"}
# What the measured figure of a check is; its unit is points where it is a difference.
_CHECKS = {
    "answered by both": "Rows that one side alone answered",
    "flips": "Labels that changed (flips)",
    "net under-triage": "Net under-triage",
    "macro-F1": "Loss of macro-F1",
    "ECE": "Rise of the calibration error (ECE)",
}
_IN_SENTENCES = {
    "answered by both": "rows answered by one side alone",
    "macro-F1": "loss of macro-F1",
    "ECE": "rise of ECE",
}
_IN_PERCENT = ("answered by both", "flips")


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with so many decimals."""
    return NOTHING if value is None else _fixed(value, digits)


def count(value: int | None) -> str:
    """A whole number with its thousands set apart."""
    return NOTHING if value is None else f"{value:,}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share; what is not quite nothing or not quite all is never rounded to it."""
    if value is None:
        return NOTHING
    step = 10.0**-digits
    hundred = 100 * value
    if 0 < hundred < step / 2:
        return f"<{step:.{digits}f}\u00a0%"
    if 100 - step / 2 <= hundred < 100:
        return f">{100 - step:.{digits}f}\u00a0%"
    return f"{_fixed(hundred, digits)}\u00a0%"


def points(value: float | None, digits: int = 2, *, signed: bool = True) -> str:
    """A difference of shares, in percentage points."""
    return NOTHING if value is None else f"{_fixed(100 * value, digits, signed=signed)}\u00a0points"


def change(reference: float | None, candidate: float | None) -> str:
    """The difference of two shares in points, where both are known."""
    return points(None if reference is None or candidate is None else candidate - reference)


def percent_interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """An interval of a share, in percent as the share itself; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"({_fixed(100 * low, digits)} to {_fixed(100 * high, digits)})"


def points_interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval of a difference, in points; empty where there is none."""
    if low is None or high is None:
        return ""
    return f"({_fixed(100 * low, digits, signed=True)} to {_fixed(100 * high, digits, signed=True)})"


def small(value: float | None) -> str:
    """A figure that may be tiny, with two significant digits."""
    if value is None:
        return NOTHING
    if 0 < abs(value) < 1e-5:
        return "<0.00001"
    if value == 0:
        return "0"
    digits = 1
    while digits < 6 and abs(value) < 10.0 ** (1 - digits):
        digits += 1
    return _fixed(value, max(2, digits))


def probability(value: float | None) -> str:
    """A p-value with its sign of relation."""
    if value is None:
        return f"p {NOTHING}"
    return "p < 0.001" if value < 0.001 else f"p = {_fixed(value, 3)}"


def megabytes(value: int | None) -> str:
    """Bytes in units of 10^6."""
    return NOTHING if value is None else f"{value / 1e6:,.1f}\u00a0MB"


def check_title(check: Mapping[str, Any]) -> str:
    """What a check measures."""
    return _CHECKS.get(check["name"], str(check["name"]))


def summary(report: Mapping[str, Any]) -> str:
    """The verdict's summary without the verdict itself, which stands above it."""
    verdict = report["verdict"]
    before, colon, rest = str(verdict["summary"]).partition(": ")
    if not colon or before != VERDICTS[verdict["passed"]]:
        return str(verdict["summary"])
    if verdict["passed"]:
        return rest[:1].upper() + rest[1:]
    return f"{'Not kept' if verdict['passed'] is False else 'Not shown to be kept'}: {rest}"


def check_figure(check: Mapping[str, Any], key: str) -> str:
    """A check's `value`, `bound` or `limit` in its own unit."""
    value = check.get(key)
    return percent(value, 2) if check["name"] in _IN_PERCENT else points(value, signed=False)


def bare_name(side: Mapping[str, Any]) -> str:
    """A side's name without the digest, which is told elsewhere."""
    return str(side["name"]).partition(" sha256:")[0]


def side_in_words(side: Mapping[str, Any]) -> str:
    """A side's name with what makes it differ from the other."""
    made = ", ".join(str(side[key]) for key in ("compute_type", "engine") if side.get(key))
    return f"{bare_name(side)} ({made or side['kind']})"


def data_in_words(report: Mapping[str, Any]) -> str:
    """Which rows were compared."""
    data = report["compared"]["data"]
    return f"on {notes(data['used'])} of {data['name']}"


def rows_needed(report: Mapping[str, Any]) -> int | None:
    """How many rows would settle every open check; None where that is not known."""
    needed = [check.get("rows_needed") for check in report["verdict"]["checks"] if check["passed"] is None]
    return max(needed) if needed and None not in needed else None


def for_clinicians(report: Mapping[str, Any]) -> str:
    """What the verdict means for who decides about patients, in one sentence."""
    used = report["compared"]["data"]["used"]
    changed = _changed(report)
    passed = report["verdict"]["passed"]
    if passed is False:
        return (
            f"Do not let the candidate replace the reference: on {notes(used)} it went beyond a limit that was set "
            f"beforehand, and it {changed}."
        )
    if passed is None:
        needed = rows_needed(report)
        more = f"; about {count(needed)} notes would settle it" if needed is not None else ""
        return (
            f"Whether the candidate may replace the reference is not known: it {changed} on {notes(used)}, which is "
            f"within the limits, but so few notes cannot rule out that it is worse than allowed{more}."
        )
    return (
        f"On {notes(used)} the candidate {changed}, which keeps every limit that was set beforehand; how often both "
        "models are wrong is told under Quality, and this verdict says nothing about that."
    )


def for_engineers(report: Mapping[str, Any]) -> str:
    """What the verdict means for who ships the model, in one sentence."""
    checks = report["verdict"]["checks"]
    if report["verdict"]["passed"] is False:
        broken = [
            f"{_short_title(check)} {check_figure(check, 'value')} (limit {check_figure(check, 'limit')})"
            for check in checks
            if check["passed"] is False
        ]
        start = f"Beyond the limit as measured: {', '.join(broken)}"
    elif report["verdict"]["passed"] is None:
        open_ = [
            f"{_short_title(check)} up to {check_figure(check, 'bound')} (limit {check_figure(check, 'limit')})"
            if check.get("bound") is not None
            else f"{_short_title(check)} without a bound (limit {check_figure(check, 'limit')})"
            for check in checks
            if check["passed"] is None
        ]
        start = f"Within the limits as measured, but with 95\u00a0% confidence only {', '.join(open_)}"
    else:
        kept = [f"{_short_title(check)} {check_figure(check, 'bound')}" for check in checks if check["limit"]]
        start = f"Every limit is kept with 95\u00a0% confidence (one-sided), at most: {', '.join(kept)}"
    return f"{start}; {_size(report)}." if _size(report) else f"{start}."


def flips_in_words(report: Mapping[str, Any]) -> str:
    """How many labels changed, and whether for better or worse."""
    flips, used = report["flips"], report["compared"]["data"]["used"]
    low, high = (100 * end for end in flips["rate_interval"])
    interval = f"95\u00a0% interval {_fixed(low, 2)} to {_fixed(high, 2)}\u00a0%"
    if not flips["count"]:
        return f"No label changed on {notes(used)}; {interval} of all notes."
    return (
        f"{count(flips['count'])} of {count(used)} labels changed: {percent(flips['rate'], 2)} ({interval}). "
        f"{count(flips['right_to_wrong'])} went from right to wrong, {count(flips['wrong_to_right'])} from wrong to "
        f"right, {count(flips['wrong_to_wrong'])} from one wrong label to another."
    )


def recall(scores: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """A label's recall and its interval; None where no row has the label, so that there is nothing to find."""
    return (scores["recall"], *scores["recall_interval"]) if scores["support"] else (None, None, None)


def flip_in_words(row: Mapping[str, Any], labels: Sequence[str], *, ordered: bool) -> str:
    """Whether a row's label changed, and in which direction."""
    before, after = (labels.index(row[f"{side}_label"]) for side in ("reference", "candidate"))
    if before == after:
        return "same"
    if not ordered:
        return "flip"
    return "flip, ▼ less severe" if after > before else "flip, ▲ more severe"


def under_triage_in_words(report: Mapping[str, Any]) -> str:
    """Flips along the order of severity, in plain words."""
    flips = report["flips"]["ordered"]
    under, over, far = flips["under"], flips["over"], flips["two_levels_or_more"]
    if not under and not over:
        return "No note was given a less severe label than the reference gave it, and none a more severe one."
    return (
        f"Under-triage by the change of model: {notes(under)} got a less severe label than the reference gave (such a "
        f"patient may wait longer), {notes(over)} a more severe one; {_none(far)} moved two levels or more. "
        f"Net of both, {points(flips['net_under_rate'])} of all notes moved to less severe."
    )


def notes(amount: int) -> str:
    """So many notes."""
    return f"{_none(amount)} note{'' if amount == 1 else 's'}"


def severe_labels(report: Mapping[str, Any]) -> str:
    """The two most severe labels, quoted."""
    return " or ".join(f"“{label}”" for label in report["compared"]["labels"][:2])


def definitions(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the figures that a report shows are defined: term and meaning, in the order of the page."""
    compared = report["compared"]
    draws = compared.get("resamples")
    times = f"{count(draws)} times" if draws else "many times"
    averages = "macro-F1, accuracy" if report["flips"]["ordered"] is None else "macro-F1, accuracy, under-triage"
    found = [
        (
            "Reference, candidate",
            "the model that is trusted, and the one that is to replace it; both read the same notes.",
        ),
        (
            "Gate",
            "limits that were set before measuring. A check has passed where the one-sided 95\u00a0% upper bound of "
            "its figure is within the limit, has failed where the figure itself is beyond it, and is not certified in "
            "between. Where no flip is seen at all in n rows the true rate may still be 3/n (rule of three).",
        ),
        (
            "Macro-F1",
            "plain mean over all labels of F1, the harmonic mean of precision (how often a given label is right) and "
            "recall (how many notes of a label are found); a label that is never seen counts as 0.",
        ),
        (
            "95\u00a0% interval",
            f"in brackets, in the unit of its figure: for {averages} and differences by a percentile bootstrap, rows "
            f"drawn anew {times}, the same for both sides; for recall, flip rate, sensitivity by Wilson's method.",
        ),
        ("Exact McNemar", "how likely a split at least as uneven among the rows that only one side gets right."),
        ("Flip", "a row whose most probable label differs between the sides, whatever the gold label is."),
    ]
    if report["flips"]["ordered"] is not None:
        found += [
            (
                "Under-triage",
                "a less severe label than the gold one. Net under-triage: flips to a less severe label less flips to "
                "a more severe one, over all rows.",
            ),
            (
                "Sensitivity of the top two levels",
                f"of the notes whose gold label is {severe_labels(report)}, the share that was given one of these.",
            ),
        ]
    found += [
        (
            "KL, JS",
            "Kullback–Leibler divergence of the candidate's probabilities from the reference's, and the symmetric "
            "Jensen–Shannon divergence (0 to 0.69), both a row in nats; 0 means no change. p99 is exceeded by one row "
            "in a hundred.",
        ),
        ("Margin", "the reference's highest probability less its second highest: small where it was a close call."),
        (
            "ECE",
            "expected calibration error: the gap between confidence and accuracy, averaged over "
            f"{(report.get('calibration') or {}).get('ece_bins') or 'equal-width'} bins of confidence.",
        ),
        (
            "Brier score, NLL",
            "mean squared distance of the probabilities from the gold label (0 to 2), and mean negative logarithm of "
            "the gold label's probability (nats); lower is better.",
        ),
        (
            "Refitted",
            "the candidate once its temperature, the one number that sets how bold its probabilities are, is fitted "
            "anew on these rows. Each row is judged at a temperature fitted without it.",
        ),
    ]
    if report["rationales"] is not None:
        found += [
            (
                "BLEU, chrF, BERTScore",
                "likeness of two texts by shared word runs, shared character runs (both 0 to 100) and by an encoder's "
                "vectors. Likeness is not truth.",
            ),
            (
                "Not in the note",
                "a number, or a word that ends like a drug's name, that stands in the rationale and not in its note, "
                "by matching words and without understanding.",
            ),
            ("Consistency", "the share of rationales from which, read alone, the same model gives the same label."),
        ]
    return found


def reading(texts: Sequence[tuple[str, float | None, float | None]]) -> str:
    """Pairs of shares as a sentence for who cannot see the chart."""
    return "; ".join(f"{label}: reference {percent(one)}, candidate {percent(two)}" for label, one, two in texts)


def _short_title(check: Mapping[str, Any]) -> str:
    return _IN_SENTENCES.get(check["name"], str(check["name"]))


def _changed(report: Mapping[str, Any]) -> str:
    flips = report["flips"]
    if not flips["count"]:
        return "changed no label"
    said = f"changed {count(flips['count'])} label{'' if flips['count'] == 1 else 's'} ({percent(flips['rate'], 2)})"
    if flips["ordered"] is not None:
        said += f", {_none(flips['ordered']['under'])} of them to a less severe one"
    return said


def _size(report: Mapping[str, Any]) -> str:
    sides = [report["compared"][name].get("size_bytes") for name in ("reference", "candidate")]
    if None in sides or not all(sides):
        return ""
    return f"the candidate takes {megabytes(sides[1])}, {percent(sides[1] / sides[0])} of the reference's size"


def _none(amount: int) -> str:
    return "no" if not amount else count(amount)


def _fixed(value: float, digits: int, *, signed: bool = False) -> str:
    rounded = round(value, digits) + 0.0
    if rounded == 0:
        return f"{0:.{digits}f}"
    return f"{rounded:{'+' if signed else ''},.{digits}f}".replace("-", "\u2212")
