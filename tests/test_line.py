"""The whole line on real classes, in seconds: text → warm base → both stages → bundle → `r2d-edge infer`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from convert.bundling import convert_to_ctranslate2
from convert.extras import ConversionOptions
from r2d_edge.bundle import open_bundle
from tests.tiny_models import TEXTS, write_tiny_bart
from train.methods import fit
from train.pretrain import PretrainRecipe, pretrain
from train.recipe import FitRecipe

LABELS = ["resuscitation", "emergent", "urgent", "less urgent", "non-urgent"]


@pytest.mark.parametrize("quantization", ["int8"])
def test_from_text_to_decision(quantization: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    files = {}
    for part in ("train", "validation"):
        rows = [
            {
                "id": f"{part}{number}",
                "text": f"{TEXTS[1 + number % 8]} {part} {number}",
                "label": LABELS[number % 5],
                "rationales": {"llm": f"{TEXTS[1 + number % 5]}"},
            }
            for number in range(10)
        ]
        files[part] = tmp_path / f"{part}.jsonl"
        files[part].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    base = write_tiny_bart(tmp_path / "base", max_position_embeddings=96)
    pretrained = pretrain(
        PretrainRecipe(base, tmp_path / "pretrained", {str(files["train"]): 1.0}, steps=3, batch_size=2, block=24)
    )
    common = {
        "train": [files["train"]],
        "validation": {"tiny": files["validation"]},
        "labels": LABELS,
        "max_input": 96,
        "max_rationale": 24,
        "batch_size": 5,
        "epochs": 1.0,
        "bf16": False,
    }
    recipe = FitRecipe(checkpoint=str(pretrained), output=tmp_path / "r2d", stage1_epochs=1.0, evaluations=2, **common)
    trained = fit(recipe)
    result = convert_to_ctranslate2(
        trained, tmp_path / "bundle", ConversionOptions(quantization=quantization, name="tiny-triage")
    )

    provenance = open_bundle(result.output).manifest.extra["provenance"]
    methods = []
    while isinstance(provenance, dict):
        methods.append(provenance["method"])
        provenance = provenance["from"]
    assert methods == ["r2d", "stage 1", "denoising pre-training (span infilling)"]

    note = "52M crushing chest pain for an hour, HR 104, BP 118/76"
    command = [sys.executable, "-m", "r2d_edge", "infer", "--model", str(result.output), "--format", "jsonl", note]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    decision = json.loads(done.stdout)
    assert decision["label"] in LABELS
    assert list(decision["probabilities"]) == LABELS
    assert sum(decision["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert decision["model"].startswith("tiny-triage 0.1.0 sha256:")
    assert isinstance(decision["rationale"], str)
