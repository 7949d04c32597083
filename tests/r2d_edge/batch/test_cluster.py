"""A Ray cluster of two processes here: it decides as a local run does, loses nothing, and tells no note's text."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from r2d_edge.batch.job import Job
from r2d_edge.batch.run import run_batch
from r2d_edge.decide import Decider
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError, EngineError, InputError
from r2d_edge.inputs import Columns
from r2d_edge.tables import Reading
from tests.tiny_models import TEXTS

if TYPE_CHECKING:
    from r2d_edge.batch.cluster import ClusterJob

pytestmark = pytest.mark.ray

WORKERS = 2  # where it matters; to start one takes seconds
PRIVATE = "Confidential words of a patient"


@pytest.fixture(scope="module")
def logs() -> Iterator[Path]:
    """A cluster for all tests of this file; gives the folder where it keeps its logs."""
    from r2d_edge.batch import cluster  # noqa: F401  it says how Ray starts
    import ray  # isort: skip

    folder = Path(tempfile.mkdtemp(prefix="r2d-"))
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder))
    yield folder
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def write_rows(path: Path, count: int, start: int = 0) -> Path:
    rows = [{"id": f"n{n}", "text": f"{n} {TEXTS[1 + n % 8][: 20 + n % 50]}"} for n in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def job_of(bundle: Path, *inputs: Path, output: Path, workers: int = 1, **options: Any) -> ClusterJob:
    from r2d_edge.batch.cluster import ClusterJob

    options = {"rationale": False, "model": str(bundle), **options}
    return ClusterJob(tuple(map(str, inputs)), str(output), engine=EngineOptions(workers=workers), **options)


def local(decider: Decider, *inputs: Path, output: Path, **options: Any) -> bytes:
    """What a local run writes."""
    options = {"rationale": False, **options}
    run_batch(Job(tuple(map(str, inputs)), output, **options), lambda: decider)
    return output.read_bytes()


def parts(folder: Path) -> bytes:
    """All parts as one; the folder holds nothing else but the sign that all is done."""
    names = sorted(path.name for path in folder.iterdir())
    assert names[0] == "_SUCCESS"
    return b"".join((folder / name).read_bytes() for name in names[1:])


@pytest.mark.usefixtures("logs")
def test_two_processes_decide_as_one_does(bundle: Path, decider: Decider, tmp_path: Path) -> None:
    from r2d_edge.batch.cluster import run_on_ray

    first, second = write_rows(tmp_path / "a.jsonl", 1500), write_rows(tmp_path / "b.jsonl", 100, start=1500)
    with second.open("a", encoding="utf-8") as more:
        more.write('{"id": "bad"}\n{"id": "empty", "text": ""}\n{"id": "\\u00e9", "text": "lone \\ud800 surrogate"}\n')
    summary = run_on_ray(job_of(bundle, first, second, output=tmp_path / "out", workers=WORKERS))
    found = [json.loads(line) for line in parts(tmp_path / "out").splitlines()]
    expected = map(json.loads, local(decider, first, second, output=tmp_path / "out.jsonl").splitlines())
    for record, other in zip(found, expected, strict=True):
        # Windows begin anew with each file, and who is scored together shows in the last digit.
        assert record.pop("probabilities") == pytest.approx(other.pop("probabilities"), abs=2e-6)
        assert record == other
    if sys.platform != "win32":
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    [rejected] = (tmp_path / "out.rejected").iterdir()
    assert rejected.read_bytes() == (tmp_path / "out.jsonl.rejected.jsonl").read_bytes()
    assert (summary.notes, summary.rejected) == (1602, 1)
    assert summary.abstained == {"empty note": 1, "not valid Unicode": 1}
    assert sum(summary.labels.values()) == 1600


@pytest.mark.usefixtures("logs")
def test_rationales_and_checks_are_those_of_a_local_run(bundle: Path, decider: Decider, tmp_path: Path) -> None:
    from pyarrow import parquet

    from r2d_edge.batch.cluster import run_on_ray

    notes = write_rows(tmp_path / "notes.jsonl", 70)
    asked = {"rationale": True, "check": True, "batch_size": 16, "format": "parquet"}
    run_on_ray(job_of(bundle, notes, output=tmp_path / "out", **asked))
    local(decider, notes, output=tmp_path / "out.parquet", **asked)
    [part] = (tmp_path / "out").glob("part-*.parquet")
    found = parquet.read_table(part)
    assert found.equals(parquet.read_table(tmp_path / "out.parquet"))
    assert found.num_rows == 70
    assert all(found.column("rationale").to_pylist())


class Killer(threading.Thread):
    """Kills a process of the cluster while it decides a window."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed: list[int] = []

    def run(self) -> None:
        import psutil

        until = time.monotonic() + 60
        while not self.killed and time.monotonic() < until:
            for process in psutil.Process().children(recursive=True):
                try:
                    title = " ".join(process.cmdline())
                    if "_Actor" in title and ".submit" in title:  # as Ray calls it while it works
                        process.kill()
                        self.killed.append(process.pid)
                        return
                except psutil.Error:
                    continue
            time.sleep(0.02)


@pytest.mark.usefixtures("logs")
def test_a_killed_process_loses_and_doubles_nothing(bundle: Path, decider: Decider, tmp_path: Path) -> None:
    from r2d_edge.batch.cluster import run_on_ray

    notes = write_rows(tmp_path / "notes.jsonl", 3000)
    expected = local(decider, notes, output=tmp_path / "out.jsonl")
    killer = Killer()
    killer.start()
    summary = run_on_ray(job_of(bundle, notes, output=tmp_path / "out", workers=WORKERS))
    assert killer.killed
    assert summary.notes == 3000
    found = parts(tmp_path / "out")
    assert [json.loads(line)["id"] for line in found.splitlines()] == [f"n{n}" for n in range(3000)]
    assert found == expected


@pytest.mark.usefixtures("logs")
def test_a_folder_of_tables_becomes_csv_that_runs_nothing(bundle: Path, decider: Decider, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    from r2d_edge.batch.cluster import run_on_ray

    folder = tmp_path / "in"
    folder.mkdir()
    table = f'visit;words;ward\n=1;"{TEXTS[1]}";a\n+2;"{TEXTS[2]}";b\n3;"{TEXTS[3]}";a\n'
    (folder / "a.csv.gz").write_bytes(gzip.compress(table.encode("utf-8")))
    rows = {"visit": ["p1", "p2"], "words": [TEXTS[4], None], "ward": ["a", "a"]}
    parquet.write_table(pyarrow.table(rows), folder / "b.parquet")
    (folder / "_SUCCESS").touch()
    reading = Reading(Columns("words", "visit"), where={"ward": "a"})
    summary = run_on_ray(job_of(bundle, folder, output=tmp_path / "out.csv", reading=reading, format="csv"))
    assert (summary.notes, summary.rejected) == (3, 1)
    found = list(csv.DictReader(io.StringIO(parts(tmp_path / "out.csv").decode("utf-8"), newline="")))
    assert [row["id"] for row in found] == ["'=1", "3", "p1"]
    assert [float(row["probability urgent"]) for row in found] == [
        pytest.approx(decider.decide(text, rationale=False).probabilities["urgent"], abs=2e-6)
        for text in (TEXTS[1], TEXTS[3], TEXTS[4])
    ]
    [rejected] = (tmp_path / "out.csv.rejected").iterdir()
    assert json.loads(rejected.read_text(encoding="utf-8")) == {
        "input": str(folder / "b.parquet"),
        "line": 2,
        "reason": "column 'words' is null, not a string",
    }


@pytest.mark.usefixtures("logs")
def test_a_strict_job_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    from r2d_edge.batch.cluster import run_on_ray

    notes = write_rows(tmp_path / "notes.jsonl", 3)
    with notes.open("a", encoding="utf-8") as more:
        more.write(f'{{"text": "{PRIVATE}}}\n')
    with pytest.raises(InputError, match="line 4: not JSON") as caught:
        run_on_ray(job_of(bundle, notes, output=tmp_path / "out", strict=True))
    assert PRIVATE not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.jsonl"]


class _Failing:
    def decide_many(self, texts: Sequence[str], **_: Any) -> list[Any]:
        raise ValueError(texts[0])


def test_an_error_in_a_worker_tells_no_text(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: Path
) -> None:
    from r2d_edge.batch import cluster

    class Failing(cluster._Actor):
        def __init__(self, job: ClusterJob, digest: str) -> None:
            self._job = job
            self._decider = _Failing()  # type: ignore[assignment]

    monkeypatch.setattr(cluster, "_Actor", Failing)
    (tmp_path / "notes.jsonl").write_text(json.dumps({"text": PRIVATE}) + "\n", encoding="utf-8")
    with pytest.raises(EngineError, match="ValueError") as caught:
        cluster.run_on_ray(job_of(bundle, tmp_path / "notes.jsonl", output=tmp_path / "out"))
    assert PRIVATE not in str(caught.value) + str(caught.value.__cause__) + repr(caught.value.__cause__)
    assert not (tmp_path / "out").exists()
    written = [path for path in logs.rglob("*") if path.is_file()]
    assert any("ray-data" in path.name for path in written)
    assert [path for path in written if PRIVATE.encode() in path.read_bytes()] == []


@pytest.mark.usefixtures("logs")
def test_a_worker_with_another_bundle_refuses(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2d_edge.batch import cluster

    notes = write_rows(tmp_path / "notes.jsonl", 3)
    meant = cluster._decide_all
    monkeypatch.setattr(cluster, "_decide_all", lambda job, tables, digest, parts: meant(job, tables, "0" * 64, parts))
    with pytest.raises(BundleError, match="another bundle"):
        cluster.run_on_ray(job_of(bundle, notes, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_way_is_told_before_any_work(bundle: Path, tmp_path: Path) -> None:
    from r2d_edge.batch.cluster import run_on_ray

    notes, output = write_rows(tmp_path / "notes.jsonl", 3), tmp_path / "out"

    def refused(*inputs: Path, **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            run_on_ray(job_of(bundle, *inputs, **{"output": output, **options}))
        return str(caught.value)

    assert "there is no file" in refused(tmp_path / "none.jsonl")
    assert "holds no files" in refused(_folder(tmp_path / "empty"))
    (tmp_path / "x.unknown").touch()
    assert "--input-format" in refused(tmp_path / "x.unknown")
    (tmp_path / "x.txt").touch()
    assert "--engine local" in refused(tmp_path / "x.txt")
    assert "is a file" in refused(notes, output=tmp_path / "x.txt", force=True)
    (_folder(output) / "part-000000.jsonl").touch()
    assert "--force" in refused(notes)
    assert "would be overwritten" in refused(output / "part-000000.jsonl", force=True)
    (output / "letters.doc").touch()
    assert "more than an earlier run's parts" in refused(notes, force=True)
    _folder(tmp_path / "other.rejected")
    assert "--force" in refused(notes, output=tmp_path / "other")
    assert "cannot be reached" in refused(notes, output="nowhere://bucket/out")  # type: ignore[arg-type]
    assert sorted(path.name for path in output.iterdir()) == ["letters.doc", "part-000000.jsonl"]


def test_places_have_paths_and_uris(tmp_path: Path) -> None:
    from r2d_edge.batch.places import Folder, open_table, tables_of

    uri = tmp_path.as_uri()
    write_rows(tmp_path / "a.jsonl", 1)
    (_folder(tmp_path / "b") / "c.ndjson.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    tables = tables_of(uri, Reading())
    assert [table.name for table in tables] == [f"{uri}/a.jsonl", f"{uri}/b/c.ndjson.gz"]
    for table in tables:
        with open_table(table) as stream:
            assert stream.read() == (tmp_path / "a.jsonl").read_bytes()
    folder = Folder(f"{uri}/out")
    folder.make(force=False)
    with folder.open("part-000000.csv") as stream:
        stream.write(b"x")
    assert (tmp_path / "out" / "part-000000.csv").read_bytes() == b"x"
    assert folder.holds(tables_of(str(tmp_path / "out" / "part-000000.csv"), Reading())[0])
    assert not any(folder.holds(table) for table in tables)
    folder.make(force=True)
    assert list((tmp_path / "out").iterdir()) == []
    folder.remove()
    folder.remove()
    assert not (tmp_path / "out").exists()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
