"""A bundle whose native load crashes is an error message; the process that asked lives on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from r2d_edge.bundle import Bundle, open_bundle
from r2d_edge.decide import Decider
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError
from r2d_edge.integrity import trial
from r2d_edge.integrity.golden import rescore
from r2d_edge.integrity.trial import MEMORY_NAME, try_loading
from tests.cli.bundles import make_bundle, reseal

OPTIONS = EngineOptions(device="cpu", threads=1)

# Stands in for the engine's library in the child, which has the parent's import path.
CRASHES = {
    "abort": "import os\ndef get_cuda_device_count(): return 0\ndef Translator(*_, **__): os.abort()\n",
    "segfault": "import ctypes\ndef get_cuda_device_count(): return 0\ndef Translator(*_, **__): ctypes.string_at(0)\n",
    "exit": "import os\ndef get_cuda_device_count(): return 0\ndef Translator(*_, **__): os._exit(3)\n",
    "kill": "import os\ndef Translator(*_, **__): os.kill(os.getpid(), 9)\n",
}
ENDS = {"abort": "SIGABRT", "segfault": "SIGSEGV", "exit": "exit code 3", "kill": "SIGKILL"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    import torch

    torch.set_num_threads(1)
    return open_bundle(make_bundle(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("R2D_EDGE_TRUST", raising=False)


def break_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    folder.mkdir()
    (folder / "ctranslate2.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="crashes end as exit codes there, not as signals")
@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_of_native_code_is_an_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: str
) -> None:
    break_engine(tmp_path / "broken", monkeypatch, CRASHES[crash])
    with pytest.raises(BundleError, match=ENDS[crash]):
        try_loading(bundle, OPTIONS)
    assert not (tmp_path / "data" / MEMORY_NAME).exists()
    assert list((tmp_path / "broken").glob("core*")) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bound on memory is Linux's")
@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="a GPU's driver maps too much memory for a bound")
def test_a_load_that_wants_all_memory_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def get_cuda_device_count(): return 0\ndef Translator(*_, **__): return bytearray(12 << 30)\n"
    break_engine(tmp_path / "broken", monkeypatch, source)
    with pytest.raises(BundleError, match="far more memory"):
        try_loading(bundle, OPTIONS)


def test_a_load_without_end_is_refused(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_engine(tmp_path / "broken", monkeypatch, "import time\ntime.sleep(60)\n")
    with pytest.raises(BundleError, match="did not come to an end"):
        try_loading(bundle, OPTIONS, limit=1.5)


def test_a_good_load_is_remembered_for_this_very_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_loading(bundle, OPTIONS)
    [key] = json.loads((tmp_path / "data" / MEMORY_NAME).read_text(encoding="utf-8"))
    assert bundle.digest in key
    break_engine(tmp_path / "broken", monkeypatch, CRASHES["exit"])
    try_loading(bundle, OPTIONS)  # no child was started: it would have crashed
    with pytest.raises(BundleError):
        try_loading(Bundle(bundle.root, bundle.manifest, "0" * 64), OPTIONS)
    with pytest.raises(BundleError):
        try_loading(bundle, EngineOptions(device="cpu", compute_type="int8"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    with pytest.raises(BundleError):
        try_loading(bundle, OPTIONS)


def test_trust_and_the_embedded_model_need_no_trial(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from r2d_edge.catalogue import open_model

    break_engine(tmp_path / "broken", monkeypatch, CRASHES["exit"])
    try_loading(open_model(), OPTIONS)
    monkeypatch.setenv("R2D_EDGE_TRUST", "1")
    try_loading(bundle, OPTIONS)
    monkeypatch.setenv("R2D_EDGE_TRUST", "0")
    with pytest.raises(BundleError):
        try_loading(bundle, OPTIONS)


@pytest.mark.parametrize("garbage", ["", "{", '{"a": 1}', "[1, null]"])
def test_a_damaged_memory_is_no_memory(bundle: Bundle, tmp_path: Path, garbage: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / MEMORY_NAME).write_text(garbage, encoding="utf-8")
    trial._remember("a key")
    assert trial._read_memory() == ["a key"]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX file modes")
def test_a_data_folder_that_cannot_be_written_is_no_obstacle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "file"))
    try_loading(bundle, OPTIONS)


def test_a_user_without_a_home_is_no_obstacle(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("R2D_EDGE_DATA", "LOCALAPPDATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    try_loading(bundle, OPTIONS)


@pytest.mark.parametrize("trust", ["0", "1"])
def test_golden_rows_are_scored_apart_as_here(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, trust: str) -> None:
    monkeypatch.setenv("R2D_EDGE_TRUST", trust)
    check = trial.prove_apart(bundle)
    assert check.passed
    assert check == rescore(Decider(bundle, OPTIONS))
    assert any(bundle.digest in key for key in trial._read_memory()) == (trust == "0")


def test_golden_rows_that_cannot_be_scored_are_told(tmp_path: Path, bundle: Bundle) -> None:
    import shutil

    own = Path(shutil.copytree(bundle.root, tmp_path / "own"))
    (own / "golden.jsonl").write_text("[]\n", encoding="utf-8")
    reseal(own)
    with pytest.raises(BundleError, match="row 1 is malformed"):
        trial.prove_apart(open_bundle(own))


def test_an_end_without_a_report_is_a_crash(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_engine(tmp_path / "broken", monkeypatch, CRASHES["exit"].replace("_exit(3)", "_exit(0)"))
    for load in (lambda: try_loading(bundle, OPTIONS), lambda: trial.prove_apart(bundle)):
        with pytest.raises(BundleError, match="exit code 0"):
            load()


def test_an_ordinary_error_is_left_to_the_caller(tmp_path: Path, bundle: Bundle) -> None:
    import shutil

    own = Path(shutil.copytree(bundle.root, tmp_path / "own"))
    (own / "model" / "model.bin").write_bytes(b"garbage")
    reseal(own)
    try_loading(open_bundle(own), OPTIONS)
    assert not (tmp_path / "data" / MEMORY_NAME).exists()
