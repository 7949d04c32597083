import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.tiny_models import TEXTS, write_tiny_bart, write_tiny_t5
from train.cli import main
from train.pretrain import PretrainRecipe, draw_blocks, learning_rate_factor, mask_spans, pretrain, read_documents
from train.study.own_data import _toml


def test_mask_spans_hides_the_share_and_keeps_the_rest_in_order() -> None:
    block = np.arange(100, 228, dtype=np.uint32)
    out = mask_spans(block, 0.5, 3.0, mask=4, rng=np.random.default_rng(1))
    kept = [token for token in out if token != 4]
    assert kept == sorted(set(kept))
    assert set(kept) < set(block.tolist())
    assert 0.4 <= 1 - len(kept) / 128 <= 0.6
    assert all((first, second) != (4, 4) for first, second in itertools.pairwise(out))


def test_learning_rate() -> None:
    recipe = PretrainRecipe(Path(), Path(), {}, steps=1000, warmup=100, cooldown_share=0.2)
    assert [learning_rate_factor(s, recipe) for s in (0, 49, 100, 800, 900, 999)] == pytest.approx(
        [0.01, 0.5, 1.0, 1.0, 0.5, 0.005]
    )


def test_blocks_depend_on_seed_and_step_alone() -> None:
    recipe = PretrainRecipe(Path(), Path(), {}, batch_size=8, block=16)
    sources = [(np.arange(1000, dtype=np.uint32), 0.9), (np.full(1000, 7, dtype=np.uint32), 0.1)]
    first, again = (draw_blocks(sources, recipe, 5)[0] for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, draw_blocks(sources, recipe, 6)[0], strict=True))


def test_documents_need_no_label(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    rows = [{"id": "a", "text": "one note"}, {"id": "b", "text": "another", "label": "", "rationales": {"llm": "why"}}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert list(read_documents(path)) == ["one note", "another why"]


def test_a_frozen_encoder_shares_its_embeddings_with_a_decoder_that_learns(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    base = write_tiny_bart(tmp_path / "base")
    texts = {str(text): 1.0}
    pretrain(PretrainRecipe(base, tmp_path / "out", texts, steps=3, block=24, freeze_encoder_steps=3, warmup=1))
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    encoder = [name for name in before if "encoder.layers" in name]
    assert encoder
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not torch.equal(before["model.shared.weight"], after["model.shared.weight"])


def test_cut_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    base = write_tiny_bart(tmp_path / "base")

    def recipe(output: str) -> PretrainRecipe:
        return PretrainRecipe(
            base, tmp_path / output, {str(text): 1.0}, steps=8, batch_size=4, block=24, freeze_encoder_steps=4, warmup=2
        )

    pretrain(recipe("whole"))
    pretrain(recipe("cut"), stop_after=5)
    pretrain(recipe("cut"))
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.allclose(whole[key], cut[key], atol=1e-5) for key in whole)
    start = load_file(base / "model.safetensors")
    assert not torch.allclose(start["model.shared.weight"], whole["model.shared.weight"])


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.txt", tmp_path / "text.txt"
    empty.write_text("", encoding="utf-8")
    text.write_text(TEXTS[1], encoding="utf-8")
    bart, t5 = write_tiny_bart(tmp_path / "bart"), write_tiny_t5(tmp_path / "t5")
    for base, file, words in (
        (bart, empty, f"{empty} holds no document"),
        (t5, text, f"{t5} has no bos, mask token: denoising needs a BART-shaped checkpoint"),
    ):
        settings = {"checkpoint": str(base), "output": str(tmp_path / "out"), "texts": {file.as_posix(): 1.0}}
        config = tmp_path / "recipe.toml"
        config.write_text(_toml(settings), encoding="utf-8")
        result = CliRunner().invoke(main, ["pretrain", "--config", str(config)])
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, f"Error: {words}")
