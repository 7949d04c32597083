"""A student with fewer layers, each begun as one of its teacher's, for distillation to finish.

Layers are taken whole and everything else is the teacher's, as in DistilBERT (Sanh et al. 2019, arXiv
1910.01108) and in "shrink and fine-tune" (Shleifer and Rush 2020, "Pre-trained Summarization Distillation",
arXiv 2010.13002), who take them spread as far apart as can be, the first and the last among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.checkpoint import DECODER_ONLY, Checkpoint, load_model, read_checkpoint
from convert.errors import ConversionError, ParityError
from convert.golden import sample_rows
from convert.output import check_output, put_in_place, workspace
from convert.rewriting import (
    GENERATION,
    WEIGHTS,
    is_checkpoint,
    next_logits,
    parameters,
    read_json,
    read_tensors,
    size_of,
    write_json,
    write_side_files,
    write_tensors,
)
from r2d_edge.bundle import TOKENIZER

if TYPE_CHECKING:
    import torch

BOUND = 1e-3  # nats; both compute the same in float32
HEADING = "a shallow student cannot be made"
_SIDE_FILES = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", GENERATION)
_RELATIVE = "relative_attention_bias.weight"  # T5's first layer holds it for all
_PROOF_ROWS = 4
_ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Stack:
    """One of a network's stacks of layers.

    Attributes:
        prefix: what the names of its layers' tensors begin with.
        setting: where the configuration says how many layers it has.
    """

    prefix: str
    setting: str


_T5 = {
    "encoder": Stack("encoder.block.", "num_layers"),
    "decoder": Stack("decoder.block.", "num_decoder_layers"),
}
_BART = {
    "encoder": Stack("model.encoder.layers.", "encoder_layers"),
    "decoder": Stack("model.decoder.layers.", "decoder_layers"),
}
_CAUSAL = {"decoder": Stack("model.layers.", "num_hidden_layers")}
STACKS: Mapping[str, Mapping[str, Stack]] = {
    "t5": _T5,
    "mt5": _T5,
    "bart": _BART,
    **dict.fromkeys(DECODER_ONLY, _CAUSAL),
}


@dataclass(frozen=True)
class ShallowResult:
    """A student in its place, which must be trained before it is of use.

    Attributes:
        decoder: the teacher's decoder layers that it has.
        encoder: the same of the encoder; None for a decoder-only model.
        parameters: numbers in the weights, the teacher's and the student's.
        size: bytes of the weights, the teacher's and the student's.
        measured: the greatest difference from the teacher with its other layers left out, in nats.
    """

    output: Path
    decoder: tuple[int, ...]
    encoder: tuple[int, ...] | None
    parameters: tuple[int, int]
    size: tuple[int, int]
    measured: float

    def to_json(self) -> dict[str, Any]:
        """For a pipe."""
        return {**asdict(self), "output": str(self.output), "needs_training": True}


def spread(layers: int, wanted: int) -> tuple[int, ...]:
    """Which of `layers` a student of `wanted` layers has: evenly spread, the first and the last included.

    Six of twelve are 0, 2, 4, 7, 9, 11, as in both papers' code; a single one is the first.

    Raises:
        ValueError: there are not so many.
    """
    if not 1 <= wanted <= layers:
        raise ValueError(f"{wanted} layers cannot be taken from {layers}")
    if wanted == 1:
        return (0,)
    gaps = wanted - 1
    return tuple((2 * place * (layers - 1) + gaps) // (2 * gaps) for place in range(wanted))  # rounded, halves up


def make_shallow(
    checkpoint_folder: Path,
    output: Path,
    *,
    decoder_layers: int | None = None,
    encoder_layers: int | None = None,
    decoder_kept: Sequence[int] | None = None,
    encoder_kept: Sequence[int] | None = None,
    task: Path | None = None,
    force: bool = False,
    progress: Callable[[str], None] = lambda step: None,
) -> ShallowResult:
    """Writes a student that has some of a checkpoint's layers.

    Proven: what was written holds the teacher's tensors bit for bit, and computes what the teacher computes when its
    other layers are left out (with none left out: what the teacher computes).

    Args:
        checkpoint_folder: the teacher: a transformers checkpoint with safetensors and tokenizer.json.
        output: the folder to write.
        decoder_layers: how many decoder layers (of a decoder-only model: layers) the student has, see `spread`;
            default: all.
        encoder_layers: the same of the encoder.
        decoder_kept: which ones, instead of how many; counted from 0, ascending.
        encoder_kept: the same of the encoder.
        task: labels, prompts and limits; default: the checkpoint's own r2d_task.json.
        force: replace a checkpoint that stands at the output.
        progress: told of each step.

    Raises:
        ConversionError: with every reason why it cannot be made.
        ParityError: the student does not compute what it should. Nothing is written.
    """
    reasons = check_output(output, [checkpoint_folder], what="checkpoint", replaceable=is_checkpoint, force=force)
    checkpoint = None
    kept: dict[str, tuple[int, ...]] = {}
    try:
        checkpoint = read_checkpoint(checkpoint_folder, task)
        stacks = STACKS[checkpoint.model_type]
        asked = {"decoder": (decoder_layers, decoder_kept), "encoder": (encoder_layers, encoder_kept)}
        for side, (count, named) in asked.items():
            if side in stacks:
                kept[side] = _chosen(side, getattr(checkpoint.config, stacks[side].setting), count, named, reasons)
            elif count is not None or named is not None:
                reasons.append(f"{checkpoint.model_type} has no {side}")
    except ConversionError as error:
        reasons += error.reasons
    if reasons or checkpoint is None:
        raise ConversionError(reasons, HEADING)

    with workspace(output) as work:
        draft = work / "checkpoint"
        draft.mkdir()
        progress(", ".join(f"{side} layers {', '.join(map(str, layers))}" for side, layers in kept.items()))
        teacher = read_tensors(checkpoint.weights)
        student = _rename(teacher, stacks, kept)
        write_tensors(draft, student)
        _check_written(draft, student)
        write_json(draft / "config.json", _settings(checkpoint, stacks, kept))
        for name in _SIDE_FILES:
            if (checkpoint_folder / name).is_file():
                (draft / name).write_bytes((checkpoint_folder / name).read_bytes())
        write_side_files(checkpoint, draft, "shallow", {f"{side}_layers": list(kept[side]) for side in kept})
        progress("comparing with the teacher without its other layers")
        measured = _prove(checkpoint, draft, stacks, kept)
        sizes = (size_of(checkpoint_folder, [path.name for path in checkpoint.weights]), size_of(draft, [WEIGHTS]))
        put_in_place(draft, output, work)
    return ShallowResult(
        output=output,
        decoder=kept["decoder"],
        encoder=kept.get("encoder"),
        parameters=(parameters(teacher), parameters(student)),
        size=sizes,
        measured=measured,
    )


def _chosen(
    side: str, layers: int, count: int | None, named: Sequence[int] | None, reasons: list[str]
) -> tuple[int, ...]:
    """The layers to keep of one stack; adds a reason where they cannot be told."""
    if named is None:
        try:
            return spread(layers, layers if count is None else count)
        except ValueError as error:
            reasons.append(f"{side}: {error}")
            return ()
    chosen = tuple(named)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= layers:
        listed = ", ".join(map(str, chosen)) or "none"
        reasons.append(f"{side}: layers to keep are ascending numbers from 0 to {layers - 1}, not {listed}")
    elif count is not None and count != len(chosen):
        reasons.append(f"{side}: {count} layers are asked for and {len(chosen)} named")
    return chosen


def _rename(
    tensors: Mapping[str, torch.Tensor], stacks: Mapping[str, Stack], kept: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """The student's tensors by name: those of the kept layers, renumbered, and all that belongs to no layer."""
    student = {}
    for name, tensor in tensors.items():
        side = next((side for side, stack in stacks.items() if name.startswith(stack.prefix)), None)
        if side is None:
            student[name] = tensor
            continue
        number, rest = name.removeprefix(stacks[side].prefix).split(".", 1)
        if rest.endswith(_RELATIVE):
            student[name] = tensor  # whichever layer comes first, the first layer has it
        elif int(number) in kept[side]:
            student[f"{stacks[side].prefix}{kept[side].index(int(number))}.{rest}"] = tensor
    return student


def _check_written(draft: Path, student: Mapping[str, torch.Tensor]) -> None:
    import torch

    written = read_tensors([draft / WEIGHTS])
    unequal = [name for name in student if name not in written or not torch.equal(written[name], student[name])]
    if unequal or len(written) != len(student):
        raise ParityError("the weights that were written are not the teacher's", "tensors", "none", float("nan"), 0.0)


def _settings(
    checkpoint: Checkpoint, stacks: Mapping[str, Stack], kept: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The configuration with the student's numbers of layers."""
    config = read_json(checkpoint.folder / "config.json")
    for side, stack in stacks.items():
        config[stack.setting] = len(kept[side])
    if "num_hidden_layers" in config:  # BART says the encoder's once more
        config["num_hidden_layers"] = len(kept.get("encoder", kept["decoder"]))
    kinds = getattr(checkpoint.config, "layer_types", None)
    if kinds:
        config["layer_types"] = [kinds[layer] for layer in kept["decoder"]]
    return config


def _prove(
    checkpoint: Checkpoint, draft: Path, stacks: Mapping[str, Stack], kept: Mapping[str, tuple[int, ...]]
) -> float:
    """Runs the student beside the teacher without its other layers; returns their greatest difference in nats.

    Raises:
        ParityError: it is beyond `BOUND`, or not a number.
    """
    teacher = load_model(checkpoint)
    for side, stack in stacks.items():
        _leave_out(teacher, stack, kept[side])
    written = read_checkpoint(draft)
    student = load_model(written)
    worst, worst_row = 0.0, "none"
    for row in sample_rows()[:_PROOF_ROWS]:
        prompt = written.encoder.predict(row.text).ids
        answer = written.encoder.text_ids(row.text)[:_ANSWER_TOKENS]  # any answer serves: both are given the same
        expected, got = (
            next_logits(model, checkpoint.start_id, prompt, answer).log_softmax(-1) for model in (teacher, student)
        )
        difference = float((expected - got).abs().max())
        if not difference <= worst:  # so written that a NaN is the worst
            worst, worst_row = difference, row.id
    if not worst <= BOUND:
        unequal = "the student does not compute what the teacher does without its other layers"
        raise ParityError(unequal, "next-token log-probabilities", worst_row, worst, BOUND)
    return float(f"{worst:.4g}")


def _leave_out(model: Any, stack: Stack, kept: Sequence[int]) -> None:
    """Takes the other layers out of a loaded model."""
    import torch

    parent_name, _, list_name = stack.prefix.removesuffix(".").rpartition(".")
    parent = model.get_submodule(parent_name)
    layers = getattr(parent, list_name)
    if hasattr(layers[0], "layer"):  # T5: the first layer has the relative positions
        first, new_first = layers[0].layer[0].SelfAttention, layers[kept[0]].layer[0].SelfAttention
        new_first.relative_attention_bias = first.relative_attention_bias
        new_first.has_relative_attention_bias = True
    setattr(parent, list_name, torch.nn.ModuleList([layers[number] for number in kept]))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[number] for number in kept]
    setattr(model.config, stack.setting, len(kept))
