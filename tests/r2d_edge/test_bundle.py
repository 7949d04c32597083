"""A bundle is opened only if it is, byte for byte, what its manifest says; every damage is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2d_edge import bundle as bundle_module
from r2d_edge.bundle import MANIFEST, Bundle, Calibration, Decoding, Manifest, open_bundle, pack, seal
from r2d_edge.errors import BundleError
from r2d_edge.task import CTAS_LEVELS, LabelSet, Limits, Task

FILES = {
    "golden.jsonl": '{"text": "a note", "log_probabilities": {}}\n',
    "tokenizer.json": "{}",
    "README.md": "# card\n",
    "model/model.bin": "weights" * 100,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8", newline="\n")
    seal(root, make_manifest())
    return root


def make_manifest(**changes: Any) -> Manifest:
    fields = {
        "name": "tiny",
        "version": "0.0.1",
        "task": Task(LabelSet(CTAS_LEVELS, "ordered"), limits=Limits(64, 8, 16)),
        "engine": "ctranslate2",
        "compute_type": "int8",
        "files": {},
        "calibration": Calibration(1.7, 0.3, "validation", {"ward": 2.0}),
        "decoding": Decoding(2, 1.2, 3, only_numbers_of_the_note=True),
        "extra": {"licence": "Apache-2.0"},
        **changes,
    }
    return Manifest(**fields)


def edit_manifest(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    change(data)
    (root / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


def make_zip(root: Path, target: Path, change: Callable[[zipfile.ZipFile], None] | None = None) -> Path:
    pack(open_bundle(root), target)
    if change:
        with zipfile.ZipFile(target, "a") as archive:
            change(archive)
    return target


def refuse(path: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        open_bundle(path)


def test_a_bundle_from_before_a_field_opens_without_it(folder: Path) -> None:
    def before(data: dict[str, Any]) -> None:
        del data["calibration"]["settings"], data["decoding"]["only_numbers_of_the_note"]

    edit_manifest(folder, before)
    manifest = open_bundle(folder).manifest
    assert manifest.calibration == Calibration(1.7, 0.3, "validation")
    assert manifest.decoding == Decoding(2, 1.2, 3)


def test_what_was_sealed_opens_with_all_it_holds(folder: Path) -> None:
    opened = open_bundle(folder)
    assert opened.manifest == make_manifest(files=opened.manifest.files)
    assert set(opened.manifest.files) == set(FILES)
    assert opened.manifest.files["README.md"] == {"size": 7, "sha256": hashlib.sha256(b"# card\n").hexdigest()}
    assert opened.label == f"tiny 0.0.1 sha256:{opened.digest[:12]}"
    assert opened.golden() == [{"text": "a note", "log_probabilities": {}}]
    assert opened.path("model/model.bin").read_text(encoding="utf-8") == FILES["model/model.bin"]
    with pytest.raises(BundleError, match=r"no file 'model/other\.bin'"):
        opened.path("model/other.bin")


def test_the_digest_changes_with_any_byte_of_any_file(folder: Path) -> None:
    digests = {open_bundle(folder).digest}
    for name in FILES:
        with (folder / name).open("ab") as file:
            file.write(b"\n")
        digests.add(seal(folder, make_manifest()).digest)
    assert len(digests) == 1 + len(FILES)


def test_nothing_but_a_bundle_is_one(tmp_path: Path) -> None:
    refuse(tmp_path / "absent", "neither")
    (tmp_path / "text.zip").write_text("PK no zip", encoding="utf-8")
    refuse(tmp_path / "text.zip", "neither")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "holds no manifest.json")


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    refuse(folder, f"missing: {name}")


@pytest.mark.parametrize("name", ["notes.txt", "model/extra.bin", ".hidden", "model/deep/er.txt"])
def test_an_extra_file(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    refuse(folder, f"not in the manifest: {name}")


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["changed", "truncated", "longer", "emptied"])
def test_a_file_that_is_not_what_was_sealed(name: str, damage: str, folder: Path) -> None:
    path = folder / name
    raw = path.read_bytes()
    path.write_bytes(
        {
            "changed": raw[:-1] + bytes([raw[-1] ^ 1]),
            "truncated": raw[:-1],
            "longer": raw + b"\0",
            "emptied": b"",
        }[damage]
    )
    refuse(folder, f"{name} is not the file")


def _link(target: Path, link: Path, is_folder: bool = False) -> None:
    try:
        link.symlink_to(target, target_is_directory=is_folder)
    except OSError:
        pytest.skip("this account may not make symbolic links (Windows without developer mode)")


def test_a_link_to_the_very_same_bytes(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"
    (folder / "model" / "model.bin").rename(outside)
    _link(outside, folder / "model" / "model.bin")
    refuse(folder, "is a link")


def test_a_linked_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "model").rename(tmp_path / "elsewhere")
    _link(tmp_path / "elsewhere", folder / "model", is_folder=True)
    refuse(folder, "model is a link")


def test_a_linked_manifest(folder: Path, tmp_path: Path) -> None:
    (folder / MANIFEST).rename(tmp_path / "manifest")
    _link(tmp_path / "manifest", folder / MANIFEST)
    refuse(folder, "is a link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    refuse(folder, "pipe is a link or a special file")


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "model/../../outside",
        "/etc/passwd",
        "C:/windows/file",
        "C:file",
        "model\\model.bin",
        "..\\outside",
        "model//model.bin",
        "./model.bin",
        "model/",
        "",
        "..",
        "a\0b",
        "file:stream",
        "what?",
        MANIFEST,
    ],
)
def test_names_that_lead_outside_or_mean_something_else(name: str, folder: Path) -> None:
    edit_manifest(folder, lambda data: data["files"].update({name: data["files"]["README.md"]}))
    refuse(folder, "not allowed in a bundle")


@pytest.mark.parametrize("schema", [0, 2, "1", None, 1.5, [1]])
def test_an_unknown_schema(schema: object, folder: Path) -> None:
    edit_manifest(folder, lambda data: data.update(schema=schema))
    refuse(folder, "this version reads schema 1")


@pytest.mark.parametrize(
    "field", ["name", "version", "engine", "compute_type", "task", "files", "calibration", "decoding", "schema"]
)
def test_a_manifest_without_a_field(field: str, folder: Path) -> None:
    edit_manifest(folder, lambda data: data.pop(field))
    refuse(folder, MANIFEST)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(name=""),
        lambda data: data.update(version=3),
        lambda data: data.update(files=[]),
        lambda data: data.update(files={"README.md": 3}),
        lambda data: data["files"]["README.md"].update(size=-1),
        lambda data: data["files"]["README.md"].update(size=True),
        lambda data: data["files"]["README.md"].update(size="7"),
        lambda data: data["files"]["README.md"].update(mode=7),
        lambda data: data["files"]["README.md"].pop("sha256"),
        lambda data: data["calibration"].update(temprature=1),
        lambda data: data["calibration"].update(settings=[2.0]),
        lambda data: data["calibration"].update(settings={"ward": 0}),
        lambda data: data["calibration"].update(settings={" ": 1.0}),
        lambda data: data["decoding"].update(beams=1),
        lambda data: data["decoding"].update(only_numbers_of_the_note=1),
        lambda data: data["task"].update(labels=["one"]),
        lambda data: data["task"]["prompts"].update(predict="no place for a text"),
    ],
)
def test_a_malformed_manifest(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    edit_manifest(folder, change)
    refuse(folder, MANIFEST)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"null", b"{", b"\xff\xfe{}", b'{"schema": 1}', b"[" * 100_000, b"nonsense"]
)
def test_a_manifest_that_is_none(raw: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(raw)
    refuse(folder, MANIFEST)


def test_a_manifest_too_large_to_be_one(folder: Path) -> None:
    with (folder / MANIFEST).open("ab") as file:
        file.write(b" " * (bundle_module.MAX_MANIFEST_BYTES + 1))
    refuse(folder, "larger than")


@pytest.mark.parametrize("name", bundle_module.REQUIRED_FILES)
def test_a_required_file_that_the_manifest_does_not_name(name: str, folder: Path) -> None:
    (folder / name).unlink()
    edit_manifest(folder, lambda data: data["files"].pop(name))
    refuse(folder, f"names no {name}")


def test_a_sealed_folder_with_a_link_is_never_sealed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x", encoding="utf-8")
    _link(tmp_path / "x", folder / "linked")
    with pytest.raises(BundleError, match="is a link"):
        seal(folder, make_manifest())


def test_a_zip_is_the_same_bundle_and_the_same_bytes_each_time(folder: Path, tmp_path: Path) -> None:
    first, second = make_zip(folder, tmp_path / "a.zip"), make_zip(folder, tmp_path / "b.zip")
    assert first.read_bytes() == second.read_bytes()
    opened = open_bundle(first)
    assert opened.digest == open_bundle(folder).digest
    assert opened.path("model/model.bin").read_text(encoding="utf-8") == FILES["model/model.bin"]


def test_a_zip_is_unpacked_for_as_long_as_the_bundle_lives(folder: Path, tmp_path: Path) -> None:
    opened: Bundle | None = open_bundle(make_zip(folder, tmp_path / "a.zip"))
    assert opened is not None
    root = opened.root
    assert root.is_dir()
    del opened
    assert not root.exists()


@pytest.fixture
def unpacked_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where archives are unpacked in this test."""
    place = tmp_path / "unpacked"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def test_a_refused_zip_leaves_nothing_unpacked(folder: Path, tmp_path: Path, unpacked_here: Path) -> None:
    archive = make_zip(folder, tmp_path / "a.zip", lambda zip_: zip_.writestr("extra", "x"))
    refuse(archive, "not in the manifest: extra")
    assert list(unpacked_here.iterdir()) == []


def rewrite_zip(source: Path, change: Callable[[zipfile.ZipInfo, bytes], list[tuple[Any, bytes]]]) -> Path:
    """Writes an archive's members again, each as `change` gives them."""
    with zipfile.ZipFile(source) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, raw in members:
            for entry, new in change(info, raw):
                archive.writestr(entry, new)
    source.write_bytes(buffer.getvalue())
    return source


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_zip_that_names_a_file_twice(folder: Path, tmp_path: Path) -> None:
    for name in ("README.md", MANIFEST):
        archive = make_zip(folder, tmp_path / "a.zip", lambda zip_, name=name: zip_.writestr(name, "other"))
        refuse(archive, "twice")


@pytest.mark.parametrize("name", ["../outside", "/outside", "model/../../outside", "..\\outside", "C:\\outside"])
def test_a_zip_member_that_leads_outside(name: str, folder: Path, tmp_path: Path, unpacked_here: Path) -> None:
    archive = make_zip(folder, tmp_path / "a.zip", lambda zip_: zip_.writestr(name, "x"))
    refuse(archive, "not in the manifest")
    # The same with a manifest that names it.
    edit_manifest(folder, lambda data: data["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    manifest = (folder / MANIFEST).read_bytes()
    rewrite_zip(archive, lambda info, raw: [(info, manifest if info.filename == MANIFEST else raw)])
    refuse(archive, "not allowed in a bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "bundle", "unpacked"]
    assert list(unpacked_here.iterdir()) == []


def test_a_zip_member_that_is_a_link(folder: Path, tmp_path: Path) -> None:
    def as_link(info: zipfile.ZipInfo, raw: bytes) -> list[tuple[Any, bytes]]:
        if info.filename == "README.md":
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        return [(info, raw)]

    refuse(rewrite_zip(make_zip(folder, tmp_path / "a.zip"), as_link), "README.md is a link")


def test_a_zip_bomb_is_stopped_at_the_declared_size(folder: Path, tmp_path: Path, unpacked_here: Path) -> None:
    bomb = b"\0" * (64 << 20)

    def inflate(info: zipfile.ZipInfo, raw: bytes) -> list[tuple[Any, bytes]]:
        return [(info.filename, bomb if info.filename == "model/model.bin" else raw)]

    archive = rewrite_zip(make_zip(folder, tmp_path / "a.zip"), inflate)
    assert archive.stat().st_size < 1 << 20
    refuse(archive, r"model/model.bin unpacks to more than its declared size")
    assert list(unpacked_here.iterdir()) == []


def test_a_bundle_that_declares_too_much(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_zip(folder, tmp_path / "a.zip")
    monkeypatch.setattr(bundle_module, "MAX_BUNDLE_BYTES", 100)
    refuse(archive, "declares more than 100 bytes")


def test_a_zip_manifest_bomb(folder: Path, tmp_path: Path) -> None:
    def inflate(info: zipfile.ZipInfo, raw: bytes) -> list[tuple[Any, bytes]]:
        return [(info.filename, raw + b" " * (8 << 20) if info.filename == MANIFEST else raw)]

    refuse(rewrite_zip(make_zip(folder, tmp_path / "a.zip"), inflate), "larger than")


def test_a_zip_whose_directory_lies_about_a_size(folder: Path, tmp_path: Path) -> None:
    def inflate(info: zipfile.ZipInfo, raw: bytes) -> list[tuple[Any, bytes]]:
        return [(info.filename, b"\0" * (8 << 20) if info.filename == "model/model.bin" else raw)]

    archive = rewrite_zip(make_zip(folder, tmp_path / "a.zip"), inflate)
    raw = bytearray(archive.read_bytes())
    # The central directory's entry: 24 bytes in stands the unpacked size.
    entry = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02"))
    while raw[entry + 46 : entry + 46 + 15] != b"model/model.bin":
        entry = raw.index(b"PK\x01\x02", entry + 4)
    struct.pack_into("<I", raw, entry + 24, len(FILES["model/model.bin"]))
    archive.write_bytes(raw)
    refuse(archive, "cannot be unpacked|model/model.bin")


@pytest.mark.parametrize("name", sorted([*FILES, MANIFEST]))
def test_a_zip_without_a_file(name: str, folder: Path, tmp_path: Path) -> None:
    archive = make_zip(folder, tmp_path / "a.zip")
    rewrite_zip(archive, lambda info, raw: [] if info.filename == name else [(info, raw)])
    refuse(archive, "holds no manifest.json" if name == MANIFEST else f"missing: {name}")


def test_a_zip_with_a_changed_file(folder: Path, tmp_path: Path) -> None:
    archive = make_zip(folder, tmp_path / "a.zip")
    rewrite_zip(archive, lambda info, raw: [(info, raw.replace(b"card", b"cart"))])
    refuse(archive, "README.md is not the file")


def test_a_zip_with_flipped_bytes_is_the_same_bundle_or_refused(folder: Path, tmp_path: Path) -> None:
    archive = make_zip(folder, tmp_path / "a.zip")
    digest = open_bundle(archive).digest
    whole = archive.read_bytes()
    generator = random.Random(5)
    refused = 0
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(generator.choice([1, 2, 8])):
            raw[generator.randrange(len(raw))] = generator.randrange(256)
        archive.write_bytes(raw)
        try:
            assert open_bundle(archive).digest == digest  # a time stamp or the like was hit
        except BundleError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_zip_cut_short(share: float, folder: Path, tmp_path: Path) -> None:
    archive = make_zip(folder, tmp_path / "a.zip")
    raw = archive.read_bytes()
    archive.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(BundleError):
        open_bundle(archive)


def test_an_encrypted_zip_member(folder: Path, tmp_path: Path) -> None:
    archive = make_zip(folder, tmp_path / "a.zip")
    raw = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = raw.find(signature)
        while position >= 0:
            raw[position + offset] |= 1
            position = raw.find(signature, position + 4)
    archive.write_bytes(raw)
    with pytest.raises(BundleError):
        open_bundle(archive)


@pytest.mark.parametrize("schema", [True, 1.0, "1", 0, 2, None])
def test_no_other_schema_is_read(schema: object, folder: Path) -> None:
    edit_manifest(folder, lambda data: data.update(schema=schema))
    refuse(folder, "schema")


@pytest.mark.parametrize(
    "row",
    ["", "[]", '{"text": 1, "log_probabilities": {}}', '{"text": "crushing"}', '{"text": "a", "log_probabilities": []}',
     '{"text": "a", "log_probabilities": {"x": 1}}', '{"text": "crushing" chest'],
)  # fmt: skip
def test_golden_rows_of_another_shape_are_refused_without_their_text(row: str, folder: Path) -> None:
    (folder / "golden.jsonl").write_text(row + "\n", encoding="utf-8")
    opened = seal(folder, make_manifest())
    with pytest.raises(BundleError, match=r"golden\.jsonl row 1 is malformed") as caught:
        opened.golden()
    assert "crushing" not in str(caught.value)


def test_no_refusal_shows_a_note(folder: Path) -> None:
    secret = "crushing chest pain"
    (folder / "golden.jsonl").write_text(json.dumps({"text": secret}), encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert secret not in str(caught.value)
