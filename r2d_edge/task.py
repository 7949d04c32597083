"""The Reason2Decide contract: prompts, label sets, and text as tokens.

Prompts follow Hasan et al. (LREC 2026, arXiv 2512.20074) as their authors use them. The note is
always tokenized by itself, with no special token parsed in it, and the task words are put around it
as tokens, so nothing a note says can leave its place in the prompt.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What training writes beside a checkpoint's weights for whoever converts it.
TASK_FILE = "r2d_task.json"
PROVENANCE_FILE = "r2d_provenance.json"

LabelKind = Literal["ordered", "plain", "open"]

CTAS_LEVELS = ("resuscitation", "emergent", "urgent", "less urgent", "non-urgent")


@dataclass(frozen=True)
class LabelSet:
    """The labels of a task.

    `ordered` sets run from the most to the least severe; `plain` sets have no order; an `open` set
    has no list, its labels are free text.

    Raises:
        ValueError: labels repeat, are blank or differ only in case, or do not fit the kind.
    """

    labels: tuple[str, ...]
    kind: LabelKind = "plain"

    def __post_init__(self) -> None:
        if self.kind not in get_args(LabelKind):
            raise ValueError(f"label kind must be one of {get_args(LabelKind)}, not {self.kind!r}")
        if self.kind == "open":
            if self.labels:
                raise ValueError("an open label set has no list of labels")
            return
        if len(self.labels) < 2:
            raise ValueError(f"a label set needs two labels or more, not {list(self.labels)}")
        if any(label != label.strip() or not label for label in self.labels):
            raise ValueError(f"labels must not be blank or padded with blanks: {list(self.labels)}")
        if len({label.casefold() for label in self.labels}) < len(self.labels):
            raise ValueError(f"labels must differ in more than case: {list(self.labels)}")

    def index(self, label: str) -> int:
        """The position of `label` (0 is the most severe of an ordered set).

        Raises:
            ValueError: the label is not in the set.
        """
        try:
            return self.labels.index(label)
        except ValueError:
            raise ValueError(f"label {label!r} is not one of {list(self.labels)}") from None


@dataclass(frozen=True)
class Prompts:
    """Prompt templates; `{text}` stands last, so that only a note's end can be cut.

    `explain` is as the model learned it: with the label, without it (distilling step-by-step), or None for a
    model that writes no rationales.
    """

    rationale: str = "explain: {text}"  # stage 1
    predict: str = "predict: {text}"  # stage 2 and inference: the label
    explain: str | None = "given label: {label}, explain: {text}"  # stage 2 and inference: the rationale

    def __post_init__(self) -> None:
        for name, template in asdict(self).items():
            if template is None and name == "explain":
                continue
            if not template.endswith("{text}") or template.count("{text}") != 1:
                raise ValueError(f"prompt {name!r} must end in its only {{text}}: {template!r}")
            if template.count("{label}") > (name == "explain"):
                raise ValueError(f"prompt {name!r} has a wrong number of {{label}}: {template!r}")


@dataclass(frozen=True)
class Template:
    """What stands around a prompt for a decoder-only model; the answer follows it.

    These are our words, so special tokens in them count as such; a note's never do.

    Attributes:
        before: stands before the prompt.
        after: stands between the prompt and the answer.
        end: the token that closes an answer.
    """

    before: str
    after: str
    end: str


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens. `input` counts the whole prompt, specials included."""

    input: int = 1024
    label: int = 16
    rationale: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"limit {name!r} must be a positive integer, not {value!r}")


@dataclass(frozen=True)
class Task:
    """All that training, conversion and the runtime must agree on.

    `template` is None for an encoder-decoder, which needs none.
    """

    labels: LabelSet
    prompts: Prompts = field(default_factory=Prompts)
    limits: Limits = field(default_factory=Limits)
    template: Template | None = None

    @property
    def explains(self) -> bool:
        """Whether the model writes rationales."""
        return self.prompts.explain is not None

    def to_json(self) -> dict[str, Any]:
        """The task as JSON-ready data."""
        return {
            "labels": list(self.labels.labels),
            "label_kind": self.labels.kind,
            "prompts": asdict(self.prompts),
            "limits": asdict(self.limits),
            **({"template": asdict(self.template)} if self.template is not None else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Task:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        try:
            return cls(
                labels=LabelSet(tuple(data["labels"]), data["label_kind"]),
                prompts=Prompts(**data["prompts"]),
                limits=Limits(**data["limits"]),
                template=Template(**data["template"]) if "template" in data else None,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"task description is incomplete or has unknown fields: {error}") from None


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for an encoder.

    `dropped` counts the note's tokens that did not fit; 0 means the whole note was read.
    """

    ids: list[int]
    dropped: int = 0


class PromptEncoder:
    """Turns notes and labels into token ids and rationales back into text.

    Args:
        tokenizer: a tokenizers.Tokenizer; its special tokens frame the prompt as its own
            post-processor would.
        task: whose prompts and limits are used.
    """

    def __init__(self, tokenizer: Tokenizer, task: Task) -> None:
        self.task = task
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.special_ids = frozenset(
            index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._head, self._tail, self.end_id = _frame(tokenizer, task.template)
        # From here on the tokenizer sees notes: what looks like a special token is plain text.
        tokenizer.encode_special_tokens = True
        self._gap = self._gap_of(tokenizer)
        self._label_ids: dict[str, list[int]] = {}

    @classmethod
    def from_file(cls, path: Path, task: Task) -> PromptEncoder:
        """Loads a tokenizer.json."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(path)), task)

    @staticmethod
    def _gap_of(tokenizer: Tokenizer) -> str:
        """What a note must start with so that 'explain:' + note tokenizes like one text."""

        def ids(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        whole = ids("explain: note")
        return "" if whole == ids("explain:") + ids("note") else " "

    def text_ids(self, text: str) -> list[int]:
        """The ids of plain text, in which no special id can occur.

        A SentencePiece vocabulary holds '</s>' and its like as pieces, and its normalizer can make
        them out of look-alikes: what still comes out special is spelled character by character. Decimal
        digits of any script (full-width, Arabic-Indic) are read as 0 to 9.

        Raises:
            ValueError: the text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("the text holds a lone surrogate: it is not valid Unicode") from None
        if not text.isascii():
            text = _plain_digits(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self.special_ids.isdisjoint(encoding.ids):
            return list(encoding.ids)
        ids: list[int] = []
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if index not in self.special_ids or stop - start <= 1:
                ids.append(index)  # a lone character without a piece stays the unknown token
                continue
            for character in text[start:stop]:
                ids += self._tokenizer.encode(character, add_special_tokens=False).ids
        return ids

    def label_ids(self, label: str) -> list[int]:
        """The ids of a label as the decoder writes it, without the end token."""
        if label not in self._label_ids:
            self._label_ids[label] = self.text_ids(label)
        return self._label_ids[label]

    def predict(self, text: str) -> Prompt:
        """The prompt that asks for the label."""
        return self._fill(self.task.prompts.predict, text)

    def explain(self, text: str, label: str) -> Prompt:
        """The prompt that asks for the rationale of a given label; stage 1's where the model learned none."""
        return self._fill(self.task.prompts.explain or self.task.prompts.rationale, text, label)

    def rationale(self, text: str) -> Prompt:
        """The prompt of stage 1: a rationale with no label given."""
        return self._fill(self.task.prompts.rationale, text)

    def predict_head(self) -> list[int]:
        """The ids that stand before a note in the label prompt."""
        return self._before(self.task.prompts.predict)

    def target_ids(self, text: str, limit: int) -> list[int]:
        """A decoder target: at most `limit` ids, the end token included even when cut."""
        return [*self.text_ids(text)[: limit - 1], self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(self._tokenizer.decode([index for index in ids if index not in self.special_ids]))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's own strings for ids (what engines that speak in tokens want)."""
        return [self._tokenizer.id_to_token(index) or "" for index in ids]

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of the vocabulary's own strings, special tokens left out."""
        found = (self._tokenizer.token_to_id(token) for token in tokens)
        return [index for index in found if index is not None and index not in self.special_ids]

    def _fill(self, template: str, text: str, label: str = "") -> Prompt:
        head = self._before(template, label)
        room = self.task.limits.input - len(head) - len(self._tail)
        if room < 1:
            raise ValueError(f"an input limit of {self.task.limits.input} tokens leaves no room for a note")
        note = self.text_ids(self._gap + text)
        return Prompt(head + note[:room] + self._tail, max(0, len(note) - room))

    def _before(self, template: str, label: str = "") -> list[int]:
        return self._head + self.text_ids(template.removesuffix("{text}").replace("{label}", label).rstrip())


def _plain_digits(text: str) -> str:
    """The text with each decimal digit as one of 0 to 9; as long as before."""
    return "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)


def _frame(tokenizer: Tokenizer, template: Template | None) -> tuple[list[int], list[int], int]:
    """The ids before and after a prompt, and the id that ends an answer."""
    if template is not None:
        end = tokenizer.token_to_id(template.end)
        if end is None:
            raise ValueError(f"the template's end {template.end!r} is not a token of this vocabulary")
        before, after = (tokenizer.encode(s, add_special_tokens=False).ids for s in (template.before, template.after))
        return before, after, end
    framed = tokenizer.encode("a")
    inner = [position for position, special in enumerate(framed.special_tokens_mask) if not special]
    head, tail = framed.ids[: inner[0]], framed.ids[inner[-1] + 1 :]
    if not tail:
        raise ValueError("the tokenizer ends a text with no special token: a decoder-only model needs a template")
    return head, tail, tail[-1]
