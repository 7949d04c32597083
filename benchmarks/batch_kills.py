"""Kills a batch run again and again, and holds what comes out in the end against a run that was left alone.

The runs keep an audit log, too, which must hold each row once in the end, in an unbroken chain.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.process import ROOT, SideError, environment
from r2d_edge.assembly.store import DATA_VARIABLE
from r2d_edge.audit import verify_log

POLL_SECONDS = 0.01
LIMIT_SECONDS = 3600.0
NEVER = 1 << 60
STEPS = 8  # within one of the first so many a run kills itself, so that those after it still have work

Tell = Callable[[str], None]


@dataclass
class Damage:
    """What is wrong with an output.

    Attributes:
        lost: rows that are not there.
        doubled: rows that are there more than once.
        torn: lines that are no whole record.
        changed: rows that say something else.
    """

    lost: int = 0
    doubled: int = 0
    torn: int = 0
    changed: int = 0

    def __bool__(self) -> bool:
        return any(asdict(self).values())


@dataclass
class AuditDamage:
    """What is wrong with an audit log.

    Attributes:
        faults: in its chain.
        lost: rows that are not in it.
        doubled: rows that are in it more than once.
    """

    faults: int = 0
    lost: int = 0
    doubled: int = 0


@dataclass
class Proof:
    """What came of the kills.

    Attributes:
        moments: kills at a random moment.
        steps: kills within a write, sync, rename or the like.
        finished: runs that were done before they could be killed.
        rounds: outputs that were compared.
        identical: whether each of them had the bytes of the run that was left alone.
        damage: of all outputs that did not.
        audit: of all audit logs.
        seconds: of the run that was left alone, and of all the killing.
    """

    moments: int = 0
    steps: int = 0
    finished: int = 0
    rounds: int = 0
    identical: bool = True
    damage: Damage = field(default_factory=Damage)
    audit: AuditDamage = field(default_factory=AuditDamage)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def kills(self) -> int:
        """Runs that were alive when they were killed, and died of it."""
        return self.moments + self.steps

    @property
    def holds(self) -> bool:
        """Whether nothing was wrong anywhere."""
        return self.identical and not any(asdict(self.audit).values())


def prove(notes: Path, folder: Path, kills: int, seed: int, options: Sequence[str], tell: Tell) -> Proof:
    """Decides `notes` in peace, then again under `kills` kills.

    Every other kill comes at a random moment, spread over the work; the ones between come within a step on the disk
    that was drawn before. A run that ends before its kill closes a round: its output is compared, and the work begins
    anew until all kills are made.

    Args:
        folder: for the outputs.
        options: more of `r2d-edge batch`.

    Raises:
        SideError: a run failed by itself.
    """
    proof = Proof()
    chance = random.Random(seed)
    expected, work, steps = _in_peace(notes, folder, options)
    proof.seconds["in peace"] = work.seconds
    tell(f"left alone: {work.seconds:.1f} s, {steps} steps on the disk")
    start = time.perf_counter()
    output = folder / "killed.jsonl"
    run = _Killing(notes, output, options, work, chance)
    while proof.kills < kills:
        announced = (proof.kills + proof.finished) % 2 == 1
        if announced:
            died = run.within(chance.randrange(STEPS))
            proof.steps += died
        else:
            died = run.at((proof.moments + chance.random()) / max(1, kills // 2) % 1.0)
            proof.moments += died
        if died and output.exists():  # it appears whole or not at all
            _compare(expected, output.read_bytes(), proof)
        if not died:
            proof.finished += 1
            _close_round(expected, output, proof)
            run.begin_anew()
        if died and proof.kills % 50 == 0:
            tell(f"{proof.kills} kills, {proof.rounds} rounds")
    run.finish()
    _close_round(expected, output, proof)
    proof.seconds["killing"] = time.perf_counter() - start
    return proof


def damage_of(expected: bytes, found: bytes) -> Damage:
    """What is wrong with an output, row by row."""
    damage = Damage()
    wanted = {json.loads(line)["id"]: line for line in expected.splitlines(keepends=True)}
    seen: Counter[str] = Counter()
    for line in found.splitlines(keepends=True):
        try:
            id_ = json.loads(line)["id"]
        except (ValueError, KeyError, TypeError):
            damage.torn += 1
            continue
        damage.torn += not line.endswith(b"\n")
        damage.changed += line.rstrip(b"\n") != wanted.get(id_, b"").rstrip(b"\n")
        seen[id_] += 1
    damage.lost = len(wanted.keys() - seen.keys())
    damage.doubled = sum(count - 1 for count in seen.values())
    return damage


def audit_damage_of(log: Path, rows: int) -> AuditDamage:
    """What is wrong with the audit log of a job that has so many rows."""
    found = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    seen = Counter(record["row"] for record in found if "row" in record)
    lost = len(set(range(rows)) - seen.keys())
    return AuditDamage(len(verify_log(log).faults), lost, sum(count - 1 for count in seen.values()))


def _close_round(expected: bytes, output: Path, proof: Proof) -> None:
    proof.rounds += 1
    _compare(expected, output.read_bytes(), proof)
    damage = audit_damage_of(_audit_of(output), len(expected.splitlines()))
    for name, count in asdict(damage).items():
        setattr(proof.audit, name, getattr(proof.audit, name) + count)


def _audit_of(output: Path) -> Path:
    return output.with_name(output.name + ".audit")


def _compare(expected: bytes, found: bytes, proof: Proof) -> None:
    if found != expected:
        proof.identical = False
        damage = damage_of(expected, found)
        for name, count in asdict(damage).items():
            setattr(proof.damage, name, getattr(proof.damage, name) + count)


@dataclass(frozen=True)
class _Work:
    """The run that was left alone: its seconds, those up to its first record, and its journal's greatest size."""

    seconds: float
    first: float
    journal: int


def _in_peace(notes: Path, folder: Path, options: Sequence[str]) -> tuple[bytes, _Work, int]:
    output, counted = folder / "expected.jsonl", folder / "steps"
    start = time.perf_counter()
    process = _start(notes, output, options, NEVER, counted)
    first = size = 0.0
    while process.poll() is None:
        size = max(size, _size(output))
        if not first and size:
            first = time.perf_counter() - start
        time.sleep(POLL_SECONDS)
    _check(process)
    work = _Work(time.perf_counter() - start, first, int(size))
    return output.read_bytes(), work, int(counted.read_text(encoding="ascii"))


class _Killing:
    """Runs of one job that are killed."""

    def __init__(self, notes: Path, output: Path, options: Sequence[str], work: _Work, chance: random.Random) -> None:
        self._notes = notes
        self._output = output
        self._options = options
        self._work = work
        self._chance = chance

    def at(self, share: float) -> bool:
        """Kills a run at a random moment once a share of the journal is there; False if it was done before."""
        process = self._start(NEVER)
        begun = _size(self._output)
        target = share * self._work.journal
        while process.poll() is None and _size(self._output) < target:
            time.sleep(POLL_SECONDS)
        # Where the journal was so far already, the run gets as long as it takes to begin, and somewhat more.
        most = 0.5 if begun < target else 2 * self._work.first
        try:
            process.wait(timeout=self._chance.uniform(0, most))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            if process.returncode:
                return True
        _check(process)  # it came to its end by itself
        return False

    def within(self, step: int) -> bool:
        """A run that kills itself at a step on the disk; False if it was done before."""
        process = self._start(step)
        _, said = process.communicate(timeout=LIMIT_SECONDS)
        if process.returncode == 0:
            return False
        if process.returncode in (1, 2, 3, 4):  # its own exit codes: it was not killed
            raise SideError(said.decode("utf-8", "replace").strip() or f"exit code {process.returncode}")
        return True

    def finish(self) -> None:
        """A run that is left alone."""
        _check(self._start(NEVER))

    def begin_anew(self) -> None:
        """Removes what the finished job left."""
        for path in self._output.parent.glob(f"{self._output.name}*"):
            path.unlink()

    def _start(self, step: int) -> subprocess.Popen[bytes]:
        return _start(self._notes, self._output, self._options, step, self._output.with_name("steps"))


def _start(notes: Path, output: Path, options: Sequence[str], step: int, counted: Path) -> subprocess.Popen[bytes]:
    command = ["-m", "benchmarks.dying", str(step), str(counted), "batch", str(notes), "-o", str(output), *options]
    command += ["--audit", str(_audit_of(output))]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**environment(1), DATA_VARIABLE: str(output.parent)},  # the audit log's key
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _check(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    if process.returncode:
        lines = said.decode("utf-8", "replace").strip().splitlines()
        raise SideError(lines[-1] if lines else f"exit code {process.returncode}")


def _size(output: Path) -> int:
    try:
        return output.with_name(output.name + ".journal").stat().st_size
    except OSError:
        return 0


def report(proof: Proof) -> dict[str, Any]:
    """The proof as JSON-ready data."""
    return {
        "kills": {"made": proof.kills, "at random moments": proof.moments, "within steps on the disk": proof.steps},
        "finished_before_a_kill": proof.finished,
        "outputs_compared": proof.rounds,
        "identical": proof.identical,
        "rows": asdict(proof.damage),
        "audit_log": asdict(proof.audit),
        "seconds": {name: round(seconds, 1) for name, seconds in proof.seconds.items()},
    }
