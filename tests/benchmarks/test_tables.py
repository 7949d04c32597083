import re
from pathlib import Path

import pytest

from benchmarks.tables import TABLES, fill

ROOT = Path(__file__).parents[2]


CARDS = [
    place
    for name in ("triage-nano", "triage-small")
    for place in (f"train/recipes/{name}/card.md", f"r2d_edge/models/{name}/README.md")
]


@pytest.mark.parametrize("name", ["README.md", *CARDS])
def test_tables_are_those_of_the_committed_results(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.search(r"<!-- table: labels(-both)? -->\n\| set \|", text)
    assert fill(text) == text


def test_unknown_table() -> None:
    with pytest.raises(KeyError):
        fill("<!-- table: nonsense -->\n<!-- end -->")


def test_fill_replaces_what_stands_between() -> None:
    name = next(iter(TABLES))
    filled = fill(f"before\n<!-- table: {name} -->\nold\n<!-- end -->\nafter")
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("<!-- end -->\nafter")
