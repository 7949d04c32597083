"""The warm start: MiniLM weight for weight in the encoder, and a vocabulary that still spells everything."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

from train.cli import main
from train.warmstart import LAST_FILE, decoder_sources, packaged_minilm, warmstart

TEXT = "62F c/o heartburn since 0430, T2DM on insulin. BP 104/62, SpO2 95% RA, 39.2 °C, naïve."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "base"
    warmstart(folder, required_texts=[TEXT], wanted_texts=["The chest pain is severe."] * 3, vocabulary_size=2300)
    return folder


def test_encoder_is_minilm(base: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, BertModel

    model = AutoModelForSeq2SeqLM.from_pretrained(base, attn_implementation="eager").eval()
    bert = BertModel.from_pretrained(packaged_minilm(), attn_implementation="eager").eval()
    ids = [
        torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids[:40]])
        for folder in (base, packaged_minilm())
    ]
    with torch.inference_mode():
        ours = model.get_encoder()(ids[0]).last_hidden_state
        theirs = bert(ids[1][:, : ids[0].shape[1]]).last_hidden_state
    # BERT's layer norms have an epsilon of 1e-12, BART's of 1e-5: that is all the difference.
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 5e-3
    for index in range(6):
        pair = (
            model.model.encoder.layers[index].fc1.weight,
            bert.encoder.layer[index].intermediate.dense.weight,
        )
        assert torch.equal(*pair)


def test_decoder_starts_from_encoder_layers(base: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(base).model
    assert decoder_sources(6, 3) == [1, 3, 5]
    for layer, source in zip(model.decoder.layers, (1, 3, 5), strict=True):
        expected = model.encoder.layers[source].self_attn.q_proj.weight
        assert torch.equal(layer.self_attn.q_proj.weight, expected)
        assert torch.equal(layer.encoder_attn.q_proj.weight, expected)


def test_vocabulary_is_trimmed_and_spells_everything(base: Path) -> None:
    full = Tokenizer.from_file(str(packaged_minilm() / "tokenizer.json"))
    full.no_padding()
    trimmed = Tokenizer.from_file(str(base / "tokenizer.json"))
    assert 2000 < trimmed.get_vocab_size() < 2300  # all there is to keep
    assert trimmed.encode(TEXT).tokens == full.encode(TEXT).tokens
    assert "chest" in trimmed.get_vocab()
    unseen = trimmed.encode("Zyklothymia qualifies").tokens
    assert "[UNK]" not in unseen
    assert "".join(token.removeprefix("##") for token in unseen[1:-1]) == "zyklothymiaqualifies"
    provenance = json.loads((base / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["vocabulary"] == trimmed.get_vocab_size()


def test_decoder_sources_refuses_more_layers_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"1\.\.6, not 7"):
        decoder_sources(6, 7)


def test_a_warm_start_that_is_cut_does_not_look_whole(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((base / LAST_FILE).read_text(encoding="utf-8"))
    assert (settings["model_max_length"], settings["mask_token"]) == (512, "[MASK]")

    def cut(*_):
        raise KeyboardInterrupt

    (tmp_path / LAST_FILE).write_text("{}", encoding="utf-8")  # of an earlier one
    monkeypatch.setattr("train.warmstart.wordpiece.trim_tokenizer", cut)
    with pytest.raises(KeyboardInterrupt):
        warmstart(tmp_path, required_texts=[TEXT], vocabulary_size=2300)
    assert (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / LAST_FILE).exists()


def test_the_command_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text(TEXT, encoding="utf-8")
    command = ["warmstart", "--required", str(notes), "-o", str(tmp_path / "out"), "--vocabulary-size", "500"]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stderr.startswith("Error: vocabulary size 500 is below the ")) == (1, True)
