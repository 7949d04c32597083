"""Distillation: soft labels against values worked by hand, rows without labels, teacher's files, teach then fit."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from convert.bundling import convert_to_ctranslate2
from convert.extras import ConversionOptions
from r2d_edge.label_scores import score_labels
from r2d_edge.task import CTAS_LEVELS, LabelSet
from tests.tiny_models import CHAT_TEMPLATE, write_tiny_bart, write_tiny_causal, write_tiny_t5
from train.answering import open_model
from train.checkpoint import load_for_training
from train.cli import main
from train.data import DatasetError, Example, read_dataset
from train.families import family_of
from train.losses import soft_label_loss
from train.methods import fit, trainer_of
from train.methods.joint import LabelledItem, labelled_items
from train.recipe import FitRecipe, RecipeError
from train.resume import RUN_FILE
from train.soft_labels import LabelDistribution
from train.stage1 import read_splits
from train.teach import raw_probabilities, teach
from train.trainer import begin_stage, training_arguments

ROOT = Path(__file__).parents[2]
CTAS = LabelSet(CTAS_LEVELS, "ordered")
TAUGHT = dict(zip(CTAS_LEVELS, (0.1, 0.6, 0.2, 0.06, 0.04), strict=True))
SHARED = ["urgent a", "urgent b", "urgent pain", "no", "yes"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_trainer(recipe: FitRecipe, source: str = "llm") -> Any:
    train, validation = read_splits(recipe)
    model, _, encoder = load_for_training(recipe)
    items = labelled_items(train, source, encoder, soft=recipe.soft_labels > 0)
    arguments = training_arguments(recipe, eval_strategy="no")
    trainer = trainer_of(recipe.method)(recipe, encoder, items, validation, model=model, args=arguments)
    trainer.state.max_steps = 100
    return trainer


def loss_of(trainer: Any, items: Sequence[LabelledItem]) -> torch.Tensor:
    loss: torch.Tensor = trainer.compute_loss(trainer.model, {"items": list(items)})
    return loss


@pytest.fixture
def soft_recipe(fit_recipe, rows: dict[str, Path]) -> Callable[..., FitRecipe]:
    """A recipe whose training rows all have the same teacher's distribution."""
    write(rows["train"], [{**row, "teacher_probabilities": TAUGHT} for row in lines(rows["train"])])

    def make(checkpoint: Path, **changes: Any) -> FitRecipe:
        settings = {"method": "sft", "soft_labels": 1.0, "dropout": 0.0, **changes}
        recipe: FitRecipe = fit_recipe(checkpoint, **settings)
        return recipe

    return make


def test_soft_label_loss_by_hand() -> None:
    """Student uniform over two labels; teacher 0.8 and 0.2: 0.8 ln 1.6 + 0.2 ln 0.4 = 0.19274 nats."""
    scores, teacher = torch.tensor([[3.0, 3.0]]), torch.tensor([[0.8, 0.2]])
    assert float(soft_label_loss(scores, teacher)) == pytest.approx(0.192745, abs=1e-6)
    # At T = 2 the teacher is 2/3 and 1/3 (its odds of 4 become 2): (2/3 ln 4/3 + 1/3 ln 2/3) · 2² = 0.226533.
    assert float(soft_label_loss(scores, teacher, 2.0)) == pytest.approx(0.226533, abs=1e-6)
    # Two rows add up, a certain teacher included: ln 2 more.
    both = soft_label_loss(torch.zeros(2, 2), torch.tensor([[0.8, 0.2], [1.0, 0.0]]))
    assert float(both) == pytest.approx(0.192745 + math.log(2), abs=1e-6)


def test_soft_label_loss_pulls_towards_the_teacher() -> None:
    """Its gradient is T · (student − teacher), both softened, and none where they agree."""
    scores = torch.zeros(1, 2, requires_grad=True)
    soft_label_loss(scores, torch.tensor([[0.8, 0.2]]), 2.0).backward()
    assert scores.grad is not None
    assert torch.allclose(scores.grad, torch.tensor([[2 * (0.5 - 2 / 3), 2 * (0.5 - 1 / 3)]]))
    agreed = torch.tensor([[0.8, 0.2]]).log().requires_grad_()
    soft_label_loss(agreed, torch.tensor([[0.8, 0.2]])).backward()
    assert agreed.grad is not None
    assert float(agreed.grad.abs().max()) < 1e-7


@pytest.mark.parametrize("labels", [list(CTAS_LEVELS), SHARED, ["urgent a", "urgent b", "urgent pain"]])
@pytest.mark.parametrize("shape", ["bart", "t5", "causal"])
def test_distribution_is_the_runtimes(labels: list[str], shape: str, fit_recipe, tmp_path: Path) -> None:
    """Labels that part at their first token, after a beginning that some share, and after one that all share."""
    tiny: dict[str, Any] = {"bart": write_tiny_bart, "t5": write_tiny_t5, "causal": write_tiny_causal}
    decoder_only = shape == "causal"
    chat: dict[str, Any] = {"template": CHAT_TEMPLATE, "lora_rank": 4} if decoder_only else {}
    model, _, encoder = load_for_training(fit_recipe(tiny[shape](tmp_path / "base"), labels=labels, **chat))
    prompts = [encoder.predict(text).ids for text in ("chest pain", "a small cut on the finger, it is fine")]
    expected = score_labels(_engine(model, encoder), encoder, prompts)
    family = family_of(model, decoder_only=decoder_only, end_id=encoder.end_id)
    batch = family.collate(prompts, [encoder.target_ids(label, 16) for label in (labels[0], labels[-1])])
    encoded: list[int] = []
    if not decoder_only:
        model.get_encoder().register_forward_hook(lambda *_: encoded.append(1))
    model.eval()
    with torch.no_grad():
        found = LabelDistribution(encoder).log_probabilities(*family.branching(model, batch))
    assert len(encoded) == (not decoder_only)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    assert not np.allclose(expected, expected.mean(), atol=0.1)  # else any distribution would do


def _engine(model: Any, encoder: Any) -> Any:
    from r2d_edge.engines.transformers import transformers_engine

    return transformers_engine(model, encoder)


def test_labels_of_the_same_tokens_are_refused(fit_recipe, tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    _, _, encoder = load_for_training(fit_recipe(base, labels=["naïve", "naive"]))
    with pytest.raises(RecipeError, match="same tokens"):
        LabelDistribution(encoder)


@pytest.mark.parametrize("labels", [list(CTAS_LEVELS), SHARED])
def test_loss_mixes_gold_and_teacher(labels: list[str], soft_recipe, rows: dict[str, Path], tmp_path: Path) -> None:
    renamed = dict(zip(CTAS_LEVELS, labels, strict=True))
    for part in ("train", "validation"):
        for row in (found := lines(rows[part])):
            row["label"] = renamed[row["label"]]
            if part == "train":
                row["teacher_probabilities"] = {renamed[label]: p for label, p in TAUGHT.items()}
        write(rows[part], found)
    base = write_tiny_bart(tmp_path / "base")
    gold, soft, mixed = (
        make_trainer(soft_recipe(base, labels=labels, soft_labels=weight, soft_temperature=2.0))
        for weight in (0.0, 1.0, 0.25)
    )
    items = list(mixed.train_dataset[:4])
    prompts = [item.prompt for item in items]
    scores = torch.tensor(score_labels(mixed.engine, mixed.encoder, prompts))
    divergence = float(soft_label_loss(scores, torch.tensor([list(TAUGHT.values())] * 4), 2.0)) / 4
    assert divergence > 0.1
    assert float(loss_of(soft, items).detach()) == pytest.approx(divergence, rel=1e-4)
    hard = float(loss_of(gold, items).detach())
    assert float(loss_of(mixed, items).detach()) == pytest.approx(0.75 * hard + 0.25 * divergence, rel=1e-4)


@pytest.mark.parametrize("labels_shared", [False, True])
def test_gradient_reaches_encoder_and_decoder(
    labels_shared: bool, soft_recipe, rows: dict[str, Path], tmp_path: Path
) -> None:
    labels = SHARED if labels_shared else list(CTAS_LEVELS)
    for part in ("train", "validation"):
        renamed = [{**row, "label": labels[CTAS.index(row["label"])]} for row in lines(rows[part])]
        taught = {"teacher_probabilities": dict(zip(labels, TAUGHT.values(), strict=True))}
        write(rows[part], [{**row, **taught} for row in renamed])
    trainer = make_trainer(soft_recipe(write_tiny_bart(tmp_path / "base"), labels=labels))
    loss_of(trainer, trainer.train_dataset[:4]).backward()
    for part in (trainer.model.get_encoder(), trainer.model.get_decoder()):
        gradient = part.layers[0].self_attn.v_proj.weight.grad
        assert gradient is not None
        assert float(gradient.abs().max()) > 1e-6


def test_rows_without_gold_learn_from_the_teacher_alone(soft_recipe, rows: dict[str, Path], tmp_path: Path) -> None:
    found = lines(rows["train"])
    for row in found[:2]:
        del row["label"]
    write(rows["train"], found)
    trainer = make_trainer(soft_recipe(write_tiny_bart(tmp_path / "base"), soft_labels=0.5))
    bare, gold = list(trainer.train_dataset[:2]), list(trainer.train_dataset[2:4])
    assert [item.label for item in bare] == ["emergent"] * 2  # the teacher's best stands in the prompts
    assert [item.is_gold for item in bare] == [False, False]
    # Whatever label is written where the gold one would stand: it has no weight.
    other = [replace(item, label_target=trainer.encoder.target_ids("non-urgent", 16)) for item in bare]
    assert float(loss_of(trainer, bare).detach()) == pytest.approx(float(loss_of(trainer, other).detach()), rel=1e-6)
    changed = [replace(item, label_target=trainer.encoder.target_ids("urgent", 16)) for item in gold]
    assert float(loss_of(trainer, gold).detach()) != pytest.approx(float(loss_of(trainer, changed).detach()), rel=1e-3)
    # A batch without the teacher has the gold labels' share alone.
    hard = make_trainer(soft_recipe(tmp_path / "base", train=trainer.recipe.train, soft_labels=0.0001))
    untaught = [replace(item, taught=[]) for item in gold]
    expected = float(loss_of(hard, untaught).detach()) / 0.9999
    assert float(loss_of(trainer, untaught).detach()) == pytest.approx(0.5 * expected, rel=1e-4)


def test_a_teacher_that_is_not_asked_for_changes_nothing(fit_recipe, rows: dict[str, Path], tmp_path: Path) -> None:
    """soft_labels = 0 trains bit for bit as on rows without a teacher."""
    base = write_tiny_bart(tmp_path / "base")
    plain = fit_recipe(base, output=tmp_path / "plain", epochs=1.0)
    fit(plain)
    write(rows["train"], [{**row, "teacher_probabilities": TAUGHT} for row in lines(rows["train"])])
    taught = replace(plain, output=tmp_path / "taught", soft_temperature=3.0)
    fit(taught)
    weights = [(recipe.output / "model.safetensors").read_bytes() for recipe in (plain, taught)]
    assert weights[0] == weights[1]
    soft = replace(plain, output=tmp_path / "soft", soft_labels=0.5)
    fit(soft)
    assert (soft.output / "model.safetensors").read_bytes() != weights[0]


def test_runs_begun_before_the_fields_go_on(fit_recipe, tmp_path: Path) -> None:
    recipe = fit_recipe(write_tiny_bart(tmp_path / "base"))
    begin_stage(recipe, resume=True)
    record = json.loads((recipe.output / RUN_FILE).read_text(encoding="utf-8"))
    younger = {"soft_labels", "soft_temperature", "adapter"}
    assert not younger & set(record)
    assert asdict(recipe).keys() - set(record) == {*younger, "output"}
    (recipe.output / "checkpoints").mkdir()
    begin_stage(recipe, resume=True)
    with pytest.raises(RecipeError, match="soft_labels"):
        begin_stage(replace(recipe, soft_labels=0.5), resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"soft_labels": 1.5}, "soft_labels must lie in 0..1, not 1.5"),
        ({"soft_labels": -0.1}, "soft_labels must lie in 0..1"),
        ({"soft_labels": 0.5, "soft_temperature": 0.0}, "soft_temperature must be above 0"),
        ({"soft_labels": 0.5, "labels": [], "label_kind": "open"}, "soft_labels need a list of labels"),
    ],
)
def test_recipes_that_cannot_be(changes: dict[str, Any], said: str, fit_recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        fit_recipe(tmp_path, **changes)


def test_a_decoder_only_model_learns_a_teachers_distribution(soft_recipe, tmp_path: Path) -> None:
    """All rows have the same one, whatever their labels: the student comes to say it."""
    recipe = soft_recipe(
        write_tiny_causal(tmp_path / "base"),
        template=CHAT_TEMPLATE,
        lora_rank=4,
        epochs=12.0,
        learning_rate=2e-2,
        evaluations=1,
    )
    fit(recipe)
    answer = open_model(str(recipe.output)).answer(["chest pain"], rationales=False)[0]
    assert answer.probabilities == pytest.approx(TAUGHT, abs=0.05)


@pytest.mark.parametrize("shape", ["bart", "causal"])
def test_a_process_without_rows_adds_nothing(shape: str, soft_recipe, tmp_path: Path) -> None:
    """Under several processes a batch may be all filler: rows with a prompt and nothing else."""
    tiny: dict[str, Any] = {"bart": write_tiny_bart, "causal": write_tiny_causal}
    chat = {"template": CHAT_TEMPLATE, "lora_rank": 4, "lora_dropout": 0.0} if shape == "causal" else {}
    trainer = make_trainer(soft_recipe(tiny[shape](tmp_path / "base"), soft_labels=0.5, **chat))
    items = [trainer.train_dataset[row] for row in range(4)]
    empty = LabelledItem(-1, "", "", [trainer.encoder.end_id], [], [], is_gold=False)
    loss = loss_of(trainer, [empty, empty])
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(loss_of(trainer, [*items, empty])) == pytest.approx(float(loss_of(trainer, items)), rel=1e-5)


def test_soft_labels_need_a_teachers_rows(fit_recipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no row has teacher_probabilities"):
        fit(fit_recipe(write_tiny_bart(tmp_path / "base"), method="sft", soft_labels=0.5))


def test_reading_rows_that_were_taught(tmp_path: Path) -> None:
    taught = {"id": "a", "text": "note a", "label": "urgent", "teacher_probabilities": TAUGHT}
    bare = {"id": "b", "text": "note b", "teacher_probabilities": TAUGHT}
    nothing = {"id": "c", "text": "note c"}
    path = write(tmp_path / "a.jsonl", [taught, bare])
    assert read_dataset(path, CTAS, unlabelled="taught") == [
        Example("a", "note a", "urgent", {}, TAUGHT),
        Example("b", "note b", "", {}, TAUGHT),
    ]
    with pytest.raises(DatasetError, match=r"label is missing or blank \(1\): b"):
        read_dataset(path, CTAS)
    path = write(tmp_path / "b.jsonl", [bare, nothing])
    with pytest.raises(DatasetError, match=r"label is missing or blank \(1\): c"):
        read_dataset(path, CTAS, unlabelled="taught")
    assert [row.best_label for row in read_dataset(path, CTAS, unlabelled="taken")] == ["emergent", ""]


@pytest.mark.parametrize(
    "wrong",
    [
        [0.5, 0.5],
        {"urgent": 1.0},
        {**TAUGHT, "urgent": "0.2"},
        {**TAUGHT, "urgent": 0.3},
        {**TAUGHT, "urgent": math.nan},
        {**TAUGHT, "resuscitation": -0.1, "urgent": 0.4},
        {**TAUGHT, "other": 0.0},
    ],
)
def test_distributions_that_are_none_are_refused(wrong: object, tmp_path: Path) -> None:
    row = {"id": "a", "text": "a note", "label": "urgent", "teacher_probabilities": wrong}
    with pytest.raises(DatasetError, match="teacher_probabilities") as refusal:
        read_dataset(write(tmp_path / "a.jsonl", [row]), CTAS)
    assert list(refusal.value.faults.values()) == [["a"]]


def test_calibration_is_undone() -> None:
    """Raw 0.8 and 0.2 at temperature 2 are 2/3 and 1/3."""
    assert raw_probabilities({"a": 2 / 3, "b": 1 / 3}, 2.0) == pytest.approx({"a": 0.8, "b": 0.2})
    assert raw_probabilities({"a": 1.0, "b": 0.0}, 2.0) == {"a": 1.0, "b": 0.0}


def test_a_teacher_answers_every_row(rows: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint and its calibrated bundle give one distribution; gold labels and rationales stay."""
    folder = write_tiny_bart(tmp_path / "teacher")
    (tmp_path / "calibration.json").write_text('{"temperature": 2.5}', encoding="utf-8")
    options = ConversionOptions(quantization="float32", calibration=tmp_path / "calibration.json")
    bundle = convert_to_ctranslate2(folder, tmp_path / "bundle", options).output
    bare = write(tmp_path / "bare.jsonl", [{"id": "x", "text": "a note"}, {"id": "y", "text": "12/3 ..."}])
    alien = write(tmp_path / "alien.jsonl", [{"id": "z", "text": "another note", "label": 3}])
    model = open_model(folder)
    done = teach(model, [rows["train"], bare], tmp_path / "out" / "taught.jsonl", unlabelled=[alien])
    found = {row["id"]: row for row in lines(tmp_path / "out" / "taught.jsonl")}
    assert list(found) == [*(row["id"] for row in lines(rows["train"])), "x", "y", "z"]
    assert (done.rows, done.labelled, done.unread) == (23, 20, 1)
    assert "teacher_probabilities" not in found["y"]
    assert found["y"]["rationales"] == {}
    assert "label" not in found["z"]
    expected = model.answer([row["text"] for row in found.values()], rationales=True)
    disagreed = 0
    for row, answer in zip(found.values(), expected, strict=True):
        assert row.get("teacher_probabilities", {}) == pytest.approx(dict(answer.probabilities), rel=1e-6)
        agreed = row.get("label", answer.label) == answer.label
        disagreed += not agreed
        assert row["rationales"].get("teacher") == ((answer.rationale or None) if agreed else None)
    assert done.disagreed == disagreed
    assert 0 < disagreed < 20  # both cases were there
    for row in lines(rows["train"]):
        kept = {source: text for source, text in found[row["id"]]["rationales"].items() if source != "teacher"}
        assert (found[row["id"]]["label"], kept) == (row["label"], row["rationales"])
    teach(open_model(bundle), [rows["train"]], tmp_path / "again.jsonl")
    for row in lines(tmp_path / "again.jsonl"):
        assert row["teacher_probabilities"] == pytest.approx(found[row["id"]]["teacher_probabilities"], rel=1e-3)


def test_ids_of_two_files_must_differ_and_nothing_is_written(rows: dict[str, Path], tmp_path: Path) -> None:
    model = open_model(write_tiny_bart(tmp_path / "teacher"))
    with pytest.raises(DatasetError, match="two files"):
        teach(model, [rows["train"], rows["train"]], tmp_path / "taught.jsonl")
    assert not list(tmp_path.glob("*taught*"))


@pytest.mark.parametrize("method", ["sft", "dss", "r2d", "r2d-c"])
def test_teach_then_fit(method: str, fit_recipe, rows: dict[str, Path], tmp_path: Path) -> None:
    """A student of one decoder layer learns a teacher's labels where no row has a gold one."""
    teacher = write_tiny_bart(tmp_path / "teacher")
    bare = write(tmp_path / "bare.jsonl", [{k: row[k] for k in ("id", "text")} for row in lines(rows["train"])])
    taught = tmp_path / "taught.jsonl"
    result = CliRunner().invoke(main, ["teach", str(teacher), "--data", str(bare), "-o", str(taught)])
    assert result.exit_code == 0, result.output
    # Whatever the tiny teacher says, a training part must hold every label.
    for index, row in enumerate(found := lines(taught)):
        best = CTAS_LEVELS[index % 5]
        row["teacher_probabilities"] = {label: 0.9 if label == best else 0.025 for label in CTAS_LEVELS}
        row["rationales"]["teacher"] = row["rationales"].get("teacher") or "a sprained ankle can wait"
    write(taught, found)
    recipe = fit_recipe(
        write_tiny_bart(tmp_path / "student", decoder_layers=1),
        method=method,
        train=[taught],
        validation={"tiny": rows["validation"]},
        sources=["teacher"],
        soft_labels=1.0,
        epochs=4.0,
        learning_rate=5e-3,
        dropout=0.0,
    )
    fit(recipe)
    log = json.loads((recipe.output / "history.json").read_text(encoding="utf-8"))["log"]
    losses = [entry["loss_soft_label"] for entry in log if "loss_soft_label" in entry]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    provenance = json.loads((recipe.output / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert (provenance["rows_taught"], provenance["rows_without_gold"]) == (20, 20)


def test_a_stage_1_reads_rows_without_labels(fit_recipe, rows: dict[str, Path], tmp_path: Path) -> None:
    found = [{**row, "teacher_probabilities": TAUGHT} for row in lines(rows["train"])]
    del found[0]["label"]
    write(rows["train"], found)
    base = write_tiny_bart(tmp_path / "base")
    recipe = fit_recipe(base, stage1_epochs=1.0, epochs=1.0, soft_labels=0.5)
    fit(recipe)
    assert (recipe.output / "model.safetensors").exists()
    with pytest.raises(DatasetError, match="label is missing"):
        fit(replace(recipe, soft_labels=0.0, output=tmp_path / "hard"))


def test_two_processes_give_the_result_of_one(fit_recipe, rows: dict[str, Path], tmp_path: Path) -> None:
    """Processes with different numbers of taught and gold rows, and labels that take the decoder twice."""
    for part in ("train", "validation"):
        # 18 rows, 4 a step: one process has no row in an epoch's last step.
        found = [{**row, "label": SHARED[CTAS.index(row["label"])]} for row in lines(rows[part])[:18]]
        for number, row in enumerate(found if part == "train" else []):
            if number % 3 != 1:
                row["teacher_probabilities"] = dict(zip(SHARED, TAUGHT.values(), strict=True))
            if number % 3 == 0:
                del row["label"]
        write(rows[part], found)
    base = write_tiny_bart(tmp_path / "base")
    settings = {"method": "sft", "labels": SHARED, "soft_labels": 0.5, "dropout": 0.0, "evaluations": 1}
    alone = fit_recipe(base, output=tmp_path / "alone", batch_size=4, **settings)
    fit(alone)
    pair = {
        **{
            key: getattr(alone, key)
            for key in (*settings, "max_input", "max_rationale", "epochs", "learning_rate", "log_steps", "bf16")
        },
        "checkpoint": base.as_posix(),
        "output": (tmp_path / "pair").as_posix(),
        "train": [rows["train"].as_posix()],
        "batch_size": 2,
    }
    typed = [f"--set={key}={json.dumps(value)}" for key, value in pair.items()]
    typed.append(f'--set=validation={{ tiny = "{rows["validation"].as_posix()}" }}')
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "train"]
    done = subprocess.run([*launcher, "fit", *typed], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = []
    for folder in (alone.output, tmp_path / "pair"):
        log = json.loads((folder / "history.json").read_text(encoding="utf-8"))["log"]
        logs.append([entry[part] for part in ("loss", "loss_soft_label") for entry in log if part in entry])
    assert len(logs[0]) == 20  # 5 steps an epoch, 2 epochs
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
