"""Mutated bundles through the command line: each must be refused or harmless, and none may end the process.

As a command: `python -m tests.fuzz_bundles BUNDLE --count 500 --seed 1` prints what came of them as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r2d_edge.bundle import MANIFEST

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 10**30, float("nan"), "", "\0", "../../etc/passwd", "é" * 5000, [], [[]], {}, {"a": {}},
)  # fmt: skip
HARMLESS = {0, 1, 3, 5}


def flip(raw: bytes, generator: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(generator.choice([1, 4, 64])):
        if changed:
            changed[generator.randrange(len(changed))] = generator.randrange(256)
    return bytes(changed)


def cut(raw: bytes, generator: random.Random) -> bytes:
    return raw[: generator.randrange(len(raw) + 1)]


def grow(raw: bytes, generator: random.Random) -> bytes:
    place = generator.randrange(len(raw) + 1)
    return raw[:place] + generator.randbytes(generator.choice([1, 8, 4096])) + raw[place:]


def flip_head(raw: bytes, generator: random.Random) -> bytes:
    """Where a binary format keeps its counts and sizes."""
    return flip(raw[:200], generator) + raw[200:]


def change_json(raw: bytes, generator: random.Random) -> bytes:
    """One value of a JSON document becomes another or goes."""
    try:
        data = json.loads(raw)
    except ValueError:
        return flip(raw, generator)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(data)
    if places:
        node, key = generator.choice(places)
        if isinstance(node, dict) and generator.random() < 0.2:
            del node[key]
        else:
            node[key] = generator.choice(ODD)
    return json.dumps(data).encode("utf-8")


def mutate(folder: Path, generator: random.Random) -> str:
    """Changes one file of a bundle; two times in three its manifest vouches for the change."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    name = generator.choice([*names, MANIFEST, *[each for each in names if each.startswith("model/")]])
    changes: list[Callable[[bytes, random.Random], bytes]] = [flip, cut, grow]
    changes += [change_json] * 4 if name.endswith(".json") else [flip_head] * 3 if name.endswith(".bin") else []
    change = generator.choice(changes)
    file = folder / name
    file.write_bytes(change(file.read_bytes(), generator))
    vouched = generator.random() < 2 / 3
    if vouched and name != MANIFEST:
        vouch(folder, name)
    return f"{change.__name__} {name}{' vouched for' if vouched else ''}"


def vouch(folder: Path, name: str) -> None:
    """Writes a file's size and hash into the manifest."""
    import hashlib

    data = json.loads((folder / MANIFEST).read_bytes())
    raw = (folder / name).read_bytes()
    data["files"][name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(data), encoding="utf-8")


def run(bundle: Path, count: int, seed: int) -> dict[str, Any]:
    """What came of `count` mutated bundles: exit codes counted, and every outcome that is none we promise."""
    from r2d_edge.cli import cli

    codes: Counter[str] = Counter()
    bad = []
    os.environ.pop("R2D_EDGE_TRUST", None)
    with tempfile.TemporaryDirectory() as work:
        os.environ["R2D_EDGE_DATA"] = str(Path(work, "data"))
        for number in range(count):
            folder = Path(shutil.copytree(bundle, Path(work, "mutated")))
            what = mutate(folder, random.Random(f"{seed}/{number}"))
            print(number, what, file=sys.stderr, flush=True)  # the last line tells which one ended the process
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code: Any = cli.main(
                        ["verify", str(folder), "--rescore", "--threads", "1"],
                        prog_name="r2d-edge",
                        standalone_mode=False,
                    )
                except SystemExit as ended:
                    code = ended.code
            said = err.getvalue()
            codes[str(code or 0)] += 1
            if "crashed its engine" in said:
                codes["crashed in the trial"] += 1
            lines = said.splitlines()
            if (code or 0) not in HARMLESS or "failed unexpectedly" in said or "Traceback" in said or len(lines) > 1:
                bad.append({"number": number, "what": what, "code": code, "said": said})
            shutil.rmtree(folder)
    return {"count": count, "seed": seed, "outcomes": dict(sorted(codes.items())), "bad": bad}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    found = run(arguments.bundle, arguments.count, arguments.seed)
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["bad"] else 0)


if __name__ == "__main__":
    main()
