"""`batch --engine ray` as a user runs it: its own cluster comes and goes with it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.bundles import NOTES
from tests.cli.test_process import posix, start

pytestmark = pytest.mark.ray

ASKED = ["--engine", "ray", "--workers", "1"]
PRIVATE = "Confidential words of a patient"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where Ray may keep its sockets, whose paths must be short."""
    folder = Path(tempfile.mkdtemp(prefix="r2d-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def begin(folder: Path, bundle: Path, temporary: Path) -> subprocess.Popen[bytes]:
    files = [folder / "notes.jsonl", "-o", folder / "out.jsonl"]
    return start("batch", *files, *ASKED, "--model", bundle, "--no-rationale", env={"TMPDIR": str(temporary)})


def test_a_run_brings_its_own_cluster_and_takes_it_along(bundle: Path, tmp_path: Path, temporary: Path) -> None:
    rows = [json.dumps({"id": f"n{n}", "text": note}) for n, note in enumerate(NOTES)]
    (tmp_path / "notes.jsonl").write_text("\n".join([*rows, f'{{"text": "{PRIVATE}}}\n']), encoding="utf-8")
    process = begin(tmp_path, bundle, temporary)
    said, told = process.communicate(timeout=300)
    assert (process.returncode, said) == (4, b""), told
    assert b"1 rows could not be read: see " + bytes(tmp_path / "out.jsonl.rejected") in told
    assert b"Traceback" not in told
    assert b"rows rejected" in told
    assert PRIVATE.encode() not in told
    assert sorted(path.name for path in (tmp_path / "out.jsonl").iterdir()) == ["_SUCCESS", "part-000000.jsonl"]
    found = (tmp_path / "out.jsonl" / "part-000000.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in found] == [f"n{n}" for n in range(len(NOTES))]
    assert list(temporary.iterdir()) == []


@posix
def test_a_run_that_is_stopped_leaves_nothing(bundle: Path, tmp_path: Path, temporary: Path) -> None:
    rows = [json.dumps({"text": f"{n} {NOTES[n % 4]}"}) + "\n" for n in range(20_000)]
    (tmp_path / "notes.jsonl").write_text("".join(rows), encoding="utf-8")
    process = begin(tmp_path, bundle, temporary)
    while process.poll() is None and not (tmp_path / "out.jsonl").exists():
        time.sleep(0.1)
    assert list(temporary.glob("*/session_*"))
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 143, told
    assert b"Traceback" not in told
    assert [path.name for path in tmp_path.glob("out*")] == []
    assert list(temporary.iterdir()) == []
