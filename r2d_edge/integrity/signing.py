"""A bundle's signature: made over manifest.json, which names every other file with its hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from r2d_edge.bundle import MANIFEST, Bundle
from r2d_edge.errors import BundleError
from r2d_edge.integrity.minisign import (
    SUFFIX,
    KeyFileError,
    PublicKey,
    SecretKey,
    Signature,
    SignatureError,
    read_small,
    require_cryptography,
)


def signature_file(bundle: Path) -> Path:
    """Where a bundle's signature lies: beside it, since a bundle holds no file that its manifest does not name."""
    if bundle.name in ("", ".."):  # `.` and its like have no name of their own
        bundle = bundle.resolve()
    return bundle.with_name(bundle.name + SUFFIX)


def sign_bundle(bundle: Bundle, key: SecretKey, target: Path) -> Signature:
    """Signs a checked bundle; the signature file is written whole or not at all.

    Raises:
        BundleError: the manifest was changed since the bundle was opened.
        OSError: the file cannot be written.
    """
    signature = key.sign(_manifest(bundle), f"{bundle.manifest.name} {bundle.manifest.version} sha256:{bundle.digest}")
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(signature.to_text())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return signature


def verify_bundle(bundle: Bundle, key: PublicKey, signature_at: Path) -> Signature:
    """Checks that the holder of `key` signed this bundle.

    Raises:
        SignatureError: there is no signature, or it is not of this bundle by this key.
        R2DError: the library for signatures is not installed.
    """
    require_cryptography()
    try:
        signature = Signature.parse(read_small(signature_at))
    except KeyFileError as error:
        raise SignatureError(f"no signature: {error}") from None
    key.verify(_manifest(bundle), signature)
    return signature


def public_key(value: str) -> PublicKey:
    """A public key as a command's argument: its base64, or a key file.

    Raises:
        KeyFileError: it is neither.
    """
    try:
        return PublicKey.parse(value)
    except KeyFileError:
        path = Path(value)
    try:
        return PublicKey.parse(read_small(path))
    except KeyFileError as error:
        raise KeyFileError(f"public key {value}: {error}") from None


def _manifest(bundle: Bundle) -> bytes:
    """The bytes that were checked when the bundle was opened."""
    raw = (bundle.root / MANIFEST).read_bytes()
    if hashlib.sha256(raw).hexdigest() != bundle.digest:
        raise BundleError(f"{MANIFEST} was changed while it was read")
    return raw
