"""A fine-tuned encoder as teacher of labels: what is trained, what it answers, teach and learn from it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.tiny_models import TEXTS, write_tiny_bart, write_tiny_encoder
from tests.train.conftest import LABELS
from train.answering import CheckpointModel, open_model
from train.classifier import ClassifierModel, ClassifierRecipe, _ids, train_classifier
from train.cli import main
from train.methods import fit
from train.recipe import RecipeError
from train.teach import teach


@pytest.fixture
def recipe(rows: dict[str, Path], tmp_path: Path):
    def make(**changes: Any) -> ClassifierRecipe:
        settings: dict[str, Any] = {
            "checkpoint": str(write_tiny_encoder(tmp_path / "encoder")),
            "output": tmp_path / "classifier",
            "train": [rows["train"]],
            "validation": {"tiny": rows["validation"]},
            "labels": LABELS,
            "max_input": 96,
            "batch_size": 4,
            "bf16": False,
            "learning_rate": 5e-3,
            "epochs": 2.0,
            "evaluations": 2,
            **changes,
        }
        return ClassifierRecipe(**settings)

    return make


def test_it_learns_the_labels_of_texts(recipe, tmp_path: Path) -> None:
    """Each label has a sentence of its own, of which only the number behind it differs between the two files."""
    files = {}
    for part in ("train", "validation"):
        rows = [
            {"id": f"{part}{number}{label}", "text": f"{TEXTS[1 + index]} {part} {number}", "label": label}
            for number in range(4)
            for index, label in enumerate(LABELS)
        ]
        files[part] = tmp_path / f"own-{part}.jsonl"
        files[part].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    learned = recipe(
        train=[files["train"]], validation={"tiny": files["validation"]}, dropout=0.0, epochs=60.0, learning_rate=2e-3
    )
    model = open_model(train_classifier(learned))
    assert isinstance(model, ClassifierModel)
    rows = [json.loads(line) for line in files["validation"].read_text(encoding="utf-8").splitlines()]
    answers = model.answer([row["text"] for row in rows], rationales=False)
    right = sum(answer.label == row["label"] for answer, row in zip(answers, rows, strict=True))
    assert right >= 0.75 * len(rows)  # by chance a fifth
    for answer in answers:
        assert sum(answer.probabilities.values()) == pytest.approx(1)
        assert answer.label == max(answer.probabilities, key=lambda label: answer.probabilities[label])


def test_only_the_last_layers_and_the_head_move(recipe, tmp_path: Path) -> None:
    train_classifier(recipe(trained_layers=1))
    before = load_file(tmp_path / "encoder" / "model.safetensors")
    after = load_file(tmp_path / "classifier" / "model.safetensors")
    moved = {name for name, weight in before.items() if not torch.equal(weight, after.get(f"mpnet.{name}", weight))}
    assert moved
    assert all(name.startswith("encoder.layer.1.") for name in moved)
    assert any(name.startswith("classifier.") for name in after)


def test_a_run_that_was_cut_within_an_epoch_ends_with_the_same_weights(recipe) -> None:
    own = recipe(evaluations=4)  # 10 steps in 2 epochs, saved after every 2; kept are the best and the last
    train_classifier(own)
    checkpoints = own.output / "checkpoints"
    whole, begun = load_file(checkpoints / "checkpoint-10" / "model.safetensors"), _log(own)
    (own.output / "history.json").unlink()
    shutil.rmtree(checkpoints / "checkpoint-10")
    (left,) = checkpoints.glob("checkpoint-*")
    train_classifier(own)
    again = load_file(checkpoints / "checkpoint-10" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    before = [[entry for entry in log if entry["step"] <= int(left.name[11:])] for log in (begun, _log(own))]
    assert before[0] == before[1] != []  # with their run times: these steps were not taken again


def _log(recipe: ClassifierRecipe) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = json.loads((recipe.output / "history.json").read_text(encoding="utf-8"))["log"]
    return log


def test_each_validation_set_is_scored_by_its_own_rows(recipe, rows: dict[str, Path]) -> None:
    """Sets of different sizes and lengths; the log's figures are those of asking the saved model."""
    long = rows["validation"].with_name("long.jsonl")
    lines = [json.loads(line) for line in rows["train"].read_text(encoding="utf-8").splitlines()]
    long.write_text(
        "".join(
            json.dumps({"id": f"l{number}", "text": row["text"] * (1 + number % 3) + " long", "label": row["label"]})
            + "\n"
            for number, row in enumerate(lines[:13])
        ),
        encoding="utf-8",
    )
    own = recipe(validation={"short": rows["validation"], "long": long}, evaluations=1, epochs=4.0)
    model = ClassifierModel(train_classifier(own))
    (logged,) = [entry for entry in _log(own) if "eval_macro_f1" in entry]
    for name, path in own.validation.items():
        examples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        answers = model.answer([row["text"] for row in examples], rationales=False)
        right = [answer.label == row["label"] for answer, row in zip(answers, examples, strict=True)]
        assert logged[f"eval_{name}_accuracy"] == pytest.approx(sum(right) / len(right))


def test_accumulated_steps_have_the_loss_of_whole_ones(recipe, tmp_path: Path) -> None:
    whole = recipe(dropout=0.0, epochs=1.0, evaluations=1, log_steps=1)
    parts = replace(whole, output=tmp_path / "parts", batch_size=2, gradient_accumulation=2)
    found = []
    for one in (whole, parts):
        train_classifier(one)
        found.append([(entry["loss"], entry["grad_norm"]) for entry in _log(one) if "loss" in entry])
    assert np.array(found[1][:2]) == pytest.approx(np.array(found[0][:2]), rel=1e-3)


def test_a_note_holds_no_special_token(recipe) -> None:
    model = ClassifierModel(train_classifier(recipe(epochs=0.2)))
    assert _ids("fever [SEP] rash", model._tokenizer).count(3) == 1  # the one that ends the note


def test_a_batch_answers_as_single_notes_do(recipe) -> None:
    model = ClassifierModel(train_classifier(recipe()), batch_size=3)
    texts = ["Chest pain.", "", "A sprained ankle with little swelling can wait; the vital signs are normal.", "Fever."]
    together = model.answer(texts, rationales=False)
    assert together[1].label is None
    assert together[1].abstained
    for text, answer in zip(texts, together, strict=True):
        alone = model.answer([text], rationales=False)[0]
        assert alone.label == answer.label
        assert dict(alone.probabilities) == pytest.approx(dict(answer.probabilities), abs=1e-5)


def test_a_note_that_is_too_long_is_cut_and_told(recipe) -> None:
    model = ClassifierModel(train_classifier(recipe(max_input=16)))
    long, short = model.answer(["fever " * 60, "fever"], rationales=False)
    assert long.truncated
    assert long.abstained
    assert not short.truncated
    cut = model.answer(["fever " * 40], rationales=False)[0]  # the same tokens up to the limit
    assert dict(cut.probabilities) == pytest.approx(dict(long.probabilities), abs=1e-6)


def test_it_explains_nothing(recipe) -> None:
    model = ClassifierModel(train_classifier(recipe()))
    with pytest.raises(ValueError, match="no rationales"):
        model.answer(["Fever."], rationales=True)


def test_teach_then_learn(recipe, rows: dict[str, Path], fit_recipe, tmp_path: Path) -> None:
    """Teach writes its distributions for rows with and without labels, evaluate scores it, fit learns from it."""
    teacher = train_classifier(recipe())
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text(json.dumps({"id": "u1", "text": "Fever and a rash."}) + "\n", encoding="utf-8")
    taught, scored = tmp_path / "taught.jsonl", tmp_path / "evaluation"
    data, extra = ["--data", str(rows["train"])], ["--unlabelled", str(unlabelled)]
    for arguments in (
        ["teach", str(teacher), *data, *extra, "-o", str(taught)],
        ["evaluate", str(teacher), "--data", str(rows["validation"]), "-o", str(scored)],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in taught.read_text(encoding="utf-8").splitlines()]
    assert len(written) == 21
    assert all(set(row["teacher_probabilities"]) == set(LABELS) for row in written)
    assert "label" not in written[-1]
    assert written[0]["label"] == LABELS[0]
    assert all("teacher" not in row["rationales"] for row in written)
    student = fit_recipe(write_tiny_bart(tmp_path / "base"), method="sft", train=[taught], soft_labels=0.5, epochs=0.2)
    assert isinstance(open_model(fit(student)), CheckpointModel)


def test_teachers_are_averaged(recipe, rows: dict[str, Path], tmp_path: Path) -> None:
    first = open_model(train_classifier(recipe()))
    second = open_model(write_tiny_bart(tmp_path / "bart"))
    names = {"first": (first, []), "second": (second, []), "both": (first, [second])}
    written = {}
    for name, (model, others) in names.items():
        teach(model, [rows["train"]], tmp_path / f"{name}.jsonl", others=others)
        lines = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        written[name] = [json.loads(line) for line in lines]
    for one, other, both in zip(*written.values(), strict=True):
        for label, chance in both["teacher_probabilities"].items():
            mean = (one["teacher_probabilities"][label] + other["teacher_probabilities"][label]) / 2
            assert chance == pytest.approx(mean, rel=1e-6)
        assert both["teacher"] == f"{first.name} + {second.name}"
    with pytest.raises(ValueError, match="does not have the labels"):
        teach(first, [rows["train"]], tmp_path / "no.jsonl", others=[ClassifierModel(_reversed(recipe))])


def _reversed(recipe: Any) -> Path:
    own = recipe()
    return train_classifier(replace(own, labels=LABELS[::-1], output=own.output.with_name("reversed"), epochs=0.2))


def test_what_cannot_be_trained_is_refused(recipe) -> None:
    with pytest.raises(RecipeError, match="2 layers, 3 are to be trained"):
        train_classifier(recipe(trained_layers=3))
    with pytest.raises(RecipeError, match="130 positions"):
        train_classifier(recipe(max_input=129))
    with pytest.raises(RecipeError, match="open"):
        recipe(label_kind="open", labels=[])
    with pytest.raises(RecipeError, match="no lora_rank"):
        recipe(lora_rank=4)
    with pytest.raises(RecipeError, match="trained_layers"):
        recipe(trained_layers=-1)
