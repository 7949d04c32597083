"""The tables of the README and the model card, made from `benchmarks/results/*.json`.

    python -m benchmarks.tables README.md train/recipes/triage-nano/card.md train/recipes/triage-small/card.md

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced. The study NAME in
`train/recipes/studies` has two: `study-NAME` and `study-NAME-differences`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.rows import figure_cells, latency_cells, left_out, throughput_cells
from train.methods import METHODS
from train.study.results import Result
from train.study.run import load_results
from train.study.spec import Study, read_study
from train.study.tables import differences_table, results_table

RESULTS = Path(__file__).parent / "results"
STUDIES = Path(__file__).parents[1] / "train" / "recipes" / "studies"
_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NANO = ("triage-nano", "triage-nano-float32")
BOTH = (*NANO, "triage-small")
_VARIANTS = {
    "triage-nano": "triage-nano (int8)",
    "triage-nano-float32": "the same, not quantized (float32)",
    "triage-small": "triage-small (int8)",
    "classifier": "all-mpnet-base-v2, fine-tuned on labels (109 M, float32)",
    "nurse": "the triage nurse",
    "per set": "TF-IDF baseline, trained on this set",
    "pooled": "TF-IDF baseline, trained on both sets",
    "majority": "always the most frequent label",
    "reference": "the reference rationales themselves",
}


_COLDSTART_COLUMNS = (("first", "p50"), ("first", "p95"), ("end", "p50"))


def _results(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return data


def _merged(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of models and baselines by validation set and variant."""
    parts = [_results(name)["results"] for name in (*models, "baseline")]
    return {name: {variant: found for part in parts for variant, found in part[name].items()} for name in parts[0]}


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines) + "\n"


def _number(value: float | None, places: int = 3) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def label_table(models: Sequence[str]) -> str:
    """Label figures of the models and their baselines on each validation set."""
    rows = []
    for name, judged in _merged(models).items():
        for variant, title in _VARIANTS.items():
            if figures := judged.get(variant, {}).get("label"):
                low, high = figures["macro_f1_interval"]
                rows.append(
                    [
                        name,
                        title,
                        f"{figures['macro_f1']:.3f} ({low:.3f}–{high:.3f})",
                        _number(figures["accuracy"]),
                        _number(figures["quadratic_kappa"]),
                        _percent(figures["under_triage"]),
                        _percent(figures["over_triage"]),
                        _number(figures.get("ece_one", figures.get("ece"))),
                    ]
                )
    return _table(["set", "", "macro-F1 (95 %)", "accuracy", "κ²", "under-triage", "over-triage", "ECE"], rows)


def calibration_table(models: Sequence[str]) -> str:
    """Calibration on rows that no temperature was fitted on, beside what a perfect model would show."""
    several = len(models) > 1
    rows = []
    for name, judged in _merged(models).items():
        for model in models:
            figures = judged[model]["label"]
            mean, low, high = figures["ece_if_calibrated"]
            perfect = f"{mean:.3f} ({low:.3f}–{high:.3f})"
            own = [_number(figures[key]) for key in ("ece_one", "ece_crossfitted")]
            rows.append([name, *([model] if several else []), *own, perfect, _number(figures["ece_debiased"])])
    measures = ["ECE, one temperature", "ECE, its setting's", "ECE of a perfect model", "debiased, its setting's"]
    return _table(["set", *(["model"] if several else []), *measures], rows)


def rationale_table(models: Sequence[str]) -> str:
    """Rationale figures of the models and of the most similar training note's rationale."""
    rows = []
    for name, judged in _merged(models).items():
        for variant, title in _VARIANTS.items():
            if figures := judged.get(variant, {}).get("rationale"):
                rows.append(
                    [
                        name,
                        title.replace("TF-IDF baseline, trained on", "most similar note's, out of"),
                        _number(figures.get("words_mean"), 0),
                        _number(figures.get("bleu"), 1),
                        _number(figures.get("chrf"), 1),
                        _number(figures.get("bertscore_f1")),
                        _percent(figures["unsupported_number_share"]),
                        _percent(figures["unsupported_term_share"]),
                        _percent(figures["repetition_share"]),
                    ]
                )
    head = ["set", "rationales", "words", "BLEU", "chrF", "BERTScore", "with a number", "with a term", "looping"]
    return _table(head, rows)


def coldstart_table() -> str:
    """Process start to first label."""
    rows = [
        [f"`{what}`", *(f"{1000 * lap[when][point]:.0f}" for when, point in _COLDSTART_COLUMNS)]
        for what, lap in _results("coldstart")["seconds"].items()
    ]
    return _table(["ms from process start", "label, p50", "label, p95", "end, p50"], rows)


def training_cost_table() -> str:
    """What a training example costs by each method."""
    measured = _results("training-cost")["methods"]
    rows = [
        [f"`{method}`", f"{measured[method]['ms_per_example']:.0f}", f"{measured[method]['times_dss']:.2f}"]
        for method in METHODS
    ]
    return _table(["method", "ms an example", "times dss"], rows)


def attacks_table() -> str:
    """What attacks on notes do to labels, on each set."""
    found = _results("attacks")
    shown = ("another label", "less severe", "two levels", "abstained")
    rows = []
    for attack in found["attacks"]:
        row = [f"*{attack['name']}*" if attack["harmless"] else attack["name"]]
        for one in (judged["attacks"][attack["name"]] for judged in found["results"].values()):
            row += [_share(one.get("flips")), _share(one.get("less_severe"))]
            row += [str(one[key]["count"]) if key in one else "" for key in ("two_levels", "abstained")]
        rows.append(row)
    return _table(["attack", *(f"{name}: {what}" for name in found["results"] for what in shown)], rows)


def _share(share: Mapping[str, Any] | None) -> str:
    if share is None or share["share"] is None:
        return ""
    low, high = share["interval"]
    return f"{100 * share['share']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def study_table(name: str, table: Callable[[Study, Mapping[str, Result]], str]) -> str:
    """A table of the study NAME, from its study file and its committed results."""
    study = read_study(STUDIES / f"{name}.toml")
    return table(study, load_results(study, RESULTS.parents[1] / study.results))


def speed_table(model: str, kind: str = "equal") -> str:
    """What a note takes on each side of a model, one thread; the sides that were left out stand below."""
    found = _results("speed")["models"][model]
    lines = [f"\n- {line}" for line in left_out(found)] if kind == "equal" else []
    return _table(*latency_cells(found, kind)) + "".join(lines) + ("\n" if lines else "")


def shapes_table() -> str:
    """What a note takes on each side of T5's larger shapes, one thread."""
    rows = []
    head: list[str] = []
    for shape in ("t5-base", "t5-large"):
        head, cells = latency_cells(_results(f"speed-{shape}")["models"][shape])
        rows += [[shape, *row] for row in cells]
    return _table(["shape", *head], rows)


def throughput_table(model: str) -> str:
    """Many notes at once on each side of a model, one thread."""
    return _table(*throughput_cells(_results("speed")["models"][model]))


def figures_table(result: str = "speed") -> str:
    """The figures to reach with what was measured."""
    return _table(*figure_cells(_results(result)["figures"]))


TABLES: Mapping[str, Callable[[], str]] = {
    "labels": partial(label_table, NANO),
    "labels-both": partial(label_table, BOTH),
    "rationales": partial(rationale_table, NANO),
    "rationales-both": partial(rationale_table, BOTH),
    "calibration": partial(calibration_table, NANO[:1]),
    "calibration-both": partial(calibration_table, (NANO[0], "triage-small")),
    "coldstart": coldstart_table,
    "training-cost": training_cost_table,
    "figures": figures_table,
    "batch": partial(figures_table, "batch"),
    "attacks": attacks_table,
    **{
        f"speed-{name}": partial(speed_table, model)
        for name, model in (("nano", "triage-nano"), ("t5-small", "t5-small"))
    },
    "speed-shapes": shapes_table,
    "speed-nano-natural": partial(speed_table, "triage-nano", "natural"),
    **{
        f"throughput-{name}": partial(throughput_table, model)
        for name, model in (("nano", "triage-nano"), ("t5-small", "t5-small"))
    },
    **{f"study-{path.stem}": partial(study_table, path.stem, results_table) for path in STUDIES.glob("*.toml")},
    **{
        f"study-{path.stem}-differences": partial(study_table, path.stem, differences_table)
        for path in STUDIES.glob("*.toml")
    },
}


def fill(text: str) -> str:
    """`text` with every table block made anew.

    Raises:
        KeyError: a block names no known table.
    """
    return _BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


@click.command(help="Fill the tables of Markdown files from the committed results.")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Command line of this module."""
    for path in files:
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
        click.echo(path, err=True)


if __name__ == "__main__":
    main()
