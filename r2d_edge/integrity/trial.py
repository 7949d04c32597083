"""A bundle that was never loaded on this machine is loaded by a child process first.

Hashes say that a bundle is what its maker sealed, not that an engine's native code survives it. A crash there ends
the process; in a child it is an error message. A load that went well is remembered for the bundle, the engine's
version and the way it was loaded. `R2D_EDGE_TRUST=1` leaves the trial out, and so does the embedded model.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2d_edge.bundle import MANIFEST, Bundle, Manifest
from r2d_edge.errors import BundleError, R2DError
from r2d_edge.integrity.cores import leave_no_core

if TYPE_CHECKING:
    import numpy.typing as npt

    from r2d_edge.engines import EngineOptions
    from r2d_edge.integrity.golden import GoldenCheck

TRUST_VARIABLE = "R2D_EDGE_TRUST"
MEMORY_NAME = "loaded-bundles.json"
LIMIT_SECONDS = 600.0  # a large model on a slow disk; a load without end is refused, too
MAX_REMEMBERED = 200
_DISTRIBUTIONS = {"ctranslate2": "ctranslate2", "llama.cpp": "llama-cpp-python"}
SPARE_BYTES = 8 << 30  # what a load may take beside eight times the bundle's own size
_REPORT = "report.json"  # written by the child to the folder it runs in
_TOO_LARGE = 8
_NO_SCORES = 9
_FAILED = 7  # an ordinary error, which this process will meet and tell by itself
# The parent's own import path, so that the child runs the same code; nothing is read from the folder it runs in.
_CHILD = (
    "import json, sys; job = json.loads(sys.stdin.buffer.read()); sys.path[:] = job['path']; "
    "from r2d_edge.integrity.trial import child; sys.exit(child(job))"
)


def try_loading(bundle: Bundle, options: EngineOptions, *, limit: float = LIMIT_SECONDS) -> None:
    """Loads a bundle and scores a note in a child process, unless that went well here before.

    An ordinary error of the child is left to the caller's own load.

    Args:
        bundle: checked.
        options: the way in which the caller will load it.
        limit: seconds that the child may take.

    Raises:
        BundleError: the child crashed or did not come to an end.
    """
    if os.environ.get(TRUST_VARIABLE) == "1" or _is_embedded(bundle):
        return
    key = _key(bundle, options)
    if key not in _read_memory() and _try(bundle, options, limit) is not None:
        _remember(key)


def prove_apart(bundle: Bundle, *, limit: float = LIMIT_SECONDS) -> GoldenCheck:
    """Loads a new bundle on the CPU and scores its golden rows, both in a child process.

    If they are as they should be, the load is remembered like that of `try_loading`. Where the trial is left out, and
    to tell an ordinary error of the child, this process does the same.

    Args:
        bundle: checked.
        limit: seconds that the child may take.

    Raises:
        BundleError: the child crashed or did not come to an end, or the golden rows cannot be scored.
        EngineError: its engine cannot run here.
    """
    from r2d_edge.decide import Decider
    from r2d_edge.engines import EngineOptions
    from r2d_edge.integrity.golden import GoldenCheck, rescore

    options = EngineOptions(device="cpu")
    report = None
    if os.environ.get(TRUST_VARIABLE) != "1":
        report = _try(bundle, options, limit, score_golden=True)
    if report is None:
        return rescore(Decider(bundle, options))
    check = GoldenCheck(**report)
    if check.passed or check.nothing_to_compare:
        # Without a GPU, this is also how the bundle is loaded where no device is named.
        ways = [options] if _has_gpu() else [options, EngineOptions()]
        _remember(*(_key(bundle, way) for way in ways))
    return check


def _try(bundle: Bundle, options: EngineOptions, limit: float, *, score_golden: bool = False) -> dict[str, Any] | None:
    """What the child reports, or None after an ordinary error of its own.

    Raises:
        BundleError: it did not end as it should.
    """
    code, report = _run_child(bundle, options, limit, score_golden)
    if code == 0 and report is not None:
        return report
    if code == _TOO_LARGE:
        raise BundleError(f"{bundle.label} asks for far more memory than its size needs and is not loaded")
    if code == _NO_SCORES:
        raise BundleError(f"{bundle.label} loads, but its engine cannot score a note with it")
    if code != _FAILED:
        raise BundleError(
            f"{bundle.label} crashed its engine in a trial load ({_how_it_ended(code)}) and is not loaded; "
            f"`r2d-edge doctor` shows this machine's engines; {TRUST_VARIABLE}=1 leaves the trial out"
        )
    return None


def child(job: dict[str, Any]) -> int:
    """What the child process does; gives its exit code."""
    leave_no_core()  # a crash must not write memory to the disk
    _bound_memory(job)
    import numpy as np

    from r2d_edge.decide import Decider
    from r2d_edge.engines import EngineOptions
    from r2d_edge.integrity.golden import rescore
    from r2d_edge.label_scores import score_labels

    root = Path(job["root"])
    loaded = False
    try:
        # The parent has checked every file.
        manifest = Manifest.from_json(json.loads((root / MANIFEST).read_text(encoding="utf-8")))
        decider = Decider(Bundle(root, manifest, job["digest"]), EngineOptions(**job["options"]))
        loaded = True
        engine, prompt = decider.engine, decider.encoder.predict("Chest pain for two hours.").ids
        scores: npt.NDArray[Any]
        if manifest.task.labels.kind == "open":
            engine.generate([prompt], max_tokens=manifest.task.limits.label, decoding=manifest.decoding)
            scores = engine.next_log_probabilities([prompt], [[]])
        else:
            scores = score_labels(engine, decider.encoder, [prompt])
        if np.isnan(scores).any():
            return _NO_SCORES
        report = asdict(rescore(decider)) if job["score_golden"] else {}
        Path(_REPORT).write_text(json.dumps(report), encoding="utf-8")
    except BundleError:
        return _FAILED
    except MemoryError:
        return _TOO_LARGE
    except Exception as error:
        if "alloc" in str(error):  # a std::bad_alloc comes as a RuntimeError
            return _TOO_LARGE
        return _NO_SCORES if loaded else _FAILED
    return 0


def _run_child(
    bundle: Bundle, options: EngineOptions, limit: float, score_golden: bool
) -> tuple[int | None, dict[str, Any] | None]:
    """The child's exit code, None if it took too long, and its report if it came to write one."""
    import subprocess

    job = {
        "path": sys.path,
        "root": str(bundle.root.absolute()),
        "digest": bundle.digest,
        "options": asdict(options),
        "score_golden": score_golden,
    }
    with tempfile.TemporaryDirectory(prefix="r2d-edge-", ignore_cleanup_errors=True) as elsewhere:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD],
                input=json.dumps(job).encode("ascii"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, TRUST_VARIABLE: "1"},
                cwd=elsewhere,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None, None
        except OSError as error:
            raise BundleError(f"no process could be started to try {bundle.label} in: {error.strerror}") from None
        report = Path(elsewhere, _REPORT)
        return done.returncode, json.loads(report.read_text(encoding="utf-8")) if report.exists() else None


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "it did not come to an end"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}" if abs(code) < 1 << 16 else f"exit code {code & 0xFFFFFFFF:#x}"


def _is_embedded(bundle: Bundle) -> bool:
    from r2d_edge.catalogue import MODELS

    return bundle.root.resolve().is_relative_to(MODELS.resolve())


def _has_gpu() -> bool:
    import ctranslate2

    return bool(ctranslate2.get_cuda_device_count())


def _key(bundle: Bundle, options: EngineOptions) -> str:
    engine = bundle.manifest.engine
    import importlib.metadata  # not at the top: the embedded model starts without it
    import platform

    try:
        version = importlib.metadata.version(_DISTRIBUTIONS.get(engine, engine))
    except importlib.metadata.PackageNotFoundError:
        version = "?"
    return f"{platform.node()}/{bundle.digest}/{engine} {version}/{options.device}/{options.compute_type}"


def _memory_file() -> Path:
    from r2d_edge.assembly.store import data_folder

    return data_folder() / MEMORY_NAME


def _read_memory() -> list[str]:
    try:
        data = json.loads(_memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, R2DError):  # the last where there is no home folder
        return []
    return [key for key in data if isinstance(key, str)] if isinstance(data, list) else []


def _remember(*keys: str) -> None:
    with contextlib.suppress(OSError, R2DError):  # no home, or one that cannot be written to: tried again next time
        file = _memory_file()
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        keys = (*(known for known in _read_memory() if known not in keys), *keys)[-MAX_REMEMBERED:]
        temporary.write_text(json.dumps(keys, indent=1) + "\n", encoding="utf-8")
        temporary.replace(file)


def _bound_memory(job: dict[str, Any]) -> None:
    """A file's forged counts must not drive the machine into swapping; a GPU's driver maps too much for a bound."""
    if job["options"]["device"] == "cuda" or Path("/dev/nvidiactl").exists():
        return
    size = sum(path.stat().st_size for path in Path(job["root"]).rglob("*") if path.is_file())
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        most = SPARE_BYTES + 8 * size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
