"""A model on disk: a folder (or one .zip) that is checked whole before any engine opens a file.

`manifest.json` names every other file with its size and SHA-256; the digest of the manifest itself
is the bundle's identity. See "A bundle" in the README's design notes.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from r2d_edge.errors import BundleError, InputError
from r2d_edge.hashing import file_sha256
from r2d_edge.policy import LabelSetRule, Policy
from r2d_edge.task import Task

SCHEMA = 1
MANIFEST = "manifest.json"
GOLDEN = "golden.jsonl"
TOKENIZER = "tokenizer.json"
CARD = "README.md"
REQUIRED_FILES = (GOLDEN, TOKENIZER, CARD)
MAX_MANIFEST_BYTES = 1 << 20
MAX_BUNDLE_BYTES = 64 << 30
_CHUNK = 1 << 20
# What zipfile lets through of its own and its decompressors' errors on a damaged archive.
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class Decoding:
    """How this bundle's rationales are decoded; fixed when the bundle is made.

    Attributes:
        beam_size: 1 decodes greedily.
        repetition_penalty: CTranslate2's and transformers' option of that name; 1 is none.
        no_repeat_ngram: no run of so many tokens occurs twice; 0 is no rule.
        only_numbers_of_the_note: a sentence that states a number which the note does not hold is written
            anew or left out, and so is a rationale that is a label's name alone (see `r2d_edge.revision`); where
            none can stay, the rationale is empty.
    """

    beam_size: int = 1
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    only_numbers_of_the_note: bool = False

    def __post_init__(self) -> None:
        _check_number("beam_size", self.beam_size, 1, integer=True)
        _check_number("repetition_penalty", self.repetition_penalty, 1)
        _check_number("no_repeat_ngram", self.no_repeat_ngram, 0, integer=True)
        if not isinstance(self.only_numbers_of_the_note, bool):
            raise ValueError(f"only_numbers_of_the_note must be true or false, not {self.only_numbers_of_the_note!r}")


@dataclass(frozen=True)
class Calibration:
    """What turns raw label scores into probabilities and abstentions, and where it came from.

    Attributes:
        temperature: raw log-probabilities are divided by it.
        abstain_below: abstain when the best calibrated probability is below this.
        source: how and on what these were fitted.
        settings: temperatures of the settings that the model was fitted for apart, by their names. Which of
            them a note comes from cannot be seen in the note: the user says it, or `temperature` holds.
        policy: how a label is chosen, as `policy.Policy.to_json` writes it; empty for the most probable one.
        label_set: the conformal sets, as `policy.LabelSetRule.to_json` writes them; empty for none.
        by_setting: `abstain_below` and `label_set` of settings that have their own, by their names.
    """

    temperature: float = 1.0
    abstain_below: float = 0.0
    source: str = "not fitted"
    settings: Mapping[str, float] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    label_set: Mapping[str, Any] = field(default_factory=dict)
    by_setting: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 1e-3)
        _check_number("abstain_below", self.abstain_below, 0, 1)
        if not isinstance(self.settings, Mapping):
            raise ValueError(f"settings must map names to temperatures, not {type(self.settings).__name__}")
        for name, temperature in self.settings.items():
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"a setting needs a name, not {name!r}")
            _check_number(f"temperature of setting {name!r}", temperature, 1e-3)
        if not isinstance(self.by_setting, Mapping) or not set(self.by_setting) <= set(self.settings):
            raise ValueError("by_setting must map settings that have a temperature to what is their own")
        for setting in (None, *self.by_setting):
            own = {} if setting is None else self.by_setting[setting]
            if not isinstance(own, Mapping) or not set(own) <= {"abstain_below", "label_set"}:
                raise ValueError(f"setting {setting!r} may have abstain_below and label_set of its own, nothing else")
            _check_number("abstain_below", own.get("abstain_below", 0.0), 0, 1)
            rule = LabelSetRule.from_json(own.get("label_set", self.label_set))
            if Policy.from_json(self.policy).round_up and rule is None:
                raise ValueError("a policy that rounds up needs a label_set")

    def in_setting(self, setting: str | None) -> Calibration:
        """What holds for a setting's notes: its own temperature, threshold and label sets in the general ones' place.

        Raises:
            InputError: the bundle has no temperature for that setting.
        """
        temperature = self.temperature_in(setting)
        own = self.by_setting.get(setting, {}) if setting is not None else {}
        return replace(self, temperature=temperature, settings={}, by_setting={}, **own)

    def temperature_in(self, setting: str | None) -> float:
        """The temperature of a setting; the general one for None.

        Raises:
            InputError: the bundle has no temperature for that setting.
        """
        if setting is None:
            return self.temperature
        if setting not in self.settings:
            known = ", ".join(self.settings) or "none"
            raise InputError(f"the bundle was not calibrated for setting {setting!r}; settings it knows: {known}")
        return self.settings[setting]


@dataclass(frozen=True)
class Manifest:
    """The typed part of manifest.json. `extra` keeps provenance, metrics, licence and intended use."""

    name: str
    version: str
    task: Task
    engine: str
    compute_type: str
    files: Mapping[str, Mapping[str, Any]]
    calibration: Calibration = field(default_factory=Calibration)
    decoding: Decoding = field(default_factory=Decoding)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON-ready data."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "task": self.task.to_json(),
            "engine": self.engine,
            "compute_type": self.compute_type,
            "calibration": {**vars(self.calibration), "settings": dict(self.calibration.settings)},
            "decoding": vars(self.decoding),
            **self.extra,
            "files": {name: dict(entry) for name, entry in sorted(self.files.items())},
        }

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Reads a manifest.

        Raises:
            BundleError: not a manifest of a schema this version knows.
        """
        if not isinstance(data, dict) or "schema" not in data:
            raise BundleError(f"{MANIFEST} is not a bundle manifest")
        if type(data["schema"]) is not int or data["schema"] != SCHEMA:  # true and 1.0 equal 1, too
            raise BundleError(
                f"{MANIFEST} has schema {data['schema']!r}; this version reads schema {SCHEMA}: "
                "update r2d-edge or convert the model again"
            )
        known = ("schema", "name", "version", "task", "engine", "compute_type", "files", "calibration", "decoding")
        try:
            strings = {key: data[key] for key in ("name", "version", "engine", "compute_type")}
            if not all(isinstance(value, str) and value for value in strings.values()):
                raise ValueError("name, version, engine and compute_type must be non-empty strings")
            files = data["files"]
            for name, entry in files.items():
                _check_name(name)
                if set(entry) != {"size", "sha256"} or type(entry["size"]) is not int or entry["size"] < 0:
                    raise ValueError(f"file entry {name!r} needs exactly a size and a sha256")
            return cls(
                **strings,
                task=Task.from_json(data["task"]),
                files=files,
                calibration=Calibration(**data["calibration"]),
                decoding=Decoding(**data["decoding"]),
                extra={key: value for key, value in data.items() if key not in known},
            )
        except BundleError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"{MANIFEST} is malformed: {error}") from None


@dataclass
class Bundle:
    """A bundle whose every file has been checked. `root` is where its files lie."""

    root: Path
    manifest: Manifest
    digest: str
    _unpacked: tempfile.TemporaryDirectory[str] | None = None

    @property
    def label(self) -> str:
        """Name, version and digest, as decisions carry them."""
        return f"{self.manifest.name} {self.manifest.version} sha256:{self.digest[:12]}"

    def path(self, name: str) -> Path:
        """The path of one of the bundle's files.

        Raises:
            BundleError: the manifest does not name it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"the bundle has no file {name!r}")
        return self.root / name

    def golden(self) -> list[dict[str, Any]]:
        """The golden rows: `text` and `log_probabilities` as the converting machine got them.

        Raises:
            BundleError: a row is not of that shape, whatever the manifest says of the file.
        """
        labels = set(self.manifest.task.labels.labels)
        rows = []
        try:
            with self.path(GOLDEN).open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    numbers = row["log_probabilities"]
                    if not isinstance(row["text"], str) or not all(type(n) in (int, float) for n in numbers.values()):
                        raise ValueError("a text and numbers are wanted")
                    if numbers and set(numbers) != labels:
                        raise ValueError("its labels are not the task's")
                    rows.append(row)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            # Only the kind: a JSON error may quote a text.
            raise BundleError(f"{GOLDEN} row {len(rows) + 1} is malformed ({type(error).__name__})") from None
        return rows


def open_bundle(path: Path | str) -> Bundle:
    """Checks a bundle (folder or .zip) whole and returns it.

    Raises:
        BundleError: a file is missing, extra, changed or a link, a name leads outside, the manifest
            is malformed or of another schema, or there is no bundle at all.
    """
    path = Path(path)
    if path.is_dir():
        return _check_folder(path)
    if path.is_file() and zipfile.is_zipfile(path):
        return _unpack(path)
    raise BundleError(f"{path} is neither a bundle folder nor a bundle .zip")


def seal(folder: Path, manifest: Manifest) -> Bundle:
    """Hashes every file of `folder`, writes its manifest and returns the checked bundle."""
    files = {}
    for name, path in sorted(_walk(folder).items()):
        if name != MANIFEST:
            files[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    data = {**manifest.to_json(), "files": files}
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_bytes(text.encode("utf-8"))
    return _check_folder(folder)


def pack(bundle: Bundle, target: Path) -> None:
    """Writes a bundle as one .zip, byte for byte the same for the same bundle."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted([*bundle.manifest.files, MANIFEST]):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, (bundle.root / name).read_bytes())


def _check_number(name: str, value: object, low: float, high: float = 1e3, *, integer: bool = False) -> None:
    kinds = (int,) if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise ValueError(
            f"{name} must be {'an integer' if integer else 'a number'} of {low:g} to {high:g}, not {value!r}"
        )


def _check_name(name: str) -> None:
    """Refuses a file name that could lead outside the bundle on any system."""
    parts = PurePosixPath(name).parts
    if (
        not name
        or name != PurePosixPath(name).as_posix()
        or name.startswith("/")
        or any(part in ("..", ".") for part in parts)
        or any(character in name for character in '\\:*?"<>|\0')
        or name == MANIFEST
    ):
        raise BundleError(f"file name {name!r} is not allowed in a bundle")


def _walk(folder: Path) -> dict[str, Path]:
    """Every plain file below `folder` by its posix name.

    Raises:
        BundleError: something is neither a plain file nor a folder (a link, a device, a pipe).
    """
    found: dict[str, Path] = {}
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode):
                    pending.append(path)
                elif stat.S_ISREG(mode):
                    found[path.relative_to(folder).as_posix()] = path
                else:
                    raise BundleError(f"{path.relative_to(folder).as_posix()} is a link or a special file")
    return found


def _parse_manifest(raw: bytes) -> Manifest:
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        data = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not JSON: {type(error).__name__}") from None
    return Manifest.from_json(data)


def _compare_names(found: set[str], manifest: Manifest) -> None:
    expected = set(manifest.files)
    for problem, names in (("missing", expected - found), ("not in the manifest", found - expected)):
        if names:
            raise BundleError(f"{problem}: {', '.join(sorted(names)[:5])}")
    absent = [name for name in REQUIRED_FILES if name not in expected]
    if absent:
        raise BundleError(f"the manifest names no {', '.join(absent)}")


def _check_folder(root: Path) -> Bundle:
    files = _walk(root)
    if MANIFEST not in files:
        raise BundleError(f"{root} holds no {MANIFEST}")
    if files[MANIFEST].stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
    raw = files.pop(MANIFEST).read_bytes()
    manifest = _parse_manifest(raw)
    _compare_names(set(files), manifest)
    for name, path in files.items():
        expected = manifest.files[name]
        if path.stat().st_size != expected["size"] or file_sha256(path) != expected["sha256"]:
            raise BundleError(f"{name} is not the file that the manifest describes (size or SHA-256 differ)")
    return Bundle(root, manifest, hashlib.sha256(raw).hexdigest())


def _unpack(path: Path) -> Bundle:
    """Unpacks a .zip into a private temporary folder, nothing beyond what its manifest declares."""
    holder = tempfile.TemporaryDirectory(prefix="r2d-edge-", ignore_cleanup_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            members = [member for member in members if not member.is_dir()]  # ordinary tools store folders too
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise BundleError("the archive names a file twice")
            if MANIFEST not in names:
                raise BundleError(f"the archive holds no {MANIFEST}")
            if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes")
            with archive.open(MANIFEST) as stream:
                manifest = _parse_manifest(stream.read(MAX_MANIFEST_BYTES + 1))
            _compare_names(set(names) - {MANIFEST}, manifest)
            sizes = {**{name: entry["size"] for name, entry in manifest.files.items()}}
            if sum(sizes.values()) > MAX_BUNDLE_BYTES:
                raise BundleError(f"the bundle declares more than {MAX_BUNDLE_BYTES} bytes")
            for member in members:
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG):
                    raise BundleError(f"{member.filename} is a link or a special file")
                limit = sizes.get(member.filename, MAX_MANIFEST_BYTES)
                target = Path(holder.name, member.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as stream, target.open("wb") as out:
                    left = limit
                    while chunk := stream.read(min(_CHUNK, left + 1)):
                        left -= len(chunk)
                        if left < 0:
                            raise BundleError(f"{member.filename} unpacks to more than its declared size")
                        out.write(chunk)
        bundle = _check_folder(Path(holder.name))
        bundle._unpacked = holder
        return bundle
    except _BROKEN_ARCHIVE as error:
        holder.cleanup()
        raise BundleError(f"{path} cannot be unpacked: {error}") from None
    except BundleError:
        holder.cleanup()
        raise
