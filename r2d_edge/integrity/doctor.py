"""What `r2d-edge doctor` finds: the machine, the engines, and whether a model computes here what it computed before."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from r2d_edge.errors import R2DError
from r2d_edge.integrity.golden import rescore
from r2d_edge.machine import describe_machine

if TYPE_CHECKING:
    from r2d_edge.bundle import Bundle
    from r2d_edge.engines import EngineOptions

# What a fault report must state of an installation; the last ones are extras.
_PACKAGES = ("r2d-edge", "ctranslate2", "tokenizers", "numpy", "click", "rich", "llama-cpp-python", "cryptography")
# Set, they change which kernels run, and so what an int8 model computes.
_TELLING_VARIABLES = ("CT2_FORCE_CPU_ISA", "CT2_USE_MKL", "CT2_USE_EXPERIMENTAL_PACKED_GEMM", "OMP_NUM_THREADS")


@dataclass
class Findings:
    """All that was found.

    Attributes:
        sections: by name, JSON-ready; in the order in which they are shown.
        refusal: the error that kept the model from being examined further, if any.
        golden_passed: whether golden inputs were scored, all within the bound; None where the model was refused.
    """

    sections: dict[str, Any] = field(default_factory=dict)
    refusal: R2DError | None = None
    golden_passed: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """The findings as JSON-ready data."""
        return {**self.sections, "healthy": self.refusal is None and self.golden_passed is True}


def examine(model: str | None, options: EngineOptions) -> Findings:
    """Examines this machine and a model on it.

    A model that is refused is a finding, not an error: what is known of the machine is then most wanted.

    Args:
        model: name or path, as for `load`.
        options: what the engine may use.
    """
    findings = Findings({"machine": _machine(), "versions": installed_versions(), "engines": engine_builds()})
    try:
        _examine_model(findings, model, options)
    except R2DError as error:
        findings.refusal = error
        findings.sections["problem"] = str(error)
    return findings


def installed_versions() -> dict[str, str]:
    """Versions of this package and of what it runs on; `not installed` for an absent extra."""
    from r2d_edge import __version__

    found = {"r2d-edge": __version__}
    for name in _PACKAGES[1:]:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def engine_builds() -> dict[str, dict[str, Any]]:
    """What each engine's native build says it can do here; an engine that does not load says why."""
    return {"ctranslate2": _ctranslate2(), "llama.cpp": _llama_cpp()}


def _ctranslate2() -> dict[str, Any]:
    try:
        import ctranslate2
    except (ImportError, OSError, RuntimeError) as error:
        return {"problem": f"does not load: {_first_line(error)}"}
    return {
        "version": ctranslate2.__version__,
        "cpu_compute_types": sorted(ctranslate2.get_supported_compute_types("cpu")),
        "cuda_devices": ctranslate2.get_cuda_device_count(),
    }


def _llama_cpp() -> dict[str, Any]:
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return {"problem": "not installed (an extra: r2d-edge[gguf])"}
    return {"version": version}


def _machine() -> dict[str, Any]:
    found = describe_machine()
    if chosen := {name: os.environ[name] for name in _TELLING_VARIABLES if name in os.environ}:
        found["environment"] = chosen
    return found


def _examine_model(findings: Findings, model: str | None, options: EngineOptions) -> None:
    from r2d_edge.catalogue import open_model
    from r2d_edge.decide import Decider
    from r2d_edge.integrity.trial import try_loading

    bundle = open_model(model)
    findings.sections["bundle"] = _bundle(bundle)
    try_loading(bundle, options)
    decider = Decider(bundle, options)
    findings.sections["engine"] = decider.engine.describe()
    check = rescore(decider)
    findings.sections["golden"] = check.to_json()
    findings.golden_passed = check.passed


def _bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": bundle.label,
        "digest": bundle.digest,
        "engine": f"{manifest.engine} {manifest.compute_type}",
        "files": len(manifest.files),
        "bytes": sum(entry["size"] for entry in manifest.files.values()),
        "every_file_as_sealed": True,  # or it would have been refused
        "calibration": asdict(manifest.calibration),
    }


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
