"""Whatever bytes a reader is given, it reads them or refuses them by an error of ours; what a writer wrote comes back.

The readers of notes, of the journal and of rendered decisions have such tests beside their own (`test_inputs.py`,
`test_tables.py`, `batch/test_journal.py`, `tests/cli/test_rendering.py`); here are the others.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from r2d_edge import threads
from r2d_edge.assembly import ASSEMBLY
from r2d_edge.assembly.parts import read_parts
from r2d_edge.audit import AuditError, AuditLog, verify_log
from r2d_edge.batch.files import Files
from r2d_edge.batch.journal import SCHEMA, encode, read_header
from r2d_edge.batch.output import PlainFile, columns_of, neutralised, writer_of
from r2d_edge.bundle import GOLDEN, MANIFEST, Bundle, Manifest, open_bundle, pack, seal
from r2d_edge.decision import Decision
from r2d_edge.delimited import read_csv
from r2d_edge.errors import BundleError, InputError
from r2d_edge.fitting import _read as labelled_notes
from r2d_edge.inputs import BadRow, Columns, Note
from r2d_edge.integrity import trial
from r2d_edge.integrity.minisign import KeyFileError, PublicKey, SecretKey, Signature, SignatureError, needs_password
from r2d_edge.rendering import CsvWriter
from r2d_edge.report.gate import Gate, read_gate
from r2d_edge.report.labelled import read_labelled
from r2d_edge.report.sides import read_decisions
from r2d_edge.task import LabelSet
from tests.r2d_edge.test_bundle import FILES, make_manifest
from tests.r2d_edge.test_minisign import LEGACY, PREHASHED, PUBLIC, SECRET

KEY = bytes(32)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ANY_TEXT = st.text(st.characters(), max_size=30)  # lone surrogates too
NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
JSON_LINES = st.lists(JSON, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode("ascii"))
# The tests write to one folder of their own, which no example shares with another at a time.
in_a_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


@st.composite
def changed(draw: st.DrawFn, whole: bytes) -> bytes:
    """These bytes with some flipped, cut off, doubled or put in."""
    raw = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(raw) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "put in", "double")))
        if kind == "flip" and raw:
            raw[place] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del raw[place:]
        elif kind == "put in":
            raw[place:place] = draw(st.binary(min_size=1, max_size=8))
        else:
            raw[place:place] = raw[place : place + draw(st.integers(1, 200))]
    return bytes(raw)


def changed_text(whole: str) -> st.SearchStrategy[str]:
    return changed(whole.encode("ascii")).map(lambda raw: raw.decode("latin-1"))


def replaced(data: Any, draw: st.DrawFn) -> Any:
    """JSON data with one value somewhere in it replaced or gone."""
    copy = json.loads(json.dumps(data))
    places: list[tuple[Any, Any]] = []
    pending = [copy]
    while pending:
        node = pending.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                pending.append(node[key])
    node, key = draw(st.sampled_from(places))
    if draw(st.booleans()):
        node[key] = draw(JSON)
    else:
        del node[key]
    return copy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return seal(folder, make_manifest())


class TestBundle:
    @given(JSON)
    def test_any_json_is_a_manifest_or_refused(self, data: Any) -> None:
        with pytest.raises(BundleError):
            Manifest.from_json(data)

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_a_manifest_with_another_value_is_one_or_refused(self, bundle: Bundle, data: st.DataObject) -> None:
        whole = bundle.manifest.to_json()
        other = data.draw(st.composite(lambda draw: replaced(whole, draw))())
        try:
            manifest = Manifest.from_json(other)
        except BundleError:
            return
        assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest

    @in_a_folder
    @given(st.data())
    def test_a_changed_zip_is_the_same_bundle_or_refused(
        self, bundle: Bundle, tmp_path: Path, data: st.DataObject
    ) -> None:
        path = tmp_path / "b.zip"
        pack(bundle, path)
        path.write_bytes(data.draw(changed(path.read_bytes())))
        try:
            opened = open_bundle(path)
        except BundleError:
            return
        assert opened.digest == bundle.digest

    @in_a_folder
    @given(st.data())
    def test_golden_rows_are_rows_or_refused(self, bundle: Bundle, tmp_path: Path, data: st.DataObject) -> None:
        labels = bundle.manifest.task.labels.labels
        row = {"text": "a note", "log_probabilities": dict.fromkeys(labels, -1.0)}
        lines = data.draw(st.lists(st.just(row) | JSON.map(lambda value: {**row, "text": value}) | JSON, max_size=3))
        raw = "".join(json.dumps(line) + "\n" for line in lines).encode("ascii")
        (tmp_path / GOLDEN).write_bytes(data.draw(st.just(raw) | st.binary(max_size=60)))
        own = Bundle(tmp_path, bundle.manifest, "")
        try:
            rows = own.golden()
        except BundleError:
            return
        assert all(set(row["log_probabilities"]) in ({*labels}, set()) for row in rows)

    @in_a_folder
    @given(raw=st.binary(max_size=200))
    @example(raw=b"[" * 100_000)
    def test_any_bytes_as_a_manifest_are_refused(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / MANIFEST).write_bytes(raw)
        with pytest.raises(BundleError):
            open_bundle(tmp_path)


class TestAuditLog:
    NAMES = st.lists(ANY_TEXT, min_size=1, max_size=4)

    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        return tmp_path / "audit.jsonl"

    def write(self, log: Path, names: list[str]) -> bytes:
        for path in log.parent.glob("audit.jsonl*"):
            path.unlink()
        decided = [(name, Decision(name, "urgent", {"urgent": 1.0}, "m")) for name in names]
        AuditLog(log, "ab" * 32, key=KEY).record(decided)
        return log.read_bytes()

    @in_a_folder
    @given(names=NAMES)
    def test_what_was_recorded_is_sound(self, log: Path, names: list[str]) -> None:
        raw = self.write(log, names)
        assert [json.loads(line)["id"] for line in raw.splitlines()] == names
        check = verify_log(log)
        assert (check.faults, check.head.lines) == ([], len(names))

    @in_a_folder
    @given(names=NAMES, data=st.data())
    def test_any_change_is_found(self, log: Path, names: list[str], data: st.DataObject) -> None:
        whole = self.write(log, names)
        raw = data.draw(changed(whole))
        assume(raw != whole)
        log.write_bytes(raw)
        assert verify_log(log).faults

    @in_a_folder
    @given(names=NAMES, data=st.data())
    def test_after_a_torn_tail_the_log_goes_on(self, log: Path, names: list[str], data: st.DataObject) -> None:
        whole = self.write(log, names)
        log.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=60).filter(lambda raw: b"\n" not in raw)))
        assert verify_log(log).faults
        AuditLog(log, "ab" * 32, key=KEY).record([("after", Decision("after", None, {}, "m", abstained=True))])
        assert log.read_bytes().startswith(whole)
        assert verify_log(log).faults == []

    @in_a_folder
    @given(raw=st.binary(max_size=200) | JSON_LINES)
    def test_any_bytes_are_checked_and_never_written_over(self, log: Path, raw: bytes) -> None:
        for path in log.parent.glob("audit.jsonl*"):
            path.unlink()
        log.write_bytes(raw)
        assert bool(verify_log(log).faults) is bool(raw)
        try:
            AuditLog(log, "ab" * 32, key=KEY).record([("n", Decision("n", None, {}, "m", abstained=True))])
        except AuditError:
            assert log.read_bytes() == raw


class TestMinisign:
    pytest.importorskip("cryptography", reason="signatures are the extra `sign`")

    @given(ANY_TEXT | changed_text(PREHASHED) | changed_text(LEGACY))
    def test_any_text_is_a_signature_or_refused(self, text: str) -> None:
        try:
            found = Signature.parse(text)
        except SignatureError:
            return
        assert Signature.parse(found.to_text()) == found

    @given(ANY_TEXT | changed_text(PUBLIC))
    def test_any_text_is_a_public_key_or_refused(self, text: str) -> None:
        try:
            found = PublicKey.parse(text)
        except KeyFileError:
            return
        assert PublicKey.parse(found.to_text()) == found

    @settings(deadline=None)
    @given(ANY_TEXT | changed_text(SECRET))
    def test_any_text_is_a_secret_key_or_refused(self, text: str) -> None:
        try:
            assert SecretKey.parse(text).id
        except KeyFileError:
            return
        assert not needs_password(text)

    @given(st.binary(max_size=50), st.text(max_size=20).filter(str.isprintable))
    def test_what_is_signed_is_verified_and_comes_back(self, message: bytes, comment: str) -> None:
        key = SecretKey.parse(SECRET)
        signature = key.sign(message, comment)
        assert Signature.parse(signature.to_text()) == signature
        key.public.verify(message, signature)
        with pytest.raises(SignatureError):
            key.public.verify(message + b"\0", signature)


class TestJournal:
    @in_a_folder
    @given(data=st.data())
    def test_a_header_is_read_torn_or_refused(self, tmp_path: Path, data: st.DataObject) -> None:
        header = {"journal": SCHEMA, "options": data.draw(st.dictionaries(TEXTS, TEXTS, max_size=2))}
        first, crc = encode(header, 0)
        whole = first + encode({"notes": []}, crc)[0]
        size = data.draw(st.integers(0, len(whole)))
        path = tmp_path / "j"
        path.write_bytes(whole[:size])
        assert read_header(path) == (header if size >= len(first) else None)
        path.write_bytes(data.draw(st.binary(max_size=60)))
        with contextlib.suppress(InputError):
            assert read_header(path) is None


class TestDelimited:
    ROWS = st.lists(st.tuples(TEXTS, TEXTS).map(lambda row: tuple(part.replace("\0", "") for part in row)), min_size=1)

    def table(self, rows: list[tuple[str, ...]]) -> bytes:
        stream = io.StringIO(newline="")
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("id", "text"), *rows])
        return stream.getvalue().encode("utf-8")

    @given(ROWS, st.data())
    def test_a_torn_table_costs_its_last_row_alone(self, rows: list[tuple[str, ...]], data: st.DataObject) -> None:
        raw = self.table(rows)
        torn = raw[: data.draw(st.integers(len(self.table([])) + 1, len(raw)))]
        found = list(read_csv(io.BytesIO(torn), "rows", Columns()))
        notes = [Note(id_, text) for id_, text in rows]
        assert len(found) <= len(notes)
        assert found[:-1] == notes[: len(found) - 1]
        assert isinstance(found[-1], BadRow) or notes[len(found) - 1].id == found[-1].id

    @given(ROWS, st.data())
    def test_a_bad_row_costs_itself_and_is_told_by_its_line(
        self, rows: list[tuple[str, ...]], data: st.DataObject
    ) -> None:
        bad = data.draw(st.sampled_from((b'"one"\n', b'"a","b","c"\n', b'"a","\xff"\n', b'"a","\0"\n')))
        place = data.draw(st.integers(0, len(rows)))
        before, after = self.table(rows[:place]), self.table(rows[place:]).removeprefix(self.table([]))
        found = list(read_csv(io.BytesIO(before + bad + after), "rows", Columns()))
        assert found[:place] + found[place + 1 :] == [Note(id_, text) for id_, text in rows]
        told = found[place]
        assert isinstance(told, BadRow)
        lines = before.replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n")
        assert told.line == lines + 1

    @settings(max_examples=500)
    @given(
        rows=st.lists(st.text(st.sampled_from('ab,;"" \r\n\0'), max_size=12), max_size=6),
        delimiter=st.sampled_from(",;|"),
        skip=st.integers(1, 8),
    )
    def test_rows_that_are_passed_over_are_those_that_would_be_read(
        self, rows: list[str], delimiter: str, skip: int
    ) -> None:
        table = "\n".join([f"id{delimiter}text", f"1{delimiter}x", *rows]).encode("ascii")

        def found(skip: int) -> list[Note | BadRow]:
            return list(read_csv(io.BytesIO(table), "rows", Columns(), delimiter=delimiter, skip=skip))

        assert found(skip) == found(0)[skip:]


class TestReport:
    RECORD = st.fixed_dictionaries({"id": TEXTS, "label": TEXTS, "probabilities": JSON})

    @in_a_folder
    @given(raw=st.binary(max_size=200), kind=st.sampled_from(("jsonl", "csv")))
    @example(raw=b"text;label\ra;b\r", kind="csv")
    @example(raw=b"text,label\n\n\na,b\n", kind="csv")
    def test_any_bytes_are_labelled_rows_or_refused(self, tmp_path: Path, raw: bytes, kind: str) -> None:
        path = tmp_path / f"rows.{kind}"
        for head in (b"", b"id,text,label\n" if kind == "csv" else b'{"text": "a", "label": "b"}\n'):
            path.write_bytes(head + raw)
            try:
                rows, _ = read_labelled([path])
            except InputError:
                continue
            assert all(row.gold for row in rows)

    @in_a_folder
    @given(rows=st.lists(JSON | RECORD, max_size=3))
    def test_any_json_lines_are_decisions_or_refused(self, tmp_path: Path, rows: list[Any]) -> None:
        path = tmp_path / "decisions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        try:
            side = read_decisions(str(path))
        except InputError:
            return
        assert len(side.records) == len(rows)

    @in_a_folder
    @given(data=JSON | st.dictionaries(st.sampled_from(["flips", "macro_f1_loss", "x"]), NUMBERS | JSON, max_size=2))
    def test_any_json_is_a_gate_or_refused(self, tmp_path: Path, data: Any) -> None:
        path = tmp_path / "gate.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        try:
            assert isinstance(read_gate(path), Gate)
        except InputError:
            return


class TestLabelledNotes:
    @in_a_folder
    @given(raw=st.binary(max_size=60) | JSON_LINES)
    def test_any_bytes_are_rows_to_calibrate_on_or_refused(self, tmp_path: Path, raw: bytes) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_bytes(raw)
        try:
            rows = list(labelled_notes(path, LabelSet(("a", "b"))))
        except InputError:
            return
        assert all(text.strip() and label in (0, 1) for text, label in rows)


class TestMemories:
    """What was measured or tried on this machine is a convenience: a damaged file of it counts as none."""

    @in_a_folder
    @given(raw=st.binary(max_size=60) | JSON.map(lambda data: json.dumps(data).encode("ascii")))
    def test_any_bytes_are_remembered_threads_or_nothing(self, tmp_path: Path, raw: bytes) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threads, "cache_folder", lambda: tmp_path)
            (tmp_path / "threads.json").write_bytes(raw)
            threads.recall("this machine")
            threads.remember("this machine", [2, 1])
            assert threads.recall("this machine") == [2, 1]

    @in_a_folder
    @given(raw=st.binary(max_size=60) | JSON.map(lambda data: json.dumps(data).encode("ascii")))
    def test_any_bytes_are_tried_bundles_or_none(self, tmp_path: Path, raw: bytes) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trial, "_memory_file", lambda: tmp_path / "tried.json")
            (tmp_path / "tried.json").write_bytes(raw)
            assert all(isinstance(key, str) for key in trial._read_memory())
            trial._remember("this bundle")
            assert trial._read_memory()[-1] == "this bundle"


class TestParts:
    @in_a_folder
    @given(raw=st.binary(max_size=60) | JSON.map(lambda data: json.dumps(data).encode("ascii")))
    def test_any_bytes_in_the_place_of_a_model_in_parts_are_refused(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / ASSEMBLY).write_bytes(raw)
        with pytest.raises(BundleError):
            read_parts(tmp_path)


class TestDecisions:
    LABELS = ("emergent", "urgent")

    def record(self, id_: str, rationale: str | None, abstained: bool) -> dict[str, Any]:
        decision = Decision(
            id_, "urgent", {"emergent": 0.25, "urgent": 0.75}, "m", ("urgent",), abstained, None, rationale
        )
        return {key: value for key, value in decision.to_json().items() if key != "ms"}

    RECORDS = st.lists(st.tuples(ANY_TEXT, st.none() | ANY_TEXT, st.booleans()), min_size=1, max_size=4)

    def written(self, path: Path, format_: str, records: list[dict[str, Any]]) -> bytes:
        path.unlink(missing_ok=True)
        file = PlainFile(path, Files())
        writer = writer_of(format_, file, self.LABELS, excel_bom=False)
        for record in records:
            writer.write(record)
        writer.close()
        file.finish()
        return path.read_bytes()

    @in_a_folder
    @given(rows=RECORDS)
    def test_json_lines_come_back(self, tmp_path: Path, rows: list[tuple[str, str | None, bool]]) -> None:
        records = [self.record(*row) for row in rows]
        raw = self.written(tmp_path / "o", "jsonl", records)
        assert [json.loads(line) for line in raw.decode("utf-8").splitlines()] == records

    @in_a_folder
    @given(rows=RECORDS)
    def test_csv_comes_back_neutralised(self, tmp_path: Path, rows: list[tuple[str, str | None, bool]]) -> None:
        raw = self.written(tmp_path / "o", "csv", [self.record(*row) for row in rows])
        head, *found = csv.reader(io.StringIO(raw.decode("utf-8"), newline=""))
        assert head == [name for name, _, _ in columns_of(self.LABELS)]
        for cells, (id_, rationale, abstained) in zip(found, rows, strict=True):
            by_name = dict(zip(head, cells, strict=True))
            escaped = neutralised(id_).encode("utf-8", "backslashreplace").decode("utf-8")
            assert by_name["id"] == escaped
            assert by_name["abstained"] == ("true" if abstained else "false")
            assert (by_name["rationale"] == "") is (not rationale)

    @in_a_folder
    @given(rows=st.lists(st.tuples(TEXTS, st.none() | TEXTS, st.booleans()), min_size=1, max_size=4))
    def test_parquet_comes_back(self, tmp_path: Path, rows: list[tuple[str, str | None, bool]]) -> None:
        parquet = pytest.importorskip("pyarrow.parquet", reason="the extra parquet")
        self.written(tmp_path / "o", "parquet", [self.record(*row) for row in rows])
        found = parquet.read_table(tmp_path / "o").to_pylist()
        assert [(row["id"], row["rationale"], row["abstained"]) for row in found] == rows

    @given(TEXTS, TEXTS)
    @example("1\r2", "")
    def test_the_terminals_csv_comes_back(self, id_: str, rationale: str) -> None:
        stream = io.StringIO(newline="")
        decision = Decision(id_, "urgent", {"emergent": 0.25, "urgent": 0.75}, "m", rationale=rationale)
        CsvWriter(stream, self.LABELS).write(decision)
        [row] = csv.DictReader(io.StringIO(stream.getvalue(), newline=""))
        assert (row["id"], row["rationale"]) == (id_, rationale)
