"""Mutated bundles, half of them vouched for by their manifest: refused or harmless, and the process lives."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r2d_edge.bundle import open_bundle
from r2d_edge.errors import BundleError
from tests.cli.bundles import make_bundle
from tests.fuzz_bundles import mutate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return make_bundle(tmp_path_factory.mktemp("tiny"))


def fuzz(bundle: Path, count: int, seed: int, limit: float) -> dict[str, object]:
    found = subprocess.run(
        [sys.executable, "-m", "tests.fuzz_bundles", str(bundle), "--count", str(count), "--seed", str(seed)],
        cwd=ROOT, capture_output=True, text=True, timeout=limit,
    )  # fmt: skip
    assert found.returncode in (0, 1), found.stderr[-300:]  # its last line names the bundle that ended it
    report: dict[str, object] = json.loads(found.stdout)
    return report


def test_a_few_mutated_bundles_are_refused_or_harmless(bundle: Path) -> None:
    report = fuzz(bundle, 12, seed=7, limit=300)
    assert report["bad"] == []
    assert report["count"] == 12


@pytest.mark.slow
def test_five_hundred_mutated_bundles_are_refused_or_harmless(bundle: Path) -> None:
    report = fuzz(bundle, 500, seed=1, limit=3600)
    assert report["bad"] == []


def test_an_unvouched_change_is_always_refused(bundle: Path, tmp_path: Path) -> None:
    whole = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    digest = open_bundle(bundle).digest
    refused = 0
    for number in range(60):
        folder = Path(shutil.copytree(bundle, tmp_path / "own"))
        what = mutate(folder, random.Random(f"unvouched/{number}"))
        manifest = (folder / "manifest.json").read_bytes()
        if "vouched" not in what and "manifest.json" not in what:
            changed = any((folder / path.relative_to(bundle)).read_bytes() != raw for path, raw in whole.items())
            assert manifest == whole[bundle / "manifest.json"]
            if changed:
                with pytest.raises(BundleError):
                    open_bundle(folder)
                refused += 1
            else:
                assert open_bundle(folder).digest == digest
        shutil.rmtree(folder)
    assert refused > 5
