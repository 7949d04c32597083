"""Where a base model lies, by its name; a package is never imported to find out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r2d_edge.base_models import BaseModelError, locate

Package = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    def make(name: str, *files: str) -> Path:
        folder = tmp_path / "site" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise SystemExit('imported')", encoding="utf-8")
        for file in files:
            (folder / file).touch()
        return folder

    monkeypatch.syspath_prepend(tmp_path / "site")
    return make


@pytest.mark.parametrize("local", [False, True])
def test_what_is_here_is_found(local: bool, package: Package, tmp_path: Path) -> None:
    folder = package("tiny_weights_of_one", "tiny.gguf", "notes.txt")
    found = str(folder), "tiny.gguf"
    for name in ("package:tiny_weights_of_one", "package:tiny-weights-of-one", "package:tiny.weights-of.one"):
        assert locate(name, local=local) == found
    assert locate(str(folder / "tiny.gguf"), local=local) == found
    assert locate(str(tmp_path), local=local) == (str(tmp_path), None)
    odd = tmp_path / "folder.gguf"
    odd.mkdir()
    assert locate(str(odd), local=local) == (str(odd), None)


def test_a_package_that_cannot_be_meant_is_named(package: Package) -> None:
    package("tiny_weights_of_two", "a.gguf", "b.gguf")
    package("tiny_weights_of_none")
    for name, said in (
        ("package:tiny-weights-of-two", "holds 2 .gguf files, not one"),
        ("package:tiny-weights-of-none", "holds 0 .gguf files, not one"),
        ("package:this", "holds 0 .gguf files, not one"),  # a module of one file has no folder of its own
        ("package:no-such-package-here", "is not installed"),
        ("package:", "is not installed"),
    ):
        with pytest.raises(BaseModelError, match=f"^{name}: the package {said}"):
            locate(name)


def test_other_names_are_a_hubs_unless_only_what_is_here_will_do(tmp_path: Path) -> None:
    assert locate("google/flan-t5-base") == ("google/flan-t5-base", None)
    assert locate("models/absent.gguf") == ("models", "absent.gguf")
    (tmp_path / "model.bin").touch()
    for name in ("google/flan-t5-base", "models/absent.gguf", str(tmp_path / "model.bin")):
        with pytest.raises(BaseModelError, match=r"neither a checkpoint folder nor a \.gguf file nor package:NAME"):
            locate(name, local=True)
