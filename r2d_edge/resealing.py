"""Writes a bundle with another calibration: its files as they are, its manifest sealed anew."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from r2d_edge.bundle import MANIFEST, Bundle, Calibration, open_bundle, pack, seal
from r2d_edge.errors import InputError


def write_calibrated(bundle: Bundle, calibration: Calibration, target: Path) -> Bundle:
    """Writes the bundle with this calibration to `target`, a folder or a .zip, that appears whole or not at all.

    Raises:
        InputError: there is something at `target`, or no folder to write it in.
    """
    if target.exists():
        raise InputError(f"{target} exists: give another name, or --in-place to calibrate a bundle where it is")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.absolute().parent} is no folder")
    with _sealed(bundle, calibration, target.absolute().parent) as sealed:
        if target.suffix.lower() == ".zip":
            _replace_archive(sealed, target)
        else:
            sealed.root.rename(target)
    return open_bundle(target)


def calibrate_in_place(bundle: Bundle, calibration: Calibration, path: Path) -> Bundle:
    """Seals the bundle at `path`, a folder or a .zip, anew with this calibration; at no time is there half of it."""
    with _sealed(bundle, calibration, path.absolute().parent) as sealed:
        if path.is_dir():
            (sealed.root / MANIFEST).replace(path / MANIFEST)  # nothing else differs
        else:
            _replace_archive(sealed, path)
    return open_bundle(path)


@contextmanager
def _sealed(bundle: Bundle, calibration: Calibration, beside: Path) -> Iterator[Bundle]:
    """A sealed copy on the target's file system, removed where it is not moved away."""
    holder = Path(tempfile.mkdtemp(prefix=".r2d-edge-", dir=beside))
    try:
        root = holder / "bundle"
        for name in bundle.manifest.files:
            copy = root / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.root / name, copy)
        yield seal(root, replace(bundle.manifest, calibration=calibration))
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _replace_archive(sealed: Bundle, target: Path) -> None:
    archive = sealed.root.parent / "bundle.zip"
    pack(sealed, archive)
    archive.replace(target)
