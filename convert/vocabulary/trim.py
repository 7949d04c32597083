"""From a checkpoint and a corpus to the same checkpoint with fewer tokens, in its place whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.checkpoint import Checkpoint, load_model, read_checkpoint
from convert.errors import ConversionError, ParityError
from convert.output import check_output, put_in_place, workspace
from convert.rewriting import (
    GENERATION,
    WEIGHTS,
    is_checkpoint,
    parameters,
    read_json,
    read_tensors,
    size_of,
    write_json,
    write_side_files,
    write_tensors,
)
from convert.vocabulary import network, pieces
from convert.vocabulary.corpus import Row, hold_out, prompts_of, read_corpus, sequences_of, unlimited
from convert.vocabulary.proof import LABEL_ROWS, PROBES, Computing, Reading, prove_counted, prove_network, prove_unseen
from r2d_edge.bundle import TOKENIZER
from r2d_edge.hashing import file_sha256
from r2d_edge.task import PromptEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
HEADING = "the vocabulary cannot be trimmed"


@dataclass(frozen=True)
class TrimResult:
    """A trimmed checkpoint in its place.

    Attributes:
        ids: rows of the embedding matrix, before and after.
        size: bytes of weights and tokenizer, before and after.
        parameters: numbers in the weights, before and after.
        counted: rows that were counted.
        reading: how notes that were not counted are read.
        computing: how the networks compare.
    """

    output: Path
    ids: tuple[int, int]
    size: tuple[int, int]
    parameters: tuple[int, int]
    counted: int
    reading: Reading
    computing: Computing

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        return {**asdict(self), "output": str(self.output)}


def trim_vocabulary(
    checkpoint_folder: Path,
    corpora: Sequence[Path],
    output: Path,
    *,
    task: Path | None = None,
    unseen: Path | None = None,
    keep_sentinels: bool = False,
    force: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> TrimResult:
    """Cuts a checkpoint's vocabulary to the tokens that a corpus uses and proves that the model stays the same.

    Every special token, every single character and every byte stays too, so that any text can still be written.
    What is and what is not equal afterwards stands in this package's docstring.

    Args:
        checkpoint_folder: a transformers checkpoint with safetensors and tokenizer.json.
        corpora: data sets in JSON Lines, or plain text with a note a line.
        output: the folder to write.
        task: labels, prompts and limits; default: the checkpoint's own r2d_task.json.
        unseen: notes that are not counted, for the proof; default: each corpus's last tenth, which is then not counted.
        keep_sentinels: keep T5's `<extra_id_0>` and so on, which only further pre-training needs.
        force: replace a checkpoint that stands at the output.
        progress: told of each step.

    Raises:
        ConversionError: with every reason why it cannot be done.
        ParityError: the result is not the checkpoint's equal. Nothing is written.
    """
    sources = [checkpoint_folder, *corpora, *([unseen] if unseen else [])]
    reasons = check_output(output, sources, what="checkpoint", replaceable=is_checkpoint, force=force)
    counted, held = _read_rows(corpora, unseen, reasons)
    checkpoint = None
    try:
        checkpoint = read_checkpoint(checkpoint_folder, task)
        spec = read_json(checkpoint_folder / TOKENIZER)
        _check_files(checkpoint, spec, reasons)
    except ConversionError as error:
        reasons += error.reasons
    if reasons or checkpoint is None:
        raise ConversionError(reasons, HEADING)

    progress(f"counting the tokens of {len(counted)} rows")
    used = _used(checkpoint, spec, counted)
    keep = pieces.choose(spec, used, keep_sentinels=keep_sentinels)
    new_of = {old: new for new, old in enumerate(keep)}
    with workspace(output) as work:
        draft = work / "checkpoint"
        draft.mkdir()
        progress(f"keeping {len(keep)} of {checkpoint.config.vocab_size} tokens")
        before, after = _write_weights(checkpoint, draft, keep)
        _write_settings(checkpoint, spec, draft, keep)
        facts = {
            "corpus": [_described(path) for path in corpora],
            "kept": len(keep),
            "removed": checkpoint.config.vocab_size - len(keep),
            "sentinels_kept": keep_sentinels,
        }
        write_side_files(checkpoint, draft, "trimmed", facts)
        _check_tokenizer(checkpoint_folder, draft, keep)

        progress(f"proving on {len(counted)} counted and {len(held)} other rows")
        whole = PromptEncoder.from_file(checkpoint_folder / TOKENIZER, unlimited(checkpoint.task))
        trimmed = PromptEncoder.from_file(draft / TOKENIZER, unlimited(checkpoint.task))
        prove_counted(whole, trimmed, new_of, counted)
        reading = prove_unseen(whole, trimmed, new_of, held)
        written = read_checkpoint(draft)
        computing = prove_network(
            (load_model(checkpoint), load_model(written)),
            (checkpoint.encoder, written.encoder),
            (checkpoint.start_id, written.start_id),
            keep,
            [*_spread(counted, PROBES), *_spread(held, PROBES)],
            _spread(held, LABEL_ROWS),
        )
        sizes = (
            size_of(checkpoint_folder, [*(path.name for path in checkpoint.weights), TOKENIZER]),
            size_of(draft, [WEIGHTS, TOKENIZER]),
        )
        put_in_place(draft, output, work)
    return TrimResult(
        output=output,
        ids=(checkpoint.config.vocab_size, len(keep)),
        size=sizes,
        parameters=(before, after),
        counted=len(counted),
        reading=reading,
        computing=computing,
    )


def _read_rows(corpora: Sequence[Path], unseen: Path | None, reasons: list[str]) -> tuple[list[Row], list[Row]]:
    """What is counted, and what is not and does not occur among it."""
    counted: list[Row] = []
    held: list[Row] = []
    failed = len(reasons)
    if not corpora:
        reasons.append("no corpus was named")
    for path in corpora:
        try:
            rows = read_corpus(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        kept, last = (rows, []) if unseen else hold_out(rows)
        counted += kept
        held += last
    if unseen:
        try:
            held = read_corpus(unseen)
        except ValueError as error:
            reasons.append(str(error))
    known = {row.text for row in counted}
    held = [row for row in held if row.text not in known]
    if len(reasons) == failed and not (counted and held):
        reasons.append("there are no notes to prove it on that were not counted: name some with --unseen")
    return counted, held


def _check_files(checkpoint: Checkpoint, spec: pieces.Spec, reasons: list[str]) -> None:
    """Adds every reason why this tokenizer, these tensors or these settings cannot be cut."""
    kind = spec["model"].get("type")
    if kind not in pieces.KINDS:
        reasons.append(f"a tokenizer of type {kind!r} cannot be trimmed; can be: {', '.join(pieces.KINDS)}")
    if spec["model"].get("dropout"):
        reasons.append("the tokenizer drops merges at random: set its dropout to null")
    tokens = dict(enumerate(checkpoint.vocabulary))
    for name in ("config.json", GENERATION):
        if (checkpoint.folder / name).is_file():
            network.check_config(read_json(checkpoint.folder / name), tokens, name, reasons)
    network.check_tensors(read_tensors(checkpoint.weights), checkpoint.config.vocab_size, reasons)


def _used(checkpoint: Checkpoint, spec: pieces.Spec, rows: Iterable[Row]) -> set[int]:
    """The ids of all that the rows, the task, the settings and the frame around a text use."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint.folder / TOKENIZER))
    encoder = PromptEncoder(tokenizer, unlimited(checkpoint.task))
    used = pieces.frame_ids(spec.get("post_processor"))
    for name in ("config.json", GENERATION):
        if (checkpoint.folder / name).is_file():
            used.update(*network.named_ids(read_json(checkpoint.folder / name)).values())
    used.update(*prompts_of(encoder))
    for row in rows:
        used.update(*sequences_of(encoder, row))
        for text in row.texts:
            used |= _read_by_the_way(tokenizer, spec, text)
    return used


def _read_by_the_way(tokenizer: Tokenizer, spec: pieces.Spec, text: str) -> set[int]:
    """The ids that a text is read through and that do not show: specials respelled later, words given up."""
    ids = set(tokenizer.encode(text, add_special_tokens=False).ids)
    if spec["model"]["type"] == "WordPiece" and tokenizer.token_to_id(spec["model"]["unk_token"]) in ids:
        ids |= pieces.on_the_way_to_unknown(tokenizer, spec, text)
    return ids


def _write_weights(checkpoint: Checkpoint, draft: Path, keep: Sequence[int]) -> tuple[int, int]:
    """Writes the tensors, reads them back and compares them bit for bit; returns the parameters before and after."""
    import torch

    old = read_tensors(checkpoint.weights)
    by_token = set(network.token_tensors(old))
    new = {name: network.cut(tensor, name, keep) if name in by_token else tensor for name, tensor in old.items()}
    write_tensors(draft, new)
    written = read_tensors([draft / WEIGHTS])
    unequal = sorted({name for name in new if name not in written or not torch.equal(written[name], new[name])})
    if unequal:
        raise ParityError("the weights that were written are not the checkpoint's", unequal[0], "none", nan, 0.0)
    return parameters(old), parameters(new)


def _write_settings(checkpoint: Checkpoint, spec: pieces.Spec, draft: Path, keep: list[int]) -> None:
    """Writes the tokenizer and all settings that name ids."""
    folder = checkpoint.folder
    new_of = {old: new for new, old in enumerate(keep)}
    text = json.dumps(pieces.trimmed(spec, keep), ensure_ascii=False, separators=(",", ":"))
    (draft / TOKENIZER).write_bytes(text.encode("utf-8"))
    config = read_json(folder / "config.json")
    for name in ("config.json", GENERATION):
        if (folder / name).is_file():
            write_json(draft / name, network.renumbered(read_json(folder / name), new_of))
    tokens = dict(enumerate(checkpoint.vocabulary))
    settings = read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else None
    write_json(draft / TOKENIZER_CONFIG, network.tokenizer_settings(settings, config, tokens, new_of))
    if (folder / SPECIAL_TOKENS).is_file():
        gone = {token for index, token in tokens.items() if index not in new_of}
        write_json(draft / SPECIAL_TOKENS, network.without_tokens(read_json(folder / SPECIAL_TOKENS), gone))


def _check_tokenizer(folder: Path, draft: Path, keep: Sequence[int]) -> None:
    """Whether every token has the number that its embedding has, for both libraries that read the file.

    Raises:
        ConversionError: it has not.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    old = Tokenizer.from_file(str(folder / TOKENIZER))
    wanted = {str(old.id_to_token(index)): number for number, index in enumerate(keep)}
    loaded = AutoTokenizer.from_pretrained(draft, local_files_only=True, trust_remote_code=False)
    for found in (Tokenizer.from_file(str(draft / TOKENIZER)).get_vocab(), loaded.get_vocab()):
        odd = sorted(token for token in wanted.keys() | found.keys() if wanted.get(token) != found.get(token))
        if odd:
            raise ConversionError([f"{len(odd)} tokens would be misnumbered, for one {odd[0]!r}"], HEADING)


def _spread(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows, evenly from the whole."""
    step = -(-len(rows) // most)
    return list(rows[::step])


def _described(path: Path) -> dict[str, str]:
    """A file by its last two names (never a machine's path) and its hash."""
    return {"file": "/".join(path.parts[-2:]), "sha256": file_sha256(path)}
