"""Contrast pairs: two notes that are one decisive finding apart (Gardner et al. 2020, Findings of EMNLP).

Their ids are the same but for a last letter, `a` and `b`: `r2g-0012a` and `r2g-0012b`. A model that reads the
decisive finding has both right; one that goes by the rest of the note has at most one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_MEMBER = re.compile(r"(.*\d)([a-z])", re.DOTALL)


def contrast_pairs(ids: Iterable[str]) -> list[tuple[str, str]]:
    """The pairs among ids, in the order of their first member.

    The stem must end in a digit and occur with `a` and `b` alone, so that running hexadecimal or lettered
    ids (`9a`, `9b`, `9c`, …) are not taken for pairs.
    """
    names = list(ids)
    letters: dict[str, set[str]] = defaultdict(set)
    for name in names:
        if match := _MEMBER.fullmatch(name):
            letters[match[1]].add(match[2])
    known = set(names)
    stems = [name[:-1] for name in names if name.endswith("a") and letters.get(name[:-1]) == {"a", "b"}]
    return [(f"{stem}a", f"{stem}b") for stem in stems if not any(f"{stem}{digit}" in known for digit in range(10))]
