"""Workers and threads of a batch run: measured once for a machine, a bundle and an engine's version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r2d_edge import threads
from r2d_edge.batch import tuning
from r2d_edge.batch.tuning import Choice, Plan, choices, choose_plan, input_bytes, plan_of_journal
from r2d_edge.decide import Decider, load
from r2d_edge.engines import EngineOptions

OPTIONS = EngineOptions(device="cpu")


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(tuning.os, "cpu_count", lambda: 2)
    for name, value in (("PROBE_NOTES", 1), ("NOTES_AT_ONCE", 2), ("LABELS_AT_ONCE", 2)):
        monkeypatch.setattr(tuning, name, value)


def plan_for(
    decider: Decider, told: list[str], *, size: int = tuning.MIN_BYTES, rationale: bool = False
) -> Plan | None:
    def opened(options: EngineOptions) -> Decider:
        told.append(f"{options.workers} x {options.threads}")
        return load(decider.bundle.root, options)

    return choose_plan(decider.bundle, OPTIONS, opened, rationale=rationale, size=size, tell=told.append)


@pytest.mark.parametrize(
    ("cores", "replicas", "expected"),
    [
        (1, True, [(1, 1)]),
        (2, True, [(1, 1), (2, 1), (1, 2)]),
        (2, False, [(1, 1), (1, 2)]),
        (4, True, [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]),
        (6, True, [(1, 1), (1, 2), (3, 1), (1, 4), (6, 1), (3, 2)]),
    ],
)
def test_what_is_tried_fills_the_cores_or_half_of_them(cores: int, replicas: bool, expected: list[Choice]) -> None:
    assert choices(cores, replicas=replicas) == expected
    assert all(workers * count <= cores for workers, count in choices(cores, replicas=replicas))


def test_it_is_measured_once_and_remembered(decider: Decider, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    plan = plan_for(decider, told)
    assert plan is not None
    assert (plan.workers, plan.threads) in choices(2, replicas=True)
    assert told[1:] == ["1 x 1", "2 x 1", "1 x 2"]
    assert "done once" in told[0]
    told.clear()
    again = plan_for(decider, told, size=0)
    assert again is not None
    assert (again.workers, again.threads, told) == (plan.workers, plan.threads, [])
    assert plan_for(decider, told, size=0, rationale=True) is None  # other work
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    assert plan_for(decider, told, size=0) is None  # another engine


def test_what_takes_fewer_cores_wins_where_it_is_about_as_fast(
    decider: Decider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates_of(*found: float) -> Callable[..., dict[Choice, float]]:
        return lambda *_, **__: dict(zip([(1, 1), (2, 1), (1, 2)], found, strict=True))

    for found, expected in (((100.0, 104.0, 90.0), (1, 1)), ((100.0, 150.0, 149.0), (2, 1)), ((1.0, 2.0, 2.1), (1, 2))):
        monkeypatch.setattr(tuning, "_rates", rates_of(*found))
        plan, _ = tuning.tuned_plan(decider.bundle, OPTIONS, lambda _: decider, rationale=True)
        assert (plan.workers, plan.threads) == expected


def test_a_model_too_slow_to_be_measured_keeps_the_rule(decider: Decider, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(tuning, "MAX_SECONDS", 0.0)
    assert plan_for(decider, told) is None
    assert told[1:] == ["1 x 1"]
    told.clear()
    assert plan_for(decider, told) is None
    assert told == []


def test_small_inputs_and_gpus_are_not_tuned_for(decider: Decider, tmp_path: Path) -> None:
    told: list[str] = []
    assert plan_for(decider, told, size=tuning.MIN_BYTES - 1) is None
    assert not tuning.is_tunable(decider.bundle, EngineOptions(device="cuda"))
    assert told == []
    (tmp_path / "texts").mkdir()
    for name in ("texts/a.txt", "texts/b.txt", "texts/c.pdf", "table.csv"):
        (tmp_path / name).write_bytes(b"12345")
    assert input_bytes(["-", str(tmp_path / "texts"), str(tmp_path / "table.csv"), str(tmp_path / "absent")]) == 15


def test_a_damaged_memory_or_journal_tells_nothing(decider: Decider, tmp_path: Path) -> None:
    key = tuning._key(decider.bundle, OPTIONS, rationale=False)
    for damaged in ([1], [0, 1], [1, 3], ["1", "1"], 2, None, [True, 1]):
        threads.remember(key, damaged)
        assert tuning.remembered_plan(decider.bundle, OPTIONS, rationale=False) is None
    journal = tmp_path / "j"
    assert plan_of_journal(journal, decider.bundle.digest) is None
    journal.write_bytes(b"1,2\n")
    assert plan_of_journal(journal, decider.bundle.digest) is None
