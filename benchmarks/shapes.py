"""T5-small, -base and -large by shape: random weights under a vocabulary of T5's size, made here, no download.

How long a network takes does not depend on what its weights are, so a random one of the right shape times as
the published one would; what it writes means nothing, and nothing here measures that. The tokenizer is trained
on the CTAS notes and filled up to T5's 32,000 pieces with words that they do not hold, so that files, memory and
the unneeded part of the vocabulary are of T5's size.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r2d_edge.task import CTAS_LEVELS, TASK_FILE, LabelSet, Limits, Task

MAX_INPUT = 512
SEED = 13
TRAINED_PIECES = 8_000
PIECES = 32_000
SENTINELS = 100
SPARE_ROWS = 28
ROWS = PIECES + SENTINELS + SPARE_ROWS
SPECIALS = ("<pad>", "</s>", "<unk>")
_BLANK = "\u2581"  # how SentencePiece writes the blank before a word


@dataclass(frozen=True)
class Shape:
    """What sets the published T5 v1.0 models apart (Raffel et al., JMLR 2020, section 3.7.1)."""

    d_model: int
    d_ff: int
    layers: int
    heads: int


SHAPES = {
    "t5-small": Shape(d_model=512, d_ff=2048, layers=6, heads=8),
    "t5-base": Shape(d_model=768, d_ff=3072, layers=12, heads=12),
    "t5-large": Shape(d_model=1024, d_ff=4096, layers=24, heads=16),
}


def make_checkpoint(folder: Path, shape: Shape, texts: Sequence[str], *, tokens: int, rows: int = ROWS) -> None:
    """Writes a random T5 checkpoint with tokenizer and task.

    Special tokens are embedded as zeros and so never the likeliest: greedy rationales have `tokens` tokens that a
    reader sees, neither more nor fewer, on every engine and with its ordinary settings.

    Args:
        folder: where to; is made.
        shape: of the network.
        texts: what the tokenizer is trained on.
        tokens: the task's limit of a rationale.
        rows: of the embedding; fewer for tests, with as many fewer fillers.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    folder.mkdir(parents=True)
    write_tokenizer(folder, texts, pieces=rows - SENTINELS - SPARE_ROWS, trained=min(TRAINED_PIECES, rows // 2))
    torch.manual_seed(SEED)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=rows,
            d_model=shape.d_model,
            d_kv=64,
            d_ff=shape.d_ff,
            num_layers=shape.layers,
            num_heads=shape.heads,
            feed_forward_proj="relu",
            tie_word_embeddings=True,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=SPECIALS.index("</s>"),
        )
    )
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[: len(SPECIALS)] = 0
        embeddings[rows - SPARE_ROWS - SENTINELS :] = 0
    model.eval().save_pretrained(folder)
    task = Task(LabelSet(CTAS_LEVELS, "ordered"), limits=Limits(input=MAX_INPUT, label=16, rationale=tokens))
    (folder / TASK_FILE).write_text(json.dumps(task.to_json(), indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, texts: Sequence[str], *, pieces: int, trained: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json: a Unigram vocabulary, fillers, T5's special tokens.

    Args:
        folder: where to.
        texts: what the first `trained` pieces are learned from.
        pieces: how many in all, special tokens included, sentinels not.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=trained, special_tokens=list(SPECIALS), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    unlikely = min(score for _, score in vocabulary) - 10
    taken = {piece for piece, _ in vocabulary}
    fillers = (word for word in _words() if word not in taken)
    vocabulary += [(next(fillers), unlikely) for _ in range(pieces - len(vocabulary))]
    tokenizer.model = models.Unigram([tuple(entry) for entry in vocabulary], unk_id=SPECIALS.index("<unk>"))
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in [*SPECIALS, *sentinels]])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_INPUT,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _words() -> Iterator[str]:
    """Words of made-up syllables, none twice, the same each time."""
    random_ = random.Random(SEED)
    seen = set()
    while True:
        syllables = ["".join(random_.choices("bdfgklmnprstvz") + random_.choices("aeiouy")) for _ in range(4)]
        word = _BLANK + "".join(syllables)
        if word not in seen:
            seen.add(word)
            yield word
