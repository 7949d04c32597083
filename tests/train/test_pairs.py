import json
from pathlib import Path

from train.pairs import contrast_pairs

CORPUS = Path(__file__).parents[2] / "train" / "corpora" / "ctas_notes"


def test_pairs_of_ids() -> None:
    ids = ["n-2b", "n-1a", "x", "n-2a", "n-1b", "n-3a", "plana", "planb"]
    assert contrast_pairs(ids) == [("n-1a", "n-1b"), ("n-2a", "n-2b")]  # in the order of the first members


def test_running_letters_and_hexadecimal_ids_are_no_pairs() -> None:
    assert contrast_pairs(["1a", "1b", "1c"]) == []
    assert contrast_pairs([f"{number:02x}" for number in range(64)]) == []
    assert contrast_pairs([]) == []


def test_the_pairs_of_the_notes() -> None:
    with (CORPUS / "validation.jsonl").open(encoding="utf-8") as lines:
        rows = {row["id"]: row for row in map(json.loads, lines)}
    pairs = contrast_pairs(rows)
    assert len(pairs) == 16
    assert all(rows[a]["label"] != rows[b]["label"] for a, b in pairs)
