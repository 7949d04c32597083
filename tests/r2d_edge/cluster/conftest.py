from __future__ import annotations

from pathlib import Path

import pytest

from r2d_edge.decide import Decider, load
from tests.cli.bundles import make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return make_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def decider(bundle: Path) -> Decider:
    return load(bundle)
