"""The rows on which a bundle is proven, and which travel in it to be checked again at the clinic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# Invented for this purpose, of mixed length, with figures, units and signs from outside ASCII. They need
# not fit a model's task: what is compared is whether two engines compute the same.
SAMPLE_NOTES = (
    "Sore throat.",
    "34 y/o male, twisted left ankle playing football an hour ago, walks with a limp, swelling at the outer side, "
    "no numbness. Pain 4/10.",
    "72F brought in by EMS, sudden weakness of the right arm and slurred speech since 07:40. BP 188/102, HR 91 "
    "irregular, SpO2 96 % on room air, glucose 6.2 mmol/L. Takes metoprolol, no blood thinner known.",
    "Needs a repeat prescription for blood pressure tablets, feels well.",
    "2-year-old, fever 39.4 °C since last night, drinking little, one wet nappy today, sleepy but wakes to voice. "
    "Capillary refill 2 s. No rash. Vaccinations up to date.",
    "Chest tightness for 40 minutes, spreading to the jaw, pale and sweating. 58 y/o, smoker, diabetic. BP 98/60, "
    "HR 112, RR 24. Aspirin given by the ambulance crew.",
    "Found unresponsive in the bathroom by his daughter. Breathing is shallow at 6/min, pupils pinpoint, empty "
    "blister of oxycodone beside him. GCS 5.",
    "Cut on the index finger from a kitchen knife, 1.5 cm, bleeding stopped with pressure, moves and feels normally. "
    "Tetanus shot 3 years ago.",
    "Lower abdominal pain, right > left, since yesterday, vomited twice, T 38.1 °C, guarding on the right. "
    "Last period 5 weeks ago, test not done yet.",
    "Asthma since childhood, out of inhaler for a week. Short phrases, wheeze on both sides, RR 28, SpO2 91 %.",
    "Itchy rash on both forearms after gardening, three days, no fever, no breathing trouble.",
    "Low back pain for two weeks after moving furniture; no leg weakness, no numbness, bladder and bowel as usual. "
    "Paracetamol helps a little. Came on foot.",
    "Palpitations, HR 164 regular on the monitor, BP 118/74, alert, a bit light-headed. Had the same in March, "
    "went away with a drip in the emergency room.",
    "Bee sting on the neck 10 min ago: lips swollen, hoarse voice, hives all over. BP 84/50. Carries no pen.",
    "Feels low since losing her job, sleeps badly, thinks at times that it would be better not to wake up, has no "
    "plan, came with her sister and asks for help. Calm, answers questions, no alcohol tonight. History of one "
    "depressive episode eight years ago, treated with sertraline for a year. Lives with the sister, no weapon at home, "
    "no self-harm in the past. Vital signs normal: T 36.7 °C, HR 78, BP 124/80, RR 14, SpO2 99 %.",
    "Stitches out, day 7, wound dry.",
)


@dataclass(frozen=True)
class GoldenRow:
    """An input by its id."""

    id: str
    text: str


def sample_rows() -> list[GoldenRow]:
    """The built-in rows."""
    return [GoldenRow(f"sample-{number:02d}", text) for number, text in enumerate(SAMPLE_NOTES, start=1)]


def read_rows(path: Path) -> list[GoldenRow]:
    """Reads rows from JSON Lines with `text` and, optionally, `id` (default: the line's number).

    Raises:
        ValueError: the file holds no row, or a line is not such a row; the message names every bad line.
    """
    rows: list[GoldenRow] = []
    problems: list[str] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                row = GoldenRow(str(data.get("id", number)), data["text"])
            except (ValueError, KeyError, AttributeError):
                problems.append(f"line {number} is no JSON object with a text")
                continue
            if not isinstance(row.text, str) or not row.text.strip():
                problems.append(f"line {number} has a blank text")
            elif any(row.id == other.id for other in rows):
                problems.append(f"line {number} repeats id {row.id!r}")
            else:
                rows.append(row)
    if not rows and not problems:
        problems.append("it holds no row")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return rows


def write_rows(path: Path, rows: Sequence[GoldenRow], labels: Sequence[str], scores: npt.NDArray[np.float64]) -> None:
    """Writes golden rows with their labels' log-probabilities [rows, labels], as a bundle holds them."""
    lines = []
    for row, values in zip(rows, scores, strict=True):
        log_probabilities = {label: round(float(value), 6) for label, value in zip(labels, values, strict=True)}
        record = {"id": row.id, "text": row.text, "log_probabilities": log_probabilities}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path.write_bytes("".join(lines).encode("utf-8"))
