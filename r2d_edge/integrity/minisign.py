"""Detached Ed25519 signatures in minisign's file format, over the cryptography library.

The format is https://jedisct1.github.io/minisign/: a signature file holds the signature of the message (`Ed`, legacy)
or of its BLAKE2b-512 hash (`ED`, what is made today), and a second one over the first and a trusted comment. Keys and
signatures made by minisign are read here, and the other way round.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d_edge.errors import BundleError, InputError, R2DError

SUFFIX = ".minisig"
MAX_FILE_BYTES = 1 << 14
_PURE, _PREHASHED, _KDF_NONE, _KDF_SCRYPT, _CHECKSUM = b"Ed", b"ED", b"\0\0", b"Sc", b"B2"
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "
_MAX_SCRYPT_BYTES = 1 << 30  # what minisign itself takes by default


class SignatureError(BundleError):
    """A signature is absent, malformed, by another key, or not of these bytes (exit code 3)."""


class KeyFileError(InputError):
    """A key file cannot be read or used."""


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key. `id` is the eight bytes by which minisign tells keys apart."""

    id: bytes
    raw: bytes

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Reads a key: its base64, or the contents of a key file.

        Raises:
            KeyFileError: it is no minisign public key.
        """
        lines = text.strip().splitlines()
        if len(lines) == 2 and lines[0].startswith(_UNTRUSTED):
            lines = lines[1:]
        raw = _base64(lines[0]) if len(lines) == 1 else b""
        if len(raw) != 42 or raw[:2] != _PURE:
            raise KeyFileError("no minisign public key")
        return cls(raw[2:10], raw[10:])

    def to_text(self) -> str:
        """The contents of a key file."""
        return f"{_UNTRUSTED}minisign public key {key_name(self.id)}\n{_text(_PURE + self.id + self.raw)}\n"

    def verify(self, message: bytes, signature: Signature) -> None:
        """Checks both signatures.

        Raises:
            SignatureError: one of them is not by this key or not of these bytes.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if signature.key_id != self.id:
            raise SignatureError(
                f"signed with key {key_name(signature.key_id)}, but key {key_name(self.id)} was asked for"
            )
        try:
            key = Ed25519PublicKey.from_public_bytes(self.raw)
            key.verify(signature.of_message, _digest(message) if signature.prehashed else message)
        except (InvalidSignature, ValueError):
            raise SignatureError("the signature is not one of this manifest by this key") from None
        try:
            key.verify(signature.of_comment, signature.of_message + signature.trusted_comment.encode("utf-8"))
        except InvalidSignature:
            raise SignatureError("the signature's trusted comment was changed") from None


@dataclass(frozen=True)
class Signature:
    """What a .minisig file holds."""

    key_id: bytes
    of_message: bytes
    trusted_comment: str
    of_comment: bytes
    prehashed: bool = True

    @classmethod
    def parse(cls, text: str) -> Signature:
        """Reads the contents of a .minisig file.

        Raises:
            SignatureError: it is none.
        """
        lines = text.split("\n")
        lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
        if len(lines) != 4 or not lines[0].startswith(_UNTRUSTED) or not lines[2].startswith(_TRUSTED):
            raise SignatureError("not a minisign signature: four lines with two comments are wanted")
        raw, of_comment = _base64(lines[1]), _base64(lines[3])
        if len(raw) != 74 or raw[:2] not in (_PURE, _PREHASHED) or len(of_comment) != 64:
            raise SignatureError("not a minisign signature: its base64 does not hold one")
        return cls(raw[2:10], raw[10:], lines[2].removeprefix(_TRUSTED), of_comment, raw[:2] == _PREHASHED)

    def to_text(self) -> str:
        """The contents of a .minisig file."""
        raw = (_PREHASHED if self.prehashed else _PURE) + self.key_id + self.of_message
        return (
            f"{_UNTRUSTED}signature by r2d-edge, to be verified with key {key_name(self.key_id)}\n{_text(raw)}\n"
            f"{_TRUSTED}{self.trusted_comment}\n{_text(self.of_comment)}\n"
        )


class SecretKey:
    """An Ed25519 secret key with minisign's id."""

    def __init__(self, key_id: bytes, seed: bytes) -> None:
        require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.id = key_id
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    @classmethod
    def parse(cls, text: str, password: str | None = None) -> SecretKey:
        """Reads the contents of a key file that minisign made, with or without a password.

        Raises:
            KeyFileError: it is none, or the password is missing or wrong.
        """
        raw = _secret_bytes(text)
        kdf, salt, ops, memory, body = raw[2:4], raw[6:38], raw[38:46], raw[46:54], raw[54:]
        if kdf == _KDF_SCRYPT:
            if password is None:
                raise KeyFileError("the secret key needs its password")
            stream = _scrypt(password, salt, int.from_bytes(ops, "little"), int.from_bytes(memory, "little"))
            body = bytes(one ^ other for one, other in zip(body, stream, strict=True))
        key_id, seed, public, checksum = body[:8], body[8:40], body[40:72], body[72:]
        expected = hashlib.blake2b(_PURE + key_id + seed + public, digest_size=32).digest()
        unprotected = kdf == _KDF_NONE and checksum == bytes(32)  # minisign -W writes no checksum
        if not unprotected and not hmac.compare_digest(checksum, expected):
            raise KeyFileError("the password is wrong, or the secret key file is damaged")
        key = cls(key_id, seed)
        if key.public.raw != public:
            raise KeyFileError("the secret key file is damaged: its two halves do not fit")
        return key

    @property
    def public(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return PublicKey(self.id, self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes, trusted_comment: str) -> Signature:
        """Signs the message's hash, and the signature with the comment.

        Raises:
            KeyFileError: the comment is not one line of text.
        """
        if not trusted_comment.isprintable():
            raise KeyFileError("a trusted comment is one line of printable text")
        of_message = self._key.sign(_digest(message))
        of_comment = self._key.sign(of_message + trusted_comment.encode("utf-8"))
        return Signature(self.id, of_message, trusted_comment, of_comment)


def needs_password(text: str) -> bool:
    """Whether a secret key file is encrypted.

    Raises:
        KeyFileError: it is no such file.
    """
    return _secret_bytes(text)[2:4] == _KDF_SCRYPT


def read_small(path: Path) -> str:
    """The text of a key or signature file.

    Raises:
        KeyFileError: it cannot be read or is too large to be one.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise KeyFileError(f"{path} is too large for a key or a signature")
        return raw.decode("utf-8")
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path} is not text") from None


def key_name(key_id: bytes) -> str:
    """A key's id as minisign shows it."""
    return f"{int.from_bytes(key_id, 'little'):016X}"


def require_cryptography() -> None:
    """Says at once what is missing.

    Raises:
        R2DError: the extra is not installed.
    """
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as error:
        raise R2DError(
            f'signatures need a library that is not installed ({error}); run: pip install "r2d-edge[sign]"'
        ) from None


def _secret_bytes(text: str) -> bytes:
    lines = text.strip().splitlines()
    raw = _base64(lines[-1]) if len(lines) == 2 and lines[0].startswith(_UNTRUSTED) else b""
    if len(raw) != 158 or raw[:2] != _PURE or raw[2:4] not in (_KDF_NONE, _KDF_SCRYPT) or raw[4:6] != _CHECKSUM:
        raise KeyFileError("no minisign secret key")
    return raw


def _scrypt(password: str, salt: bytes, ops: int, memory: int) -> bytes:
    """104 bytes of scrypt, its parameters found as libsodium's crypto_pwhash_scryptsalsa208sha256 finds them."""
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    block = 8
    ops = max(ops, 32768)
    most = ops // (4 * block) if ops < memory // 32 else memory // (128 * block)
    power = next(power for power in range(1, 64) if 1 << power > most // 2)
    parallel = 1 if ops < memory // 32 else max(1, ops // 4 // (1 << power) // block)
    if 128 * block * (1 << power) > _MAX_SCRYPT_BYTES or parallel > 64:
        raise KeyFileError("the secret key asks for more memory to decrypt than minisign's own default")
    kdf: Any = Scrypt(salt=salt, length=104, n=1 << power, r=block, p=parallel)
    stream: bytes = kdf.derive(password.encode("utf-8"))
    return stream


def _digest(message: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=64).digest()


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
