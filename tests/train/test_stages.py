"""Both stages on real tiny models: what is learned, and what a killed run resumes."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from r2d_edge.task import PROVENANCE_FILE
from tests.tiny_models import write_tiny_bart, write_tiny_t5
from tests.train.test_methods import make_trainer
from train.batching import LengthBucketedSampler
from train.checkpoint import load_for_training
from train.methods import fit
from train.stage1 import rationale_items, read_splits, train_stage1
from train.trainer import SECONDS_FILE, StageTrainer, last_checkpoint

ROOT = Path(__file__).parents[2]


def _history(output: Path, key: str) -> dict[int, float]:
    newest = max((output / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    return {entry["step"]: entry[key] for entry in state["log_history"] if key in entry}


def _log(output: Path) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = json.loads((output / "history.json").read_text(encoding="utf-8"))["log"]
    return log


@pytest.mark.parametrize("shape", ["bart", "t5 tied", "t5 untied"])
def test_stage1_learns(shape: str, stage1_recipe, tmp_path: Path) -> None:
    if shape == "bart":
        base = write_tiny_bart(tmp_path / "base")
    else:
        base = write_tiny_t5(tmp_path / "base", tied=shape == "t5 tied", gated=shape == "t5 untied")
    recipe = stage1_recipe(base, epochs=6.0, learning_rate=5e-3)
    train_stage1(recipe)
    losses = _history(recipe.output, "eval_loss")
    assert losses[max(losses)] < losses[min(losses)] - 0.5
    assert json.loads((recipe.output / "r2d_provenance.json").read_text())["method"] == "stage 1"


def test_stage1_counts_missing_rationales(stage1_recipe, tmp_path: Path) -> None:
    recipe = stage1_recipe(write_tiny_bart(tmp_path / "base"))
    train, _ = read_splits(recipe)
    _, _, encoder = load_for_training(recipe)
    assert len(train) == 20
    assert len(rationale_items(train, ["llm", "nurse"], encoder)) == 2 * 19  # one row has none


def test_r2d_learns_and_selects_late(fit_recipe, tmp_path: Path) -> None:
    recipe = fit_recipe(write_tiny_bart(tmp_path / "base"), epochs=6.0, learning_rate=5e-3)
    fit(recipe)
    provenance = json.loads((recipe.output / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["steps"] == 30
    assert provenance["best_step"] >= 0.65 * 30
    assert "tiny_macro_f1" in provenance["validation_metrics"]
    losses = _history(recipe.output, "loss_rationale")
    assert losses[max(losses)] < losses[min(losses)]
    assert (recipe.output / "casing.json").exists()


def test_resumed_run_continues(fit_recipe, tmp_path: Path) -> None:
    """A run cut at step 6 of 10 and resumed equals the run that was never cut, step for step."""
    base = write_tiny_bart(tmp_path / "base")
    whole = fit_recipe(base, output=tmp_path / "whole", patience=0)
    fit(whole)
    cut = fit_recipe(base, output=tmp_path / "cut", patience=0)
    fit(cut, stop_after=6)
    assert max(_history(cut.output, "loss")) == 6
    fit(cut)
    for key in ("alpha", "predicted_share"):
        assert _history(cut.output, key) == _history(whole.output, key)
    resumed, straight = _history(cut.output, "loss"), _history(whole.output, "loss")
    assert resumed.keys() == straight.keys()
    assert all(resumed[step] == pytest.approx(straight[step], rel=1e-4) for step in straight)


def test_a_run_that_is_cut_between_two_evaluations_loses_little(
    fit_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evaluations in 10 steps, saved every other step after each: cut in step 5, it goes on from step 4."""
    base = write_tiny_bart(tmp_path / "base")
    settings = {"evaluations": 2, "save_steps": 2, "patience": 0}
    whole, cut = (fit_recipe(base, output=tmp_path / name, **settings) for name in ("whole", "cut"))
    fit(whole)
    original, saved, cut_at = StageTrainer.training_step, [], 4

    def step(trainer: StageTrainer, *arguments: Any, **more: Any) -> torch.Tensor:
        saved[:] = sorted(path.name for path in (cut.output / "checkpoints").glob("checkpoint-*"))
        if trainer.state.global_step == cut_at:
            raise _Cut
        return original(trainer, *arguments, **more)

    monkeypatch.setattr(StageTrainer, "training_step", step)
    for last in (4, 7):
        with pytest.raises(_Cut):
            fit(cut)
        cut_at += 4
        assert last_checkpoint(cut) == str(cut.output / "checkpoints" / f"checkpoint-{last}")
        assert len(saved) <= 2
    fit(cut)
    for key in ("loss", "eval_macro_f1", "alpha", "predicted_share"):
        found, expected = ({e["step"]: e[key] for e in _log(run.output) if key in e} for run in (cut, whole))
        assert found.keys() == expected.keys()
        assert all(found[step] == pytest.approx(expected[step], rel=1e-4) for step in expected)
    weights, theirs = (load_file(recipe.output / "model.safetensors") for recipe in (cut, whole))
    assert all(torch.allclose(weights[name], value, atol=1e-5) for name, value in theirs.items())


def test_the_best_checkpoints_figures_are_not_logged_as_the_last_steps(fit_recipe, tmp_path: Path) -> None:
    # A rate of next to nothing: the first evaluation, at step 2, stays the best.
    recipe = fit_recipe(write_tiny_bart(tmp_path / "base"), method="sft", learning_rate=1e-12, patience=0)
    fit(recipe)
    evaluations = [entry for entry in _log(recipe.output) if "eval_macro_f1" in entry]
    assert [entry["step"] for entry in evaluations] == [2, 4, 6, 8, 10]
    provenance = json.loads((recipe.output / PROVENANCE_FILE).read_text(encoding="utf-8"))
    best = next(entry for entry in evaluations if entry["step"] == provenance["best_step"])
    for name, value in provenance["validation_metrics"].items():
        assert value == pytest.approx(best[f"eval_{name}"], abs=5e-5)
    assert set(provenance["validation_metrics"]) == {"macro_f1", "tiny_macro_f1", "tiny_accuracy"}


def _seconds(output: Path) -> float:
    return json.loads((output / PROVENANCE_FILE).read_text(encoding="utf-8"))["seconds"]


@pytest.mark.parametrize("stage", ["stage 1", "labels"])
def test_seconds_are_those_of_all_processes(stage: str, fit_recipe, stage1_recipe, tmp_path: Path) -> None:
    """A cut run counts up to its last checkpoint, whatever was lost after that."""
    make, train = (stage1_recipe, train_stage1) if stage == "stage 1" else (fit_recipe, fit)
    recipe = make(write_tiny_bart(tmp_path / "base"), save_steps=2)
    started = time.monotonic()
    train(recipe, stop_after=6)
    first = time.monotonic() - started
    kept = Path(last_checkpoint(recipe) or "") / SECONDS_FILE
    assert 0 < json.loads(kept.read_text(encoding="utf-8"))["seconds"] < first
    kept.write_text('{"seconds": 5000}', encoding="utf-8")
    train(recipe, stop_after=8)
    assert last_checkpoint(recipe) == str(recipe.output / "checkpoints" / "checkpoint-8")
    started = time.monotonic()
    train(recipe)
    assert 5000 <= _seconds(recipe.output) <= 5000 + first + 2 * (time.monotonic() - started) + 1


def test_a_checkpoint_of_an_earlier_version_has_no_seconds(fit_recipe, tmp_path: Path) -> None:
    recipe = fit_recipe(write_tiny_bart(tmp_path / "base"), method="sft")
    fit(recipe, stop_after=6)
    (Path(last_checkpoint(recipe) or "") / SECONDS_FILE).unlink()
    fit(recipe)
    assert _seconds(recipe.output) < 60


class _Cut(BaseException):
    """A kill between the end of training and its result."""


def _cut(*_: Any, **__: Any) -> None:
    raise _Cut


@pytest.mark.parametrize(
    ("method", "settings", "steps"),
    [
        # A rate of next to nothing: the first evaluation, at step 2, stays the best.
        ("sft", {"learning_rate": 1e-12, "patience": 1}, 4),
        ("sft", {"learning_rate": 1e-12, "patience": 0}, 10),
        # Half an epoch over, where the Trainer by itself would take another step.
        ("r2d-c", {"epochs": 1.5, "patience": 0}, 8),
        ("r2d", {"lora_rank": 4, "learning_rate": 1e-2, "patience": 0}, 10),
    ],
)
def test_a_run_that_was_over_when_it_was_cut_is_only_saved(
    method: str, settings: dict[str, Any], steps: int, fit_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_tiny_bart(tmp_path / "base")
    whole, cut = (fit_recipe(base, method=method, output=tmp_path / name, **settings) for name in ("whole", "cut"))
    fit(whole)
    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "save_result", _cut)
        with pytest.raises(_Cut):
            fit(cut)
    assert not (cut.output / "model.safetensors").exists()
    kept = Path(last_checkpoint(cut) or "") / SECONDS_FILE
    kept.write_text('{"seconds": 5000}', encoding="utf-8")
    monkeypatch.setattr(StageTrainer, "training_step", _cut)
    fit(cut)
    provenance, expected = (
        json.loads((recipe.output / PROVENANCE_FILE).read_text(encoding="utf-8")) for recipe in (cut, whole)
    )
    assert provenance["steps"] == expected["steps"] == steps
    assert provenance["best_step"] == expected["best_step"]
    assert provenance["validation_metrics"] == expected["validation_metrics"]
    assert 5000 <= provenance["seconds"] < 5060
    weights, theirs = (load_file(recipe.output / "model.safetensors") for recipe in (cut, whole))
    for name, value in theirs.items():
        assert torch.allclose(weights[name], value, atol=1e-5), name
    assert (cut.output / "history.json").exists()


def test_a_stage1_that_was_over_when_it_was_cut_is_only_saved(
    stage1_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = stage1_recipe(write_tiny_bart(tmp_path / "base"), epochs=1.5)
    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "save_result", _cut)
        with pytest.raises(_Cut):
            train_stage1(recipe)
    last = load_file(Path(last_checkpoint(recipe) or "") / "model.safetensors")
    monkeypatch.setattr(StageTrainer, "training_step", _cut)
    train_stage1(recipe)
    saved = load_file(recipe.output / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in last.items())
    # The Trainer saves the last step before it evaluates it.
    evaluated = [entry["step"] for entry in _log(recipe.output) if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert evaluated[-1] == json.loads((recipe.output / PROVENANCE_FILE).read_text(encoding="utf-8"))["steps"]


def _command(recipe, **overrides: object) -> list[str]:
    """`train fit` for a recipe of the fixtures, as it is typed."""
    settings = {
        "checkpoint": recipe.checkpoint,
        "output": recipe.output.as_posix(),
        "train": [recipe.train[0].as_posix()],
        "labels": recipe.labels,
        "max_input": 96,
        "max_rationale": 32,
        "bf16": False,
        "stage1_epochs": 0,
        **overrides,
    }
    parts = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    parts.append(f'validation={{ tiny = "{recipe.validation["tiny"].as_posix()}" }}')
    return ["-m", "train", "fit", *(part for setting in parts for part in ("--set", setting))]


def test_killed_run_resumes(fit_recipe, tmp_path: Path) -> None:
    """SIGKILL at whatever moment after the second checkpoint; the resumed run equals an uncut one."""
    base = write_tiny_bart(tmp_path / "base")
    settings = {
        "epochs": 20.0,
        "evaluations": 20,
        "patience": 0,
        "batch_size": 4,
        "log_steps": 1,
        "learning_rate": 1e-3,
    }
    killed = fit_recipe(base, output=tmp_path / "killed", **settings)
    process = subprocess.Popen([sys.executable, *_command(killed, **settings)], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (killed.output / "checkpoints" / "checkpoint-10" / "trainer_state.json").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed.output / "model.safetensors").exists()
    fit(killed)
    whole = fit_recipe(base, output=tmp_path / "whole", **settings)
    fit(whole)
    for key in ("alpha", "predicted_share"):
        assert _history(killed.output, key) == _history(whole.output, key)
    resumed, straight = _history(killed.output, "loss"), _history(whole.output, "loss")
    assert list(resumed) == list(range(1, 101))
    assert all(resumed[step] == pytest.approx(straight[step], rel=1e-3) for step in straight)


def test_a_half_written_checkpoint_is_passed_over(fit_recipe, tmp_path: Path) -> None:
    recipe = fit_recipe(tmp_path)
    assert last_checkpoint(recipe) is None
    for step, state in ((9, '{"global_step": 9}'), (12, '{"global_st'), (15, None)):
        folder = recipe.output / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state, encoding="utf-8")
    assert last_checkpoint(recipe) == str(recipe.output / "checkpoints" / "checkpoint-9")


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("r2d", 18),  # of an epoch's last step, one process has two rows and the other none
        ("r2d-c", 19),  # one has two, the other one
    ],
)
def test_two_processes_give_the_result_of_one(method: str, count: int, fit_recipe, tmp_path: Path) -> None:
    """Under torchrun with two gloo processes, the losses of each global batch are those of one process.

    Most rows have no rationale, so that the processes hold different numbers of targets and take different
    numbers of forward passes; those that have one make five targets for stage 1, one of them in a step of its own.
    """
    base = write_tiny_bart(tmp_path / "base")
    # The cycle draws noise, which differs from process to process: it is left out.
    settings = {
        "method": method,
        "dropout": 0.0,
        "cycle_weight": 0.0,
        "epochs": 2.0,
        "stage1_epochs": 1.0,
        "evaluations": 2,
        "patience": 0,
    }
    alone = fit_recipe(base, output=tmp_path / "alone", batch_size=4, **settings)
    lines = [json.loads(line) for line in alone.train[0].read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        line["rationales"] = line["rationales"] if number % 4 == 1 else {}
    alone.train[0].write_text("".join(json.dumps(line) + "\n" for line in lines[:count]), encoding="utf-8")
    fit(alone)
    pair = fit_recipe(base, output=tmp_path / "pair", **settings)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, *_command(pair, batch_size=2, learning_rate=1e-3, log_steps=1, **settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for parts, steps, suffix in ((("loss", "loss_label"), 10, ""), (("loss",), 2, "-stage1")):
        folders = [recipe.output.with_name(recipe.output.name + suffix) for recipe in (alone, pair)]
        logs = [_log(folder) for folder in folders]
        for part in parts:
            found, expected = ([entry[part] for entry in log if part in entry] for log in (logs[1], logs[0]))
            assert len(expected) == steps
            assert found == pytest.approx(expected, rel=1e-3)
        weights, theirs = (load_file(folder / "model.safetensors") for folder in (folders[1], folders[0]))
        for name, value in theirs.items():
            assert torch.allclose(weights[name], value, atol=1e-3), name


def test_the_sampler_is_told_its_epoch_however_it_is_wrapped(fit_recipe, tmp_path: Path) -> None:
    """Resumed in the middle of an epoch among several processes, nothing else reaches the sampler."""
    trainer = make_trainer(fit_recipe(write_tiny_bart(tmp_path / "base")), steps=10)
    sampler = trainer._get_train_sampler()
    expected = LengthBucketedSampler(trainer.lengths, trainer.args.train_batch_size, trainer.args.seed)
    for epoch, of in ((None, 0), (1.0, 1), (2.6, 2)):
        trainer.state.epoch = epoch
        trainer.callback_handler.on_epoch_begin(trainer.args, trainer.state, trainer.control)
        expected.set_epoch(of)
        assert list(sampler) == list(expected)
