"""The command end to end, on tiny real checkpoints and a tiny real bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from r2d_edge.bundle import Decoding
from r2d_edge.casing import CASING, Caser
from r2d_edge.decide import load
from r2d_edge.report.rationale_metrics import bertscore_f1
from r2d_edge.task import CTAS_LEVELS, PROVENANCE_FILE, TASK_FILE, LabelSet, PromptEncoder, Task
from tests.cli.bundles import make_bundle
from tests.tiny_models import TEXTS, TINY_TASK, write_tiny_bart, write_tiny_causal, write_tiny_t5
from train.answering import CheckpointModel, answer_rows, open_model
from train.cli import main
from train.comparison import compare
from train.data import Example, read_dataset
from train.evaluate import evaluate, named_files, rounded, show, write_records
from train.warmstart import packaged_minilm

CTAS = LabelSet(CTAS_LEVELS, "ordered")
NOTES = [*TEXTS[1:9], "Short of breath."]
VARIED = Decoding(repetition_penalty=2.0, no_repeat_ngram=2)  # else the random models write one letter on and on


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_t5(tmp_path_factory.mktemp("evaluate") / "t5")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("evaluate-bundle"))


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def with_provenance(folder: Path, **recipe: object) -> Path:
    (folder / PROVENANCE_FILE).write_text(json.dumps({"recipe": recipe}), encoding="utf-8")
    return folder


def quoting_rows(path: Path, first: int = 1, **more: object) -> Path:
    """Training rows whose rationales are their notes word for word: their words are the vocabulary of facts."""
    rows = [
        {"id": f"{path.stem}-{n}", "text": text, "label": "urgent", "rationales": {"llm": text}, **more}
        for n, text in enumerate(TEXTS[first : first + 4] * 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def explain_by(folder: Path, prompt: str | None) -> None:
    """Makes a checkpoint one that learned this prompt for rationales."""
    task = Task.from_json(json.loads((folder / TASK_FILE).read_text(encoding="utf-8")))
    changed = replace(task, prompts=replace(task.prompts, explain=prompt))
    (folder / TASK_FILE).write_text(json.dumps(changed.to_json()), encoding="utf-8")


def test_a_checkpoint(checkpoint: Path, rows: dict[str, Path], tmp_path: Path, command: Callable[..., Result]) -> None:
    done = command(
        "evaluate", checkpoint, "--data", f"tiny={rows['validation']}", "--data", f"more={rows['train']}",
        "--train", rows["train"], "--source", "llm", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "out" / "evaluation.json")
    assert "macro-F1" in done.stderr
    assert "BERTScore" in done.stderr
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert set(report["sets"]) == {"tiny", "more"}
    found = report["sets"]["more"]
    records = lines(tmp_path / "out" / "more.jsonl")
    examples = read_dataset(rows["train"], CTAS)
    assert [record["id"] for record in records] == [example.id for example in examples]
    for record, example in zip(records, examples, strict=True):
        assert record["gold"] == example.label
        assert tuple(record["probabilities"]) == CTAS_LEVELS
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["label"] == max(CTAS_LEVELS, key=record["probabilities"].__getitem__)
        assert record["reference"] == example.rationales.get("llm")
        assert (record["bertscore_f1"] is None) == (record["reference"] is None)
        assert example.text not in json.dumps(record)
    assert found["rows"] == found["rationales"] == 20
    assert (found["references"], found["without_reference"]) == (19, 1)
    right = sum(record["label"] == record["gold"] for record in records) / 20
    assert found["accuracy"]["value"] == pytest.approx(right)
    assert found["accuracy"]["low"] <= right <= found["accuracy"]["high"]
    pairs = [(record["rationale"], record["reference"]) for record in records if record["reference"]]
    expected = bertscore_f1(*map(list, zip(*pairs, strict=True)), packaged_minilm()).mean()
    assert found["bertscore_f1"]["value"] == pytest.approx(expected, abs=1e-5)
    assert report["settings"]["bertscore"]["layer"] == 6
    assert report["settings"]["fact_vocabulary"] is not None
    assert report["temperature"] == 1
    assert found["data"]["sha256"]
    assert "unsupported_fact_share" in found


def test_the_tables_show_what_deciding_the_surest_rows_alone_would_get_wrong(
    checkpoint: Path, rows: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(checkpoint, {"tiny": rows["train"]}, tmp_path / "out", source="llm", rationales=False)
    found = report["sets"]["tiny"]["risk_coverage"]
    found["coverage_at_risk"][1]["coverage"] = 0.123
    show(report)
    shown = capsys.readouterr().err.splitlines()
    [head] = [line for line in shown if "AURC" in line]
    for title in ("AUGRC", "decided at 5 % errors", "decided at 10 % errors", "decided at 20 % errors"):
        assert title in head
    [line] = [line for line in shown if f"{found['aurc']:.3f}" in line and f"{found['augrc']:.3f}" in line]
    assert "12.3 %" in line
    del report["sets"]["tiny"]["risk_coverage"]  # as where labels are free text
    show(report)
    assert "AURC" not in capsys.readouterr().err


def test_empty_rationales_are_warned_of(
    checkpoint: Path, rows: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluate(checkpoint, {"tiny": rows["train"]}, tmp_path / "out", source="llm", bertscore=False)
    for empty, warned in ((1, False), (2, True)):
        report["sets"]["tiny"]["empty_rationales"] = empty
        show(report)
        assert ("tiny: 2 of 20 rationales are empty (10 %)" in capsys.readouterr().err) is warned


def test_what_is_recovered_is_the_label_of_the_rationale_alone(checkpoint: Path, rows: dict[str, Path]) -> None:
    model = open_model(checkpoint)
    examples = read_dataset(rows["validation"], CTAS)
    records = answer_rows(model, examples, "llm")
    asked = [record["rationale"] for record in records]
    assert all(asked)
    alone = [model.answer([text], rationales=False)[0].label for text in asked]
    assert [record["recovered"] for record in records] == alone
    assert records[0]["reference"] is records[0]["recovered_from_reference"] is None
    own = [record["reference"] for record in records[1:]]
    labels = [model.answer([text], rationales=False)[0].label for text in own]
    assert [record["recovered_from_reference"] for record in records[1:]] == labels


def test_batches_change_no_answer_but_its_speed(checkpoint: Path) -> None:
    alone, together = (
        CheckpointModel(checkpoint, batch_size=size, decoding=VARIED).answer(NOTES, rationales=True) for size in (1, 4)
    )
    for one, other in zip(alone, together, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert len({round(answer.probabilities["urgent"], 4) for answer in alone}) == len(NOTES)
    # Padding moves the last digits of a float, and with them a near tie of this random model.
    assert sum(a.rationale == b.rationale for a, b in zip(alone, together, strict=True)) >= len(NOTES) - 1
    assert len({answer.rationale for answer in alone}) > 3


def test_a_bundle_answers_as_the_runtime_does(bundle: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    report = evaluate(bundle, {"tiny": rows["validation"]}, tmp_path / "out", source="llm", bertscore=False)
    decider = load(bundle)
    for record, example in zip(
        lines(tmp_path / "out" / "tiny.jsonl"), read_dataset(rows["validation"], CTAS), strict=True
    ):
        decision = decider.decide(example.text)
        assert record["label"] == decision.label
        assert record["probabilities"] == pytest.approx(decision.probabilities, abs=1e-4)
        assert record["rationale"] == decision.rationale
    assert report["model"] == decider.bundle.label
    assert report["engine"]["engine"] == "ctranslate2"


def test_a_checkpoint_and_its_bundle_say_the_same(bundle: Path, rows: dict[str, Path]) -> None:
    """The bundle is float32 and uncased: rationales carry the casing that the conversion took along."""
    examples = read_dataset(rows["validation"], CTAS)
    full, small = (
        answer_rows(open_model(path, decoding=Decoding()), examples, "llm")
        for path in (bundle.parent / "checkpoint", bundle)
    )
    for one, other in zip(full, small, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
        assert one["rationale"] == other["rationale"]


def test_uncased_rationales_are_scored_as_a_user_reads_them(tmp_path: Path, rows: dict[str, Path]) -> None:
    folder = write_tiny_bart(tmp_path / "bart")
    texts = [example.text for example in read_dataset(rows["validation"], CTAS)]
    bare = [answer.rationale for answer in open_model(folder).answer(texts, rationales=True)]
    Caser.learn(TEXTS).save(folder / CASING)
    cased = [answer.rationale for answer in open_model(folder).answer(texts, rationales=True)]
    assert all(text == text.lower() for text in bare if text)
    assert cased != bare
    encoder = PromptEncoder.from_file(folder / "tokenizer.json", TINY_TASK)
    model = CheckpointModel(folder)
    prompt = encoder.explain(texts[0], model.answer(texts[:1], rationales=False)[0].label or "").ids
    ids = model._engine.generate([prompt], max_tokens=TINY_TASK.limits.rationale, decoding=Decoding())[0]
    assert cased[0] == Caser.load(folder / CASING).restore(encoder.tokens(ids), texts[0])


def test_a_decoder_only_checkpoint(tmp_path: Path, rows: dict[str, Path]) -> None:
    folder = write_tiny_causal(tmp_path / "causal")
    found = evaluate(folder, {"tiny": rows["validation"]}, tmp_path / "out", source="llm", bertscore=False)
    assert found["sets"]["tiny"]["rationales"] == 5
    assert found["sets"]["tiny"]["brier"]["value"] > 0


def test_free_text_labels(tmp_path: Path) -> None:
    folder = write_tiny_t5(tmp_path / "t5")
    task = Task(LabelSet((), "open"), limits=TINY_TASK.limits)
    (folder / TASK_FILE).write_text(json.dumps(task.to_json()), encoding="utf-8")
    said = open_model(folder).answer(list(TEXTS[1:4]), rationales=False)
    gold = [f" {said[0].label}".upper().strip(), "Furosemide", "Iron"]
    data = tmp_path / "open.jsonl"
    items = [
        {"id": str(n), "text": text, "label": label}
        for n, (text, label) in enumerate(zip(TEXTS[1:4], gold, strict=True))
    ]
    data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    found = evaluate(folder, {"open": data}, tmp_path / "out")["sets"]["open"]
    assert found["accuracy"]["value"] == pytest.approx(1 / 3)
    assert not {"ece", "brier", "by_label", "quadratic_kappa", "bleu"} & set(found)
    assert found["without_reference"] == 3
    assert "consistency" in found
    assert lines(tmp_path / "out" / "open.jsonl")[0]["probabilities"] == {}


def test_equal_runs_write_equal_files(checkpoint: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        evaluate(checkpoint, {"tiny": rows["train"]}, tmp_path / name, source="nurse", limit=6, bertscore=False)
        written.append([(tmp_path / name / file).read_bytes() for file in ("tiny.jsonl", "evaluation.json")])
    assert written[0] == written[1]


def test_a_limit_draws_rows_by_the_seed(checkpoint: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    drawn = {}
    for seed in (1, 2):
        evaluate(
            checkpoint, {"tiny": rows["train"]}, tmp_path / "out", source="llm", limit=5, rationales=False, seed=seed
        )
        drawn[seed] = [record["id"] for record in lines(tmp_path / "out" / "tiny.jsonl")]
    order = [example.id for example in read_dataset(rows["train"], CTAS)]
    for ids in drawn.values():
        assert len(ids) == 5
        assert ids == sorted(ids, key=order.index)
    assert drawn[1] != drawn[2]
    assert order[:5] not in drawn.values()


def test_label_figures_alone(checkpoint: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    report = evaluate(checkpoint, {"tiny": rows["validation"]}, tmp_path / "out", source="llm", rationales=False)
    assert not {"bleu", "bertscore_f1", "consistency", "rationales"} & set(report["sets"]["tiny"])
    assert report["settings"]["bertscore"] is None
    record = lines(tmp_path / "out" / "tiny.jsonl")[1]
    assert record["rationale"] is record["recovered"] is None


def test_a_model_that_learned_labels_alone_is_not_asked_to_explain(tmp_path: Path, rows: dict[str, Path]) -> None:
    folder = with_provenance(write_tiny_t5(tmp_path / "t5"), method="sft", sources=["llm"])
    explain_by(folder, None)
    report = evaluate(folder, {"tiny": rows["validation"]}, tmp_path / "out", bertscore=False)
    assert report["method"] == "sft"
    assert "rationales" not in report["sets"]["tiny"]
    with pytest.raises(ValueError, match="learned no rationales"):
        evaluate(folder, {"tiny": rows["validation"]}, tmp_path / "out", bertscore=False, rationales=True)


def test_step_by_step_is_asked_to_explain_without_a_label(tmp_path: Path) -> None:
    folder = write_tiny_t5(tmp_path / "t5")
    given = [answer.rationale for answer in CheckpointModel(folder, decoding=VARIED).answer(NOTES, rationales=True)]
    explain_by(folder, "explain: {text}")
    model = CheckpointModel(folder, decoding=VARIED)
    found = [answer.rationale for answer in model.answer(NOTES, rationales=True)]
    assert found != given
    prompts = [model._encoder.rationale(text).ids for text in NOTES]
    expected = model._engine.generate(prompts, max_tokens=TINY_TASK.limits.rationale, decoding=VARIED)
    same = sum(model._encoder.decode(ids).strip() == text for ids, text in zip(expected, found, strict=True))
    assert same >= len(NOTES) - 1


def test_decoding_can_be_chosen(checkpoint: Path, bundle: Path) -> None:
    for path in (checkpoint, bundle):
        plain, changed = (
            [answer.rationale for answer in open_model(path, decoding=decoding).answer(NOTES, rationales=True)]
            for decoding in (Decoding(), VARIED)
        )
        assert plain != changed


def test_whose_rationales(
    checkpoint: Path, rows: dict[str, Path], tmp_path: Path, command: Callable[..., Result]
) -> None:
    data = {"tiny": rows["validation"]}
    with pytest.raises(ValueError, match=r"has rationales of llm, nurse: choose one with --source"):
        evaluate(checkpoint, data, tmp_path / "out")
    done = command("evaluate", checkpoint, "--data", rows["validation"], "--source", "doctor", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "has no 'doctor' rationales; it has: llm, nurse" in done.stderr
    folder = with_provenance(write_tiny_t5(tmp_path / "t5"), sources=["nurse"])
    report = evaluate(folder, data, tmp_path / "out", bertscore=False)
    assert report["sets"]["tiny"]["source"] == "nurse"
    assert lines(tmp_path / "out" / "tiny.jsonl")[1]["reference"] == "emergent"


def test_what_is_wrong_is_said(rows: dict[str, Path], tmp_path: Path, command: Callable[..., Result]) -> None:
    absent = command("evaluate", tmp_path, "--data", rows["validation"], "-o", tmp_path / "out")
    assert (absent.exit_code, "manifest.json" in absent.stderr) == (1, True)
    for value, message in (("a/b={}", "names a file"), ("={}", "is not [NAME=]FILE"), ("x={}.no", "there is no file")):
        done = command("evaluate", tmp_path, "--data", value.format(rows["validation"]), "-o", tmp_path / "out")
        assert (done.exit_code, message in done.stderr) == (1, True)
    with pytest.raises(ValueError, match="given twice"):
        named_files([f"a={rows['train']}", f"a={rows['validation']}"])


def test_a_row_that_is_no_note_is_named(checkpoint: Path) -> None:
    wordless = Example("bad-1", "12 / 8 ...", "urgent", {})
    with pytest.raises(ValueError, match="1 rows hold no note that a model could read: bad-1"):
        answer_rows(open_model(checkpoint), [wordless], None)


def test_two_models_compared(
    checkpoint: Path, bundle: Path, rows: dict[str, Path], tmp_path: Path, command: Callable[..., Result]
) -> None:
    for name, model in (("a", checkpoint), ("b", bundle)):
        evaluate(
            model, {"tiny": rows["train"], name: rows["validation"]}, tmp_path / name, source="llm", bertscore=False
        )
    done = command("compare", tmp_path / "a", tmp_path / "b", "--resamples", "500")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert set(report["sets"]) == {"tiny"}
    found = report["sets"]["tiny"]
    assert {"macro_f1", "accuracy", "bleu", "brier", "consistency", "quadratic_kappa"} <= set(found)
    assert {name for name in found if name.startswith("unsupported")} == {"unsupported_number_share"}
    for figure in found.values():
        assert figure["value"] == pytest.approx(figure["first"] - figure["second"], abs=2e-6)
        assert figure["low"] <= figure["high"]
    assert "difference (95 %)" in done.stderr
    itself = command("compare", tmp_path / "a", tmp_path / "a", "-o", tmp_path / "same.json")
    assert itself.stdout.strip() == str(tmp_path / "same.json")
    same = json.loads((tmp_path / "same.json").read_text(encoding="utf-8"))["sets"]
    assert {
        figure[bound] for sets in same.values() for figure in sets.values() for bound in ("value", "low", "high")
    } == {0}


def test_unsupported_facts_are_compared_where_both_counted_them_by_one_vocabulary(
    checkpoint: Path, rows: dict[str, Path], tmp_path: Path
) -> None:
    words, others = quoting_rows(tmp_path / "words.jsonl"), quoting_rows(tmp_path / "others.jsonl", 3)
    for name, path in (("a", words), ("b", words), ("c", others)):
        evaluate(checkpoint, {"tiny": rows["train"]}, tmp_path / name, source="llm", train=[path], bertscore=False)
    report = json.loads((tmp_path / "a" / "evaluation.json").read_text(encoding="utf-8"))
    assert len(report["settings"]["fact_vocabulary_sha256"]) == 64

    def compared(second: str) -> set[str]:
        found = rounded(compare(tmp_path / "a", tmp_path / second, resamples=50))["sets"]["tiny"]
        for name, figure in found.items():
            assert figure["first"] == pytest.approx(report["sets"]["tiny"][name]["value"], abs=1e-6)
        return {name for name in found if name.startswith("unsupported")}

    terms = {"unsupported_term_share", "unsupported_fact_share", "unsupported_term_rate"}
    assert compared("b") == {"unsupported_number_share", *terms}
    assert compared("c") == {"unsupported_number_share"}
    older = lines(tmp_path / "b" / "tiny.jsonl")
    for record in older:
        for key in ("unsupported_numbers", "unsupported_terms", "vocabulary_words"):
            del record[key]
    write_records(older, tmp_path / "b" / "tiny.jsonl")
    assert compared("b") == set()


def test_rows_without_labels_teach_the_words_of_facts(checkpoint: Path, rows: dict[str, Path], tmp_path: Path) -> None:
    files = quoting_rows(tmp_path / "labelled.jsonl"), quoting_rows(tmp_path / "bare.jsonl", label=None)
    found = [
        evaluate(
            checkpoint, {"tiny": rows["validation"]}, tmp_path / "out", source="llm", train=[path], bertscore=False
        )
        for path in files
    ]
    assert found[0]["settings"]["fact_vocabulary_sha256"] == found[1]["settings"]["fact_vocabulary_sha256"]
    assert found[0]["settings"]["fact_vocabulary"] > 0
    assert found[0]["sets"] == found[1]["sets"]


def test_compare_says_what_is_missing(
    checkpoint: Path, rows: dict[str, Path], tmp_path: Path, command: Callable[..., Result]
) -> None:
    for name, data in (
        ("a", {"one": rows["train"]}),
        ("b", {"two": rows["train"]}),
        ("c", {"one": rows["validation"]}),
    ):
        evaluate(checkpoint, data, tmp_path / name, source="llm", rationales=False)
    assert "no set in common" in command("compare", tmp_path / "a", tmp_path / "b").stderr
    assert "not evaluated on the same rows" in command("compare", tmp_path / "a", tmp_path / "c").stderr
    assert "holds no evaluation.json" in command("compare", tmp_path / "a", tmp_path).stderr
