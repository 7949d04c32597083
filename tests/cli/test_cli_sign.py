"""`sign` and `verify --public-key`: a bundle that its author signed, and each way in which it is not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from r2d_edge.bundle import open_bundle, pack
from tests.cli.bundles import reseal
from tests.cli.conftest import Run
from tests.r2d_edge.test_minisign import DOCUMENTED_KEY, PUBLIC, SECRET, lock

pytest.importorskip("cryptography", reason="signatures are the extra `sign`")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "it.key").write_text(SECRET, encoding="utf-8")
    (tmp_path / "it.pub").write_text(PUBLIC, encoding="utf-8")
    return tmp_path


def test_a_signed_bundle_names_its_key(run: Run, own_bundle: Path, keys: Path) -> None:
    result = run("sign", own_bundle, "--secret-key", keys / "it.key")
    assert result.exit_code == 0, result.stderr
    assert (own_bundle.parent / "own.minisig").is_file()
    for key in (keys / "it.pub", PUBLIC.splitlines()[1]):
        result = run("verify", own_bundle, "--public-key", key)
        assert result.exit_code == 0, result.stderr
        report = json.loads(result.stdout)
        assert report["signature"]["key"] == "C8B6305875BD5ACF"
        assert report["signature"]["trusted_comment"] == f"tiny 0.0.1 sha256:{report['digest']}"
    shown = run("verify", own_bundle, "--public-key", keys / "it.pub", "--format", "text").stdout
    assert "signed with key C8B6305875BD5ACF" in shown


def test_a_bundle_may_be_named_by_where_one_is(
    run: Run, own_bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_bundle)
    result = run("sign", ".", "--secret-key", keys / "it.key")
    assert result.exit_code == 0, result.stderr
    assert (own_bundle.parent / "own.minisig").is_file()
    monkeypatch.chdir(own_bundle / "model")
    assert run("verify", "..", "--public-key", keys / "it.pub").exit_code == 0


def test_a_zip_is_signed_as_its_folder_is(run: Run, own_bundle: Path, keys: Path) -> None:
    pack(open_bundle(own_bundle), keys / "tiny.zip")
    assert run("sign", own_bundle, "--secret-key", keys / "it.key", "-o", keys / "s.minisig").exit_code == 0
    arguments = ("--public-key", keys / "it.pub", "--signature", keys / "s.minisig")
    assert run("verify", keys / "tiny.zip", *arguments).exit_code == 0


def test_a_resealed_bundle_is_no_longer_signed(run: Run, own_bundle: Path, keys: Path) -> None:
    run("sign", own_bundle, "--secret-key", keys / "it.key")
    (own_bundle / "README.md").write_text("another card\n", encoding="utf-8")
    reseal(own_bundle)
    assert run("verify", own_bundle).exit_code == 0
    result = run("verify", own_bundle, "--public-key", keys / "it.pub")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "signature" in result.stderr


def test_no_signature_and_another_key(run: Run, own_bundle: Path, keys: Path) -> None:
    result = run("verify", own_bundle, "--public-key", keys / "it.pub")
    assert result.exit_code == 3
    assert "own.minisig" in result.stderr
    run("sign", own_bundle, "--secret-key", keys / "it.key")
    assert run("verify", own_bundle, "--public-key", DOCUMENTED_KEY).exit_code == 3
    assert run("verify", own_bundle, "--public-key", keys / "absent.pub").exit_code == 1
    assert run("verify", own_bundle, "--signature", "x").exit_code == 2


def test_a_locked_key_asks_for_its_password(run: Run, own_bundle: Path, keys: Path) -> None:
    (keys / "locked.key").write_text(lock(SECRET, "pass word"), encoding="utf-8")
    (keys / "password").write_text("pass word\n", encoding="utf-8")
    arguments = ("sign", own_bundle, "--secret-key", keys / "locked.key")
    assert run(*arguments, "--password-file", keys / "password").exit_code == 0
    shutil.move(own_bundle.parent / "own.minisig", keys / "first.minisig")
    assert run(*arguments, stdin="pass word\n").exit_code == 0
    assert (own_bundle.parent / "own.minisig").read_bytes() == (keys / "first.minisig").read_bytes()
    result = run(*arguments, stdin="wrong\n")
    assert result.exit_code == 1
    assert "password" in result.stderr


def test_a_damaged_bundle_is_not_signed(run: Run, own_bundle: Path, keys: Path) -> None:
    (own_bundle / "README.md").write_text("x", encoding="utf-8")
    assert run("sign", own_bundle, "--secret-key", keys / "it.key").exit_code == 3
    assert not (own_bundle.parent / "own.minisig").exists()


def test_without_the_library_it_says_what_to_install(
    run: Run, own_bundle: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("sign", own_bundle, "--secret-key", keys / "it.key")
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for arguments in (("sign", own_bundle, "--secret-key", keys / "it.key"),
                      ("verify", own_bundle, "--public-key", keys / "it.pub")):  # fmt: skip
        result = run(*arguments)
        assert result.exit_code == 1
        assert "r2d-edge[sign]" in result.stderr
