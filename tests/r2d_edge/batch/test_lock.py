from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r2d_edge.batch.lock import locked
from r2d_edge.errors import InputError

ROOT = Path(__file__).parents[3]
HOLD = "import sys; from pathlib import Path; from r2d_edge.batch.lock import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.lock"
    with locked(path):
        with pytest.raises(InputError, match=r"another run is at work on .*out\.jsonl:"), locked(path):
            pass
        assert path.exists()
    assert not path.exists()
    with locked(path):
        pass


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(InputError), locked(path):
            pass
        process.kill()
        process.wait(timeout=30)
    assert path.exists()  # nobody was left to remove it
    with locked(path):
        pass
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_waits_for_held_work_and_a_second_does_not() -> None:
    code = (
        "import os, signal, sys; from r2d_edge.batch.stops import Stops\n"
        "before = signal.getsignal(signal.SIGINT)\n"  # a background job is started with it ignored
        "with Stops({signal.SIGINT: (KeyboardInterrupt, 130)}) as stops:\n"
        "    try:\n"
        "        with stops.held():\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "            print('finished', flush=True)\n"
        "            if sys.argv[1] == '2': os.kill(os.getpid(), signal.SIGINT)\n"
        "        print('not reached', flush=True)\n"
        "    except KeyboardInterrupt: print('raised', flush=True)\n"
        "print(signal.getsignal(signal.SIGINT) is before)\n"
    )
    once, twice = (
        subprocess.run([sys.executable, "-c", code, count], cwd=ROOT, capture_output=True, text=True, timeout=30)
        for count in "12"
    )
    assert (once.returncode, once.stdout.split()) == (0, ["finished", "raised", "True"])
    assert (twice.returncode, twice.stdout.split()) == (130, ["finished"])
    assert "once more stops at once" in once.stderr
