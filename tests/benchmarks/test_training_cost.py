import json
from pathlib import Path

import torch
from click.testing import CliRunner

from benchmarks.training_cost import main, step_seconds, trainer_for
from tests.tiny_models import write_tiny_bart
from train.methods import METHODS


def test_every_method_is_timed_on_the_same_batches(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    output = tmp_path / "cost.json"
    base = write_tiny_bart(tmp_path / "base", max_position_embeddings=512)
    run = CliRunner().invoke(main, [str(base), "--steps", "2", "--batch-size", "2", "-o", str(output)])
    assert run.exit_code == 0, run.output
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report["methods"]) == set(METHODS)
    assert report["methods"]["dss"]["times_dss"] == 1
    assert 0 < report["methods"]["sft"]["times_dss"] < 1


def test_steps_compute_in_the_precision_of_a_training(tmp_path: Path) -> None:
    trainer = trainer_for("dss", write_tiny_bart(tmp_path / "base", max_position_embeddings=512), tmp_path / "run")
    seen = set()
    linear = next(module for module in trainer.model.modules() if isinstance(module, torch.nn.Linear))
    linear.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    step_seconds(trainer, [trainer.train_dataset[0]])
    assert seen == {torch.bfloat16 if trainer.args.bf16 else torch.float32}
