"""An audit log: what was decided, when and by which model, in lines that are chained by their hashes.

Each line is one JSON object with the hash of the line before it and its own. A line that is edited, dropped, put in
or moved breaks the chain there. Lines cut off at the end leave a sound chain: `FILE.head` beside the log, written
after each append, finds that unless it was changed too, and a head hash noted elsewhere finds it in any case, as it
finds a log that was rewritten whole. A note is kept only as an HMAC-SHA256 under this user's key. The lines of a batch
run also carry the run's name and the row's number, by which a run that goes on knows what is logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from r2d_edge.errors import R2DError

if TYPE_CHECKING:
    from r2d_edge.decision import Decision

SCHEMA = 1
START = "0" * 64  # what the first line names as the hash before it
KEY_NAME = "audit.key"
KEY_BYTES = 32
MAX_ID = 1000  # characters; of a longer id only the hash is kept, so that a line stays a line
MAX_LINE_BYTES = 1 << 16
_HASH = re.compile(r"[0-9a-f]{64}")


class AuditError(R2DError):
    """The audit log cannot be written to, or is not in the state in which it was left."""


@dataclass(frozen=True)
class Head:
    """The end of a log: how many lines, and the hash of the last."""

    lines: int = 0
    hash: str = START


@dataclass(frozen=True)
class Fault:
    """What is wrong at a line (counted from 1)."""

    line: int
    what: str


@dataclass
class AuditCheck:
    """What the reading of a whole log found.

    Attributes:
        head: of the lines that are there.
        faults: in the order of the lines; empty for a sound log.
        anchored_by: what the end was held against (`head file`, `given hash`); with neither, lines that were cut off
            at the end cannot be seen.
    """

    head: Head = field(default_factory=Head)
    faults: list[Fault] = field(default_factory=list)
    anchored_by: list[str] = field(default_factory=list)


def key_file() -> Path:
    """Where this user's key lies."""
    from r2d_edge.assembly.store import data_folder

    return data_folder() / KEY_NAME


def read_key(path: Path | None = None) -> bytes:
    """The key for the notes' hashes, made on first use and readable by its user alone.

    Raises:
        AuditError: it cannot be made or read, or is not such a key.
    """
    path = key_file() if path is None else path
    try:
        if not path.exists():
            _make_key(path)
        text = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise AuditError(f"the audit key {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not _HASH.fullmatch(text):
        raise AuditError(f"{path} is no audit key of {2 * KEY_BYTES} hexadecimal digits")
    return bytes.fromhex(text)


def note_hash(key: bytes, note: str) -> str:
    """HMAC-SHA256 of a note: who has the key can tell whether a given note was the one, no one can read it."""
    return hmac.new(key, note.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


class AuditLog:
    """Appends to a log; several processes may append to one.

    Args:
        path: the log, made 0600 if absent.
        bundle_digest: SHA-256 of the deciding bundle's manifest.
        key: for the notes' hashes; default: this user's.

    Raises:
        AuditError: see `read_key`.
    """

    def __init__(self, path: Path | str, bundle_digest: str, *, key: bytes | None = None) -> None:
        self.path = Path(path)
        self._digest = bundle_digest
        self._key = read_key() if key is None else key

    def record(self, decided: Iterable[tuple[str, Decision]], *, job: str | None = None, first_row: int = 0) -> Head:
        """Appends a line for each note with its decision; they are on the disk when this returns.

        Args:
            decided: notes with their decisions.
            job: a name under which the lines are numbered, for `logged_rows` to find.
            first_row: the first line's number.

        A torn last line, which a loss of power leaves, is moved to `FILE.torn`, and the log says so.

        Raises:
            AuditError: the log cannot be written to, or does not end as it was left.
        """
        try:
            with _locked(self.path):
                contents = [self._content(note, decision) for note, decision in decided]
                if job is not None:
                    contents = [{**content, "job": job, "row": first_row + n} for n, content in enumerate(contents)]
                return self._append(contents)
        except OSError as error:
            raise AuditError(f"the audit log {self.path} cannot be written to: {error.strerror or error}") from None

    def _content(self, note: str, decision: Decision) -> dict[str, Any]:
        return {
            "id": decision.id if len(decision.id) <= MAX_ID else f"sha256:{_text_sha256(decision.id)}",
            "note": note_hash(self._key, note),
            "label": decision.label,
            "probability": None if decision.label is None else round(decision.probabilities[decision.label], 6),
            "abstained": decision.abstained,
            "bundle": self._digest,
        }

    def _append(self, contents: list[dict[str, Any]]) -> Head:
        with _open_private(self.path) as log:
            head, torn = _end(log, self.path)
            if torn:
                with _open_private(self.path.with_name(self.path.name + ".torn")) as aside:
                    aside.seek(0, os.SEEK_END)
                    aside.write(torn + b"\n")
                    _flush(aside)
                log.truncate(log.seek(0, os.SEEK_END) - len(torn))
                contents = [{"event": "torn line set aside", "sha256": hashlib.sha256(torn).hexdigest()}, *contents]
            lines = []
            for content in contents:
                raw, head = _line(content, head)
                lines.append(raw)
            log.seek(0, os.SEEK_END)
            log.write(b"".join(lines))
            _flush(log)
        _write_head(self.path, head)
        return head


def logged_rows(path: Path | str, job: str) -> int:
    """How many of a job's first rows a log holds without a gap; 0 where there is none. A torn last line does not count.

    Raises:
        AuditError: it cannot be read.
    """
    mark = b'"job":' + _json(job)
    count = 0
    try:
        with Path(path).open("rb") as log:
            for raw in _raw_lines(log):
                if mark in raw and raw.endswith(b"\n") and int(json.loads(raw)["row"]) == count:
                    count += 1
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise AuditError(f"the audit log {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise AuditError(f"{path} holds a line that is no audit record: see `r2d-edge audit verify`") from None
    return count


def verify_log(path: Path | str, head: str | None = None) -> AuditCheck:
    """Reads a log whole and holds it against its chain and its anchors.

    Args:
        path: the log.
        head: a hash that was noted earlier as the log's last; the log must still hold a line with it.

    Raises:
        AuditError: there is no such log, or it cannot be read.
    """
    path = Path(path)
    check = AuditCheck()
    noted = _read_head(path)
    hashes_found = {START} if head == START else set()
    try:
        with path.open("rb") as log:
            for number, raw in enumerate(_raw_lines(log), start=1):
                found, faults = _check_line(raw, number, check.head)
                check.faults += faults
                check.head = Head(number, found or check.head.hash)
                if found is not None and found == head:
                    hashes_found.add(found)
                if noted is not None and number == noted.lines and found != noted.hash:
                    check.faults.append(Fault(number, "is not the line that the head file names"))
    except OSError as error:
        raise AuditError(f"the audit log {path} cannot be read: {error.strerror or error}") from None
    if noted is not None:
        check.anchored_by.append("head file")
        if noted.lines > check.head.lines:
            missing = noted.lines - check.head.lines
            check.faults.append(Fault(check.head.lines + 1, f"cut off here: the head file counts {missing} lines more"))
    if head is not None:
        check.anchored_by.append("given hash")
        if head not in hashes_found:
            check.faults.append(
                Fault(check.head.lines + 1, "no line has the given hash: cut off before it, or rewritten")
            )
    return check


def _check_line(raw: bytes, number: int, before: Head) -> tuple[str | None, list[Fault]]:
    """The hash that a line states, and what is wrong with it."""
    if not raw.endswith(b"\n"):
        return None, [Fault(number, "torn: it does not end")]
    try:
        record = json.loads(raw)
        stated, previous, place = record["hash"], record["previous"], record["n"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, [Fault(number, "is no audit record")]
    faults = []
    content = {key: value for key, value in record.items() if key != "hash"}
    # The bytes too: a record has one way to be written, so a doubled key or a blank put in shows.
    if _sha256(content) != stated or raw != _json(record) + b"\n":
        faults.append(Fault(number, "edited: its hash is not that of its content"))
    if previous != before.hash:
        faults.append(Fault(number, "does not follow the line before it: lines were edited, dropped, put in or moved"))
    elif place != number:
        faults.append(Fault(number, f"is numbered {place!r}"))
    return (stated if isinstance(stated, str) else None), faults


def _line(content: dict[str, Any], before: Head) -> tuple[bytes, Head]:
    """A line as bytes, and the head of a log that ends in it."""
    record = {"schema": SCHEMA, "n": before.lines + 1, "time": _now(), **content, "previous": before.hash}
    digest = _sha256(record)
    return _json({**record, "hash": digest}) + b"\n", Head(before.lines + 1, digest)


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(_json(record)).hexdigest()


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _json(value: object) -> bytes:
    # Escaped to ASCII: one way to write a record, and no character that a line reader would take for an end.
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _raw_lines(log: IO[bytes]) -> Iterator[bytes]:
    while raw := log.readline(MAX_LINE_BYTES):
        yield raw


def _end(log: IO[bytes], path: Path) -> tuple[Head, bytes]:
    """The head of a log that is open, and a torn line's bytes after it.

    Raises:
        AuditError: the last line is none of ours, or the log is shorter than when it was left.
    """
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 2 * MAX_LINE_BYTES))
    *whole, torn = log.read().split(b"\n")
    noted = _read_head(path)
    head = Head()
    if whole:
        try:
            last = json.loads(whole[-1])
            head = Head(int(last["n"]), str(last["hash"]))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            raise AuditError(f"{path} does not end in an audit record: see `r2d-edge audit verify`") from None
    elif size > MAX_LINE_BYTES:
        raise AuditError(f"{path} is no audit log")
    if noted is not None and (noted.lines > head.lines or (noted.lines == head.lines and noted.hash != head.hash)):
        raise AuditError(f"{path} does not end as it was left: see `r2d-edge audit verify`")
    return head, torn


def _read_head(path: Path) -> Head | None:
    """What the head file says; None without one or with one that is damaged."""
    try:
        data = json.loads(_head_file(path).read_text(encoding="ascii"))
        return Head(int(data["lines"]), str(data["hash"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _write_head(path: Path, head: Head) -> None:
    target = _head_file(path)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    with _open_private(temporary) as file:
        file.truncate(0)
        file.write(_json({"lines": head.lines, "hash": head.hash}) + b"\n")
        _flush(file)
    temporary.replace(target)


def _head_file(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Whole before it has its name: another process must never read half a key.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _open_private(temporary) as file:
            file.write(secrets.token_bytes(KEY_BYTES).hex().encode("ascii") + b"\n")
            _flush(file)
        try:
            os.link(temporary, path)  # unlike a rename, it never replaces a key that another process made
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_private(path: Path) -> IO[bytes]:
    """Opens a file to read and write, made for its user alone if absent; a link is not followed."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o600), "r+b")


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time; the lock goes with the process that holds it."""
    with _open_private(path.with_name(path.name + ".lock")) as lock:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
            try:
                yield
            finally:
                lock.seek(0)
                msvcrt.locking(lock.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
