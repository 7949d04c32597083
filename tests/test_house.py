"""The rules of the house: who may import whom, what the wheel holds, what an import costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
ROOMS = ("r2d_edge", "train", "convert", "benchmarks", "tests")

# The edge runtime, wherever an import stands. What else is imported only when it is asked for stands in its own
# place and comes with an extra.
RUNTIME = {"click", "ctranslate2", "numpy", "rich", "tokenizers"}
ROOMS_WITH_LIBRARIES = {
    "r2d_edge/engines/llama_cpp.py": {"llama_cpp"},
    "r2d_edge/engines/transformers.py": {"torch", "transformers"},
    "r2d_edge/assembly/": {"gguf"},
    "r2d_edge/integrity/": {"cryptography"},
    "r2d_edge/report/": {"bert_score", "sacrebleu", "torch", "transformers"},
    "r2d_edge/batch/": {"pyarrow", "ray"},
    "r2d_edge/tables.py": {"pyarrow"},
}
NETWORK = {
    "asyncio",
    "ftplib",
    "http",
    "imaplib",
    "poplib",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "urllib",
    "xmlrpc",
}
NEIGHBOURS = {"r2d_edge": set(), "train": {"r2d_edge"}, "convert": {"r2d_edge"}}
IMPORT_NAMES = {"llama-cpp-python": "llama_cpp", "scikit-learn": "sklearn", "pyyaml": "yaml"}
MAX_EXTRA_IMPORT_SECONDS = 0.050


def room_imports(room: str) -> list[tuple[str, str]]:
    """(file, module's top name) of every import in a room, wherever it stands."""
    found = []
    for path in sorted((ROOT / room).rglob("*.py")):
        names: list[str] = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names.append(room if node.level or node.module is None else node.module)
        found += [(path.relative_to(ROOT).as_posix(), name.partition(".")[0]) for name in names]
    return found


def declared(*extras: str) -> set[str]:
    """The import names of the base dependencies and of the named extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    names = [re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in wanted]
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


@pytest.mark.parametrize("room", NEIGHBOURS)
def test_a_room_imports_no_other_than_it_may(room: str) -> None:
    forbidden = set(ROOMS) - {room} - NEIGHBOURS[room]
    assert room_imports(room)
    assert [(file, name) for file, name in room_imports(room) if name in forbidden] == []


def test_the_runtime_imports_its_few_libraries_alone() -> None:
    strangers = []
    for file, name in room_imports("r2d_edge"):
        known = name in sys.stdlib_module_names or name in RUNTIME or name == "r2d_edge"
        rooms = [libraries for place, libraries in ROOMS_WITH_LIBRARIES.items() if file.startswith(place)]
        if not known and not any(name in libraries for libraries in rooms):
            strangers.append((file, name))
    assert strangers == []


def test_the_runtime_knows_no_network() -> None:
    assert [(file, name) for file, name in room_imports("r2d_edge") if name in NETWORK] == []


@pytest.mark.parametrize(("room", "extras"), [("train", ["train", "gguf"]), ("convert", ["convert", "gguf"])])
def test_a_workshop_imports_only_what_its_extras_declare(room: str, extras: list[str]) -> None:
    known = declared(*extras) | {room} | NEIGHBOURS[room] | set(sys.stdlib_module_names)
    strangers = {(file, name) for file, name in room_imports(room) if name not in known}
    assert strangers == set()


def test_the_rules_see_every_way_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.py").write_text(
        "import a.b, c\nfrom d.e import f\nfrom . import g\nif TYPE_CHECKING:\n    import h\n"
        "try:\n    import i\nexcept ImportError:\n    pass\n"
        "class J:\n    def k(self):\n        from m import n\n",
        encoding="utf-8",
    )
    assert {name for _, name in room_imports("train")} == {"a", "c", "d", "train", "h", "i", "m"}


def test_the_wheel_holds_the_runtime_alone(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"r2d_edge"}
    packed = {name for name in names if ".dist-info/" not in name}
    source = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "r2d_edge").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".tmp"
    }
    assert packed == source
    assert {"r2d_edge/py.typed", "r2d_edge/cli/infer.py"} <= packed
    inside = {name.split("/", 1)[1] for name in names - packed}
    assert inside == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def test_importing_the_package_costs_little_more_than_numpy() -> None:
    def best(code: str) -> float:
        laps = []
        for _ in range(7):
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
            laps.append(time.perf_counter() - start)
        return min(laps)

    assert best("import r2d_edge") <= best("import numpy") + MAX_EXTRA_IMPORT_SECONDS


def test_importing_the_command_line_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, r2d_edge.cli; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
