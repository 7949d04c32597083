"""Whatever stops a run, the same job ends with the same bytes and decides nothing twice."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r2d_edge.audit import AuditLog, Head, verify_log
from r2d_edge.batch import windows
from r2d_edge.batch.files import Files
from r2d_edge.batch.job import SUFFIXES, Job, Summary
from r2d_edge.batch.run import Progress, run_batch
from r2d_edge.decide import Decider
from r2d_edge.errors import InputError, R2DError
from r2d_edge.inputs import Columns
from r2d_edge.machine import describe_machine
from r2d_edge.tables import Reading
from tests.tiny_models import TEXTS

ROWS = 22
TEXTS_OF_ALL = 16  # 6 rows repeat the text before them


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_ROWS", 8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "notes.jsonl"
    same = [n - 1 if n % 4 == 1 else n for n in range(ROWS)]  # every fourth note says what the one before it says
    rows: list[object] = [{"id": f"n{n}", "text": f"{m} {TEXTS[1 + m % 8]}"} for n, m in enumerate(same)]
    rows[3] = {"id": "n3", "text": ""}
    rows.insert(10, {"id": "bad"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Hasty(Files):
    """Waits for no disk: thousands of waits would take minutes."""

    def sync(self, handle: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


def job_of(source: Path, output: Path) -> Job:
    return Job((str(source),), output, rationale=False, batch_size=3)


def run(job: Job, decider: Decider, files: Files | None = None) -> Summary:
    return run_batch(job, lambda: decider, files=files or Hasty())


def outcome(job: Job) -> tuple[bytes, bytes]:
    return job.output.read_bytes(), job.beside(".rejected.jsonl").read_bytes()


@pytest.fixture
def expected(source: Path, tmp_path: Path, decider: Decider) -> tuple[bytes, bytes]:
    job = job_of(source, tmp_path / "expected.jsonl")
    run(job, decider)
    return outcome(job)


def test_rows_keep_their_order_and_hold_what_the_decider_says(source: Path, tmp_path: Path, decider: Decider) -> None:
    job = job_of(source, tmp_path / "out.jsonl")
    summary = run(job, decider, Files())
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    good = [row for row in rows if "text" in row]
    records = [json.loads(line) for line in job.output.read_text(encoding="utf-8").splitlines()]
    assert [record["id"] for record in records] == [row["id"] for row in good]
    for record, row in zip(records, good, strict=True):
        alone = decider.decide(row["text"], id=row["id"], rationale=False).to_json()
        assert list(record) == [key for key in alone if key != "ms"]
        assert record["probabilities"] == pytest.approx(alone["probabilities"], abs=2e-6)
        assert (record["label"], record["reason"]) == (alone["label"], alone["reason"])
    [bad] = [json.loads(line) for line in job.beside(".rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (bad["input"], bad["line"]) == (str(source), 11)
    assert "no field 'text'" in bad["reason"]
    assert (summary.notes, summary.rejected, summary.decided_now, summary.kept) == (ROWS, 1, TEXTS_OF_ALL, 0)
    assert summary.abstained == {"empty note": 1}
    assert sum(summary.labels.values()) == ROWS - 1
    left = sorted(path.name for path in tmp_path.glob("out*"))
    assert left == ["out.jsonl", "out.jsonl.journal", "out.jsonl.rejected.jsonl"]
    if sys.platform != "win32":
        assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("out*")} == {0o600}
    assert not any(row["text"] in job.beside(".journal").read_text(encoding="utf-8") for row in good if row["text"])


class Broken(Hasty):
    """The k-th step fails, half done where it writes; with `for_good`, all after it too."""

    def __init__(self, step: int, number: int, *, for_good: bool) -> None:
        self.steps = 0
        self._step = step
        self._number = number
        self._for_good = for_good

    @property
    def reached(self) -> bool:
        return self.steps > self._step

    def _fails(self) -> bool:
        self.steps += 1
        return self.steps > self._step if self._for_good else self.steps == self._step + 1

    def _check(self) -> None:
        if self._fails():
            raise OSError(self._number, os.strerror(self._number))

    def create(self, path: Path) -> int:
        self._check()
        return super().create(path)

    def append(self, path: Path, size: int) -> int:
        self._check()
        return super().append(path, size)

    def write(self, handle: int, data: bytes) -> None:
        if self._fails():
            super().write(handle, data[: len(data) // 2])
            raise OSError(self._number, os.strerror(self._number))
        super().write(handle, data)

    def sync(self, handle: int) -> None:
        self._check()
        super().sync(handle)

    def rename(self, source: Path, target: Path) -> None:
        self._check()
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._check()
        super().remove(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for good"])
def test_every_step_may_fail(
    number: int,
    for_good: bool,
    source: Path,
    tmp_path: Path,
    decider: Decider,
    expected: tuple[bytes, bytes],
) -> None:
    for step in range(200):
        job = job_of(source, tmp_path / f"{step}.jsonl")
        files = Broken(step, number, for_good=for_good)
        message = ""
        try:
            run(job, decider, files)
        except R2DError as error:
            message = str(error)
        assert files.reached == bool(message)
        if not message:
            break
        assert os.strerror(number) in message
        assert "run the same command again" in message
        if job.output.exists():  # it appears whole or not at all
            assert job.output.read_bytes() == expected[0]
        run(job, decider)
        assert outcome(job) == expected
        assert not job.beside(".partial").exists()
    assert step > 20  # as many steps as there are records, syncs and renames at the least


class StoppedError(Exception):
    pass


def test_what_is_journaled_is_never_decided_again(
    source: Path, tmp_path: Path, decider: Decider, expected: tuple[bytes, bytes]
) -> None:
    job = job_of(source, tmp_path / "out.jsonl")

    def stop_after(count: int) -> Iterator[None]:
        for _ in range(count - 1):
            yield
        raise StoppedError

    kept = []
    for _ in range(20):
        steps = stop_after(len(kept) + 2)

        def stop(progress: Progress, steps: Iterator[None] = steps) -> None:
            kept.append(progress.notes)
            next(steps)

        try:
            summary = run_batch(job, lambda: decider, files=Hasty(), on_progress=stop)
            break
        except StoppedError:
            assert not job.output.exists()
    assert len(kept) > 4
    assert summary.kept + summary.decided_now == TEXTS_OF_ALL
    assert summary.kept > 0
    assert outcome(job) == expected
    again = run(job, decider)
    assert (again.already_done, again.notes, again.rejected) == (True, ROWS, 1)


def unfinished(job: Job, decider: Decider) -> bytes:
    """A journal with every decision, whose output was never written."""

    class NoOutput(Hasty):
        def rename(self, source: Path, target: Path) -> None:
            raise OSError(errno.EIO, "no")

    with pytest.raises(R2DError):
        run(job, decider, NoOutput())
    return job.beside(".journal").read_bytes()


def test_a_journal_torn_or_damaged_anywhere_ends_well(
    source: Path, tmp_path: Path, decider: Decider, expected: tuple[bytes, bytes]
) -> None:
    job = job_of(source, tmp_path / "out.jsonl")
    whole = unfinished(job, decider)
    header = whole.index(b"\n") + 1
    for cut in range(0, len(whole), len(whole) // 23):
        for damaged in (whole[:cut], whole[:cut] + b"\0" * 512, whole[:cut] + b"#" + whole[cut + 1 :]):
            if cut < header and b"\n" in damaged:
                continue  # a damaged header is refused, see below
            for suffix in ("", *SUFFIXES):
                job.beside(suffix).unlink(missing_ok=True)
            job.beside(".journal").write_bytes(damaged)
            summary = run(job, decider)
            assert outcome(job) == expected
            assert summary.kept + summary.decided_now == TEXTS_OF_ALL
    job.output.unlink()
    job.beside(".journal").write_bytes(b"#" + whole[1:])
    with pytest.raises(InputError, match="damaged at its beginning"):
        run(job, decider)
    run(replace(job, force=True), decider)
    assert outcome(job) == expected


def test_another_input_option_or_bundle_is_refused(source: Path, tmp_path: Path, decider: Decider) -> None:
    job = job_of(source, tmp_path / "out.jsonl")
    journal = unfinished(job, decider)
    others = {
        "option batch size": replace(job, batch_size=4),
        "option rationale": replace(job, rationale=True),
        "option beam size": replace(job, options=(("beam size", 2),)),
        "option columns": replace(job, reading=Reading(Columns(id="id2"))),
        "option where": replace(job, reading=Reading(where={"id": "n1"})),
        "option format": replace(job, format="csv"),
        "option audit": replace(job, audit=tmp_path / "log"),
    }
    for what, other in others.items():
        with pytest.raises(InputError, match=f"another {what}: .*--force"):
            run(other, decider)
    before = source.read_bytes()
    source.write_bytes(before.replace(b'"n21"', b'"n99"'))
    with pytest.raises(InputError, match="another input: "):
        run(job, decider)
    source.write_bytes(before)
    bundle = decider.bundle
    decider.bundle = replace(bundle, digest="0" * 64)
    try:
        with pytest.raises(InputError, match="another bundle: "):
            run(job, decider)
    finally:
        decider.bundle = bundle
    assert job.beside(".journal").read_bytes() == journal  # a refusal costs nothing
    assert run(job, decider).decided_now == 0
    with pytest.raises(InputError, match="another option batch size"):
        run(others["option batch size"], decider)
    assert run(replace(job, batch_size=4, force=True), decider).decided_now == TEXTS_OF_ALL


def test_stdin_is_known_by_its_rows(
    source: Path, tmp_path: Path, decider: Decider, expected: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def feed(raw: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))

    job = replace(job_of(source, tmp_path / "out.jsonl"), inputs=("-",))
    raw = source.read_bytes()
    feed(raw)
    whole = unfinished(job, decider)
    lines = whole.splitlines(keepends=True)
    for kept in (len(lines) - 1, 3):  # to the middle of the last window, and of the first
        job.beside(".journal").write_bytes(b"".join(lines[:kept]))
        for other in (raw.replace(b'"n0"', b'"n99"'), raw.splitlines(keepends=True)[0]):
            feed(other)
            with pytest.raises(InputError, match="rows are not those"):
                run(job, decider)
    feed(raw)
    assert run(job, decider).kept > 0
    assert job.output.read_bytes() == expected[0]
    feed(raw)
    assert run(job, decider).already_done
    feed(raw.replace(b'"n21"', b'"n99"'))
    with pytest.raises(InputError, match="rows are not those"):
        run(job, decider)


def test_nothing_is_replaced_unasked(source: Path, tmp_path: Path, decider: Decider) -> None:
    job = job_of(source, tmp_path / "out.jsonl")
    job.output.write_text("a person's", encoding="utf-8")
    with pytest.raises(InputError, match="exists: choose another output"):
        run(job, decider)
    assert job.output.read_text(encoding="utf-8") == "a person's"
    run(replace(job, force=True), decider)
    whole = job.output.read_bytes()
    job.output.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="exists: "):
        run(job, decider)
    run(replace(job, force=True), decider)
    assert job.output.read_bytes() == whole
    for output, fault in (
        (source, "would be overwritten"),
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x", "no folder"),
    ):
        with pytest.raises(InputError, match=fault):
            run(replace(job, output=output, force=True), decider)


def test_a_strict_job_stops_at_the_first_bad_row_and_goes_on_without(
    source: Path, tmp_path: Path, decider: Decider, expected: tuple[bytes, bytes]
) -> None:
    job = job_of(source, tmp_path / "out.jsonl")
    with pytest.raises(InputError, match=r"notes\.jsonl, line 11: no field 'text'.*strict"):
        run(replace(job, strict=True), decider)
    assert not job.output.exists()
    assert run(job, decider).kept > 0  # the window before the bad row
    assert outcome(job) == expected


def test_progress_tells_how_far_the_work_is(source: Path, tmp_path: Path, decider: Decider) -> None:
    told: list[Progress] = []
    job = job_of(source, tmp_path / "out.jsonl")
    run_batch(job, lambda: decider, files=Hasty(), on_progress=told.append)
    shares = [progress.share for progress in told if progress.share is not None]
    assert shares == sorted(shares)
    assert (0 < shares[0] < 0.5, shares[-1]) == (True, 1.0)
    assert (told[-1].rows, told[-1].abstained, told[-1].rate > 0) == (ROWS + 1, 1, True)


def stopped_at(job: Job, decider: Decider, notes: int) -> None:
    """A run that was stopped when so many notes were decided."""

    def stop(progress: Progress) -> None:
        if progress.notes >= notes:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_batch(job, lambda: decider, files=Hasty(), on_progress=stop)


@pytest.fixture
def sources(source: Path, tmp_path: Path) -> list[Path]:
    """Inputs of every kind that is read in order: a table of each, and a folder."""
    table = tmp_path / "notes.csv"
    rows = [f'{number};"{number} {TEXTS[1 + number % 8]}\nmore";{"ab"[number % 2]}' for number in range(12)]
    table.write_text("id;text;ward\n" + "\n\n".join(rows) + "\n13;short\n", encoding="utf-8")
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"{number} {TEXTS[2]}", encoding="utf-8")
    return [source, table, folder]


def test_finished_rows_are_not_looked_into_again(
    sources: list[Path], tmp_path: Path, decider: Decider, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job_of(sources[0], tmp_path / "out.jsonl"), inputs=tuple(map(str, sources)))
    run(job, decider)
    expected = outcome(job)
    rows = len(expected[0].splitlines()) + len(expected[1].splitlines())
    assert rows == ROWS + 1 + 13 + 6
    looked: list[int] = []
    plain = windows.windows

    def counting(placed: Iterable[windows.Placed], **after: Any) -> Iterator[windows.Window]:
        for window in plain(placed, **after):
            looked.append(len(window.rows))
            yield window

    monkeypatch.setattr("r2d_edge.batch.run.windows", counting)
    for notes in (9, 17, 26, 34):
        for path in tmp_path.glob("out*"):
            path.unlink()
        stopped_at(job, decider, notes)
        looked.clear()
        summary = run(job, decider)
        assert outcome(job) == expected
        assert sum(looked) == rows - (notes // 8) * 8  # windows of 8 rows
        assert summary.kept + summary.decided_now == 34


def logged(log: Path) -> list[dict[str, Any]]:
    check = verify_log(log)
    assert check.faults == []
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if "event" not in record]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "data"))
    return tmp_path / "audit.jsonl"


def test_each_row_is_logged_once_whatever_stops_the_run(
    source: Path, tmp_path: Path, decider: Decider, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is stopped before, within and after each append to the log."""
    plain = AuditLog._append
    stops = 0
    for number in range(8):
        job = replace(job_of(source, tmp_path / f"{number}.jsonl"), audit=log)
        log.unlink(missing_ok=True)
        log.with_name(log.name + ".head").unlink(missing_ok=True)
        appends = 0

        def append(self: AuditLog, contents: list[dict[str, Any]], number: int = number) -> Head:
            nonlocal appends
            appends += 1
            if appends == number // 3 + 2:
                part = [[], contents[: len(contents) // 2], contents][number % 3]
                plain(self, part)
                if number % 3 == 1:  # torn: the line's end is not there
                    with self.path.open("r+b") as file:
                        file.truncate(self.path.stat().st_size - 5)
                    self.path.with_name(self.path.name + ".head").unlink()
                raise StoppedError
            return plain(self, contents)

        monkeypatch.setattr(AuditLog, "_append", append)
        try:
            run(job, decider)
        except StoppedError:
            stops += 1
            assert not job.output.exists()
        monkeypatch.setattr(AuditLog, "_append", plain)
        summary = run(job, decider)
        records = [json.loads(line) for line in job.output.read_text(encoding="utf-8").splitlines()]
        lines = logged(log)
        assert [(line["row"], line["id"], line["label"]) for line in lines] == [
            (row, record["id"], record["label"]) for row, record in enumerate(records)
        ]
        assert len({line["job"] for line in lines}) == 1
        assert summary.notes == len(lines) == ROWS
        run(job, decider)  # done: nothing is logged again
        assert len(logged(log)) == ROWS
    assert stops > 6


def test_stdin_and_jobs_begun_anew_are_logged_too(
    source: Path, tmp_path: Path, decider: Decider, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(job_of(source, tmp_path / "out.jsonl"), inputs=("-",), audit=log)

    def feed() -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))

    feed()
    stopped_at(job, decider, 10)
    assert len(logged(log)) == 8
    feed()
    run(job, decider)
    assert [line["row"] for line in logged(log)] == list(range(ROWS))
    feed()
    run(replace(job, batch_size=4, force=True), decider)
    assert [line["row"] for line in logged(log)] == [*range(ROWS), *range(ROWS)]


def test_a_log_without_the_finished_rows_is_refused(source: Path, tmp_path: Path, decider: Decider, log: Path) -> None:
    job = replace(job_of(source, tmp_path / "out.jsonl"), audit=log)
    stopped_at(job, decider, 18)
    with pytest.raises(InputError, match="lacks rows that this job has finished"):
        run(replace(job, audit=tmp_path / "other.jsonl"), decider)
    with pytest.raises(InputError, match="another option audit"):
        run(replace(job, audit=None), decider)
    run(job, decider)
    assert [line["row"] for line in logged(log)] == list(range(ROWS))
    for taken in (source, job.output, job.beside(".journal")):
        with pytest.raises(InputError, match="choose another name for the audit log"):
            run(replace(job, audit=taken, force=True), decider)


def test_another_processor_is_refused(
    source: Path, tmp_path: Path, decider: Decider, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(source, tmp_path / "out.jsonl")
    unfinished(job, decider)
    here = describe_machine()
    monkeypatch.setattr("r2d_edge.batch.run.describe_machine", lambda: {**here, "cpu": "another"})
    with pytest.raises(InputError, match=r"another processor .*--force") as refused:
        run(job, decider)
    assert here["cpu"] in str(refused.value)
    assert "version of this program" not in str(refused.value)
    run(replace(job, force=True), decider)
