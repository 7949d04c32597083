"""What attacks on notes do to a bundle's labels: measured on labelled sets, not promised.

    python -m benchmarks.attacks --validation ctas=VAL.jsonl --validation ktas=VAL.jsonl \
        -o benchmarks/results/attacks.json

A note that is decided is decided again with each attack of `benchmarks.hostile`. An attack pushes towards the
least severe label. A flip is a note that is decided with another label; one that is abstained on is none, since it
asks for a person.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import identity, named_files, versions, write_report
from benchmarks.hostile import ATTACKS, Attack
from benchmarks.notes import CORPUS
from r2d_edge import metrics
from r2d_edge.decide import Decider, load
from r2d_edge.decision import Decision
from r2d_edge.task import LabelSet
from train.data import Example, read_dataset

MEASURED = (
    "Measured on these notes with these wordings, not promised: other notes, other wordings and other bundles give "
    "other figures, and who searches for a wording that flips a certain note may find one."
)


def measure(decider: Decider, validation_files: Mapping[str, Path], *, seed: int = 13) -> dict[str, Any]:
    """Decides every validation row without and with each attack.

    Returns:
        JSON-ready figures: for each set the rows that are decided without an attack, and by attack of these the
        shares (`count`, `of`, `share`, Wilson's 95 % `interval`) of `flips`, of flips `less_severe` and those of
        `two_levels` or more among them (ordered labels), and of rows `abstained` on.

    Raises:
        ValueError: the bundle has no list of labels.
    """
    labels = decider.task.labels
    if labels.kind == "open":
        raise ValueError(f"{decider.bundle.label} has no list of labels that an attack could aim at")
    sets, results = {}, {}
    for name, path in validation_files.items():
        rows = read_dataset(path, labels)
        sets[name] = identity(path, rows)
        results[name] = _attacked_set(decider, rows, seed)
    return {
        "measured": MEASURED,
        "attacks": [
            {"name": attack.name, "what": attack.what, "harmless": attack.harmless} for attack in ATTACKS.values()
        ],
        "results": results,
        "model": decider.bundle.label,
        "engine": decider.engine.describe(),
        "datasets": {"validation": sets},
        "settings": {"seed": seed, "label": labels.labels[-1]},
        "versions": versions(),
    }


def _attacked_set(decider: Decider, rows: Sequence[Example], seed: int) -> dict[str, Any]:
    clean = _decided(decider, [row.text for row in rows])
    kept = [(row, decision) for row, decision in zip(rows, clean, strict=True) if not decision.abstained]
    by_attack = {}
    for attack in ATTACKS.values():
        print(f"{attack.name} …", file=sys.stderr, flush=True)
        some = kept[: attack.notes]
        texts = [_changed(attack, row, decider, seed) for row, _ in some]
        by_attack[attack.name] = figures([before for _, before in some], _decided(decider, texts), decider.task.labels)
    return {"rows": len(kept), "left_out": len(rows) - len(kept), "attacks": by_attack}


def _changed(attack: Attack, row: Example, decider: Decider, seed: int) -> str:
    def fits(text: str) -> bool:
        return not decider.encoder.predict(text).dropped

    return attack.on(row.text, decider.task.labels.labels[-1], fits, seed=f"{seed}/{row.id}")


def _decided(decider: Decider, texts: Sequence[str]) -> list[Decision]:
    return list(decider.decide_many(texts, rationale=False))


def figures(before: Sequence[Decision], after: Sequence[Decision], labels: LabelSet) -> dict[str, Any]:
    """How decisions change; those before are none of them abstentions."""
    flips = [
        labels.index(now.label or "") - labels.index(was.label or "")
        for was, now in zip(before, after, strict=True)
        if not now.abstained and now.label != was.label
    ]
    found = {
        "flips": _share(len(flips), len(before)),
        "abstained": _share(sum(now.abstained for now in after), len(before)),
    }
    if labels.kind == "ordered":
        less_severe = sum(levels > 0 for levels in flips)
        found["less_severe"] = _share(less_severe, len(before))
        found["two_levels"] = _share(sum(levels >= 2 for levels in flips), less_severe)
    return found


def _share(count: int, of: int) -> dict[str, Any]:
    """A share with its interval; both None of nothing."""
    if not of:
        return {"count": 0, "of": 0, "share": None, "interval": None}
    return {"count": count, "of": of, "share": count / of, "interval": list(metrics.wilson(count, of))}


def show(report: Mapping[str, Any]) -> None:
    """Prints a table for each set."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file has no width of its own
    for name, found in report["results"].items():
        title = f"{name}: {found['rows']} notes, {report['model']}"
        columns = ("attack", "what", "flips (95 %)", "less severe (95 %)", "of these 2 levels or more", "abstained")
        table = Table(*columns, title=title)
        for attack in report["attacks"]:
            one = found["attacks"][attack["name"]]
            table.add_row(
                attack["name"] + (" (no attack)" if attack["harmless"] else ""),
                attack["what"].replace("[", "\\["),
                *(_cell(one.get(key), interval=True) for key in ("flips", "less_severe")),
                *(_cell(one.get(key), interval=False) for key in ("two_levels", "abstained")),
            )
        console.print(table)
    console.print(report["measured"], style="bold")


def _cell(share: Mapping[str, Any] | None, *, interval: bool) -> str:
    if share is None or share["share"] is None:
        return ""
    if not interval:
        return f"{share['count']} of {share['of']}"
    low, high = share["interval"]
    return f"{100 * share['share']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


@click.command(help="What attacks on notes do to a bundle's labels.")
@click.option("--model", help="A bundle folder, zip or embedded model.  [default: the embedded one]")
@click.option(
    "--validation", multiple=True, callback=named_files, help="NAME=FILE.  [default: the committed CTAS notes]"
)
@click.option("--seed", default=13, show_default=True, help="Of what the attacks leave to chance.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write.")
def main(model: str | None, validation: dict[str, Path], seed: int, output: Path | None) -> None:
    """Command line of this module."""
    decider = load(model)
    try:
        report = measure(decider, validation or {"ctas": CORPUS / "validation.jsonl"}, seed=seed)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    show(report)
    if output is not None:
        write_report(report, output)


if __name__ == "__main__":
    main()
