"""Signatures in minisign's format: its own files are read, ours are its, and every change is refused."""

from __future__ import annotations

import base64
import hashlib
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from r2d_edge.errors import R2DError
from r2d_edge.integrity.minisign import (
    KeyFileError,
    PublicKey,
    SecretKey,
    Signature,
    SignatureError,
    key_name,
    needs_password,
)

pytest.importorskip("cryptography", reason="signatures are the extra `sign`")

# The example of minisign's own documentation: the legacy algorithm, over b"test".
DOCUMENTED_KEY = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
DOCUMENTED = """untrusted comment: signature from minisign secret key
RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=
trusted comment: timestamp:1555779966\tfile:test
QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==
"""

# Made with minisign 0.11 for these tests; the keys guard nothing.
MESSAGE = b"a manifest\n"
PUBLIC = """untrusted comment: minisign public key C8B6305875BD5ACF
RWTPWr11WDC2yDZrj4rUrJsqErSMjgXAkwNqSw4ZlteMhiXq4vKvr2Zr
"""
SECRET = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAz1q9dVgwtsg7jsu83mJJfuxF3R5aRaa3FHgsb6tJOUGFsXIf\
ugncPTZrj4rUrJsqErSMjgXAkwNqSw4ZlteMhiXq4vKvr2ZrAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
PREHASHED = """untrusted comment: signature from minisign secret key
RUTPWr11WDC2yAkBThYEtxX7btw6PSMKIwOXeF4tai2VcbVNkKb8fF0pa7Eaz1wBD7FqsM14osYzyRW866V+zAn9N6JZ8O38rA0=
trusted comment: prehashed, by minisign 0.11
EwoQMH68rpYgLlg3s+CwuOEzdMoP51c/6TqQxBbBiyUSaewTBn38UWYv3fZunlGAQdllHgBzF+Qedja2lMr6Dg==
"""
LEGACY = """untrusted comment: signature from minisign secret key
RWTPWr11WDC2yOsbIz0KjK8KXAQmIRhNcupov0rmL6IxME26aOQhvqWUyUwQZD1A07OG4bOEfXXEl0Jd20KgrZDQwC+CM58/ww0=
trusted comment: legacy, by minisign 0.11
jEtGvD5o60ApNR4HI21JuvXWyElLJZaxUsMXV3+nTbghVtknLoioL5fRCWvwx6m8oCMPMv3PGt2hq1+d4UH5Ag==
"""
LOCKED_PASSWORD = "secret"
LOCKED = """untrusted comment: minisign encrypted secret key
RWRTY0IyubxzcfArOeDFaOI/39gALhuYZD3piIgOYAYtuiq1FPYAAAACAAAAAAAAAEAAAAAAyF82h/FflNtbYCC+FTKm1WiM/LhpPyiWmml+OFt3+7mdVxt+\
vrj+pBz76Ni+HmnCEp120mrc+TwPz/CSZ2Z73YhhAabGyiIEQ6owJFYmvDXDnf07T9d8FiM5X+Nrso+/KHCPrwkqXhs=
"""
LOCKED_PUBLIC = "RWSKVEkUo6g4aRkcagNGXiuDpSCMtdHdrIgQAKS5XDIh95MTxkiDQupU"


@pytest.mark.parametrize(
    ("key", "signature", "message", "prehashed"),
    [
        (DOCUMENTED_KEY, DOCUMENTED, b"test", False),
        (PUBLIC, PREHASHED, MESSAGE, True),
        (PUBLIC, LEGACY, MESSAGE, False),
        (PUBLIC, PREHASHED.replace("\n", "\r\n"), MESSAGE, True),
    ],
)
def test_what_minisign_signed_is_verified(key: str, signature: str, message: bytes, prehashed: bool) -> None:
    parsed = Signature.parse(signature)
    assert parsed.prehashed is prehashed
    PublicKey.parse(key).verify(message, parsed)
    with pytest.raises(SignatureError, match="not one of this manifest"):
        PublicKey.parse(key).verify(message + b" ", parsed)


def test_the_same_key_signs_as_minisign_does() -> None:
    key = SecretKey.parse(SECRET)  # Ed25519 is deterministic: the same key and bytes give the same signature
    theirs = Signature.parse(PREHASHED)
    assert key.sign(MESSAGE, theirs.trusted_comment) == theirs
    assert key.public == PublicKey.parse(PUBLIC)
    assert key.public.to_text() == PUBLIC
    assert key_name(key.id) == "C8B6305875BD5ACF"
    assert Signature.parse(theirs.to_text()) == theirs


@pytest.mark.slow
def test_a_key_with_minisigns_own_password_hash() -> None:  # a gigabyte and some seconds
    assert SecretKey.parse(LOCKED, LOCKED_PASSWORD).public == PublicKey.parse(LOCKED_PUBLIC)
    with pytest.raises(KeyFileError, match="password is wrong"):
        SecretKey.parse(LOCKED, "Secret")


def lock(text: str, password: str) -> str:
    """The key file with a password, at libsodium's interactive cost (N 2^14, r 8, p 1)."""
    body = base64.b64decode(text.splitlines()[1])[54:126]
    checksum = hashlib.blake2b(b"Ed" + body, digest_size=32).digest()
    salt = bytes(range(32))
    stream = hashlib.scrypt(password.encode(), salt=salt, n=1 << 14, r=8, p=1, dklen=104)
    hidden = bytes(one ^ other for one, other in zip(body + checksum, stream, strict=True))
    head = b"EdScB2" + salt + (524288).to_bytes(8, "little") + (16777216).to_bytes(8, "little")
    return f"untrusted comment: locked\n{base64.b64encode(head + hidden).decode()}\n"


def test_a_locked_key_opens_with_its_password_alone() -> None:
    locked = lock(SECRET, "pass word")
    assert needs_password(locked)
    assert not needs_password(SECRET)
    assert SecretKey.parse(locked, "pass word").public == PublicKey.parse(PUBLIC)
    with pytest.raises(KeyFileError, match="password is wrong"):
        SecretKey.parse(locked, "password")
    with pytest.raises(KeyFileError, match="needs its password"):
        SecretKey.parse(locked)


def test_a_key_that_asks_for_all_memory_is_refused() -> None:
    raw = bytearray(base64.b64decode(lock(SECRET, "x").splitlines()[1]))
    raw[38:46] = raw[46:54] = (1 << 60).to_bytes(8, "little")
    with pytest.raises(KeyFileError, match="more memory"):
        SecretKey.parse(f"untrusted comment: x\n{base64.b64encode(raw).decode()}\n", "x")


@pytest.mark.parametrize("text", [PREHASHED, LEGACY])
def test_no_byte_of_a_signature_can_be_changed(text: str) -> None:
    key = PublicKey.parse(PUBLIC)
    whole = Signature.parse(text)
    generator = random.Random(3)
    start = text.index("\n") + 1  # the untrusted comment is what its name says
    for place in range(start, len(text)):
        changed = text[:place] + chr(generator.choice([c for c in range(32, 127) if chr(c) != text[place]]))
        changed += text[place + 1 :]
        try:
            parsed = Signature.parse(changed)
        except SignatureError:
            continue
        if parsed == whole:
            continue  # unused bits of base64's last digit
        with pytest.raises(SignatureError):
            key.verify(MESSAGE, parsed)


def test_an_algorithm_cannot_be_passed_off_as_the_other() -> None:
    key = PublicKey.parse(PUBLIC)
    for text, prehashed in ((PREHASHED, False), (LEGACY, True)):
        found = Signature.parse(text)
        other = Signature(found.key_id, found.of_message, found.trusted_comment, found.of_comment, prehashed)
        with pytest.raises(SignatureError):
            key.verify(MESSAGE, other)


def test_another_key_is_named() -> None:
    with pytest.raises(SignatureError, match="C8B6305875BD5ACF"):
        PublicKey.parse(DOCUMENTED_KEY).verify(MESSAGE, Signature.parse(PREHASHED))


@pytest.mark.parametrize("text", ["", "x", "untrusted comment: x", PREHASHED[:-30], PREHASHED + "x\n", PUBLIC, SECRET])
def test_what_is_no_signature(text: str) -> None:
    with pytest.raises(SignatureError):
        Signature.parse(text)


@pytest.mark.parametrize("text", ["", "x", DOCUMENTED, DOCUMENTED_KEY[:-4], SECRET, "RWQ=", "\0"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(KeyFileError):
        PublicKey.parse(text)
    if text != SECRET:
        with pytest.raises(KeyFileError):
            SecretKey.parse(text)


def test_a_secret_key_whose_halves_do_not_fit() -> None:
    raw = bytearray(base64.b64decode(SECRET.splitlines()[1]))
    raw[70] ^= 1
    with pytest.raises(KeyFileError, match="halves"):
        SecretKey.parse(f"untrusted comment: x\n{base64.b64encode(raw).decode()}\n")


def test_a_comment_is_one_line() -> None:
    with pytest.raises(R2DError, match="one line"):
        SecretKey.parse(SECRET).sign(MESSAGE, "one\ntwo")


def test_minisign_verifies_what_was_signed_here(tmp_path: Path) -> None:
    minisign = shutil.which("minisign")
    if minisign is None:
        pytest.skip("minisign is not installed; the same bytes as its own signature are tested above")
    (tmp_path / "manifest.json").write_bytes(MESSAGE)
    signature = SecretKey.parse(SECRET).sign(MESSAGE, "by r2d-edge, Łódź")
    (tmp_path / "x.minisig").write_text(signature.to_text(), encoding="utf-8")
    command = [minisign, "-V", "-m", "manifest.json", "-x", "x.minisig", "-P", PUBLIC.splitlines()[1]]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "by r2d-edge, Łódź" in found.stdout
