"""`python -m benchmarks.training_cost`: what Reason2Decide's label stage costs beside distilling step-by-step.

Both see the same batches of the CTAS notes, in turn, one thread, with the share of the model's own labels at its
greatest; what is compared is the processor time of whole optimizer steps.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import versions, write_report
from train.methods import METHODS

CORPUS = Path(__file__).parents[1] / "train" / "corpora" / "ctas_notes"


def trainer_for(method: str, checkpoint: Path, output: Path) -> Any:
    """A method's trainer over the CTAS notes, its schedule at the cap."""
    from r2d_edge.task import CTAS_LEVELS
    from train.checkpoint import load_for_training
    from train.methods import trainer_of
    from train.methods.joint import labelled_items
    from train.recipe import FitRecipe, build_recipe
    from train.stage1 import read_splits
    from train.trainer import training_arguments

    settings = {
        "method": method,
        "checkpoint": str(checkpoint),
        "output": str(output),
        "train": [str(CORPUS / "train.jsonl")],
        "validation": {"ctas": str(CORPUS / "validation.jsonl")},
        "labels": list(CTAS_LEVELS),
        "max_input": 384,
        "max_rationale": 128,
    }
    recipe = build_recipe(FitRecipe, settings, "benchmark")
    train, validation = read_splits(recipe)
    model, _, encoder = load_for_training(recipe)
    items = labelled_items(train, "llm", encoder)
    arguments = training_arguments(recipe, eval_strategy="no")
    trainer = trainer_of(method)(recipe, encoder, items, validation, model=model, args=arguments)
    # As `Trainer.train` does before its first step: without it nothing runs in bfloat16 but the model's own labels.
    trainer.model = trainer.accelerator.prepare_model(trainer.model)
    trainer.state.max_steps, trainer.state.global_step = 1000, 900
    trainer.create_optimizer()
    return trainer


def step_seconds(trainer: Any, items: list[Any]) -> float:
    """Processor seconds of one optimizer step on `items`."""
    started = time.process_time()
    batch = {"items": items}
    trainer.training_step(trainer.model, batch, trainer._get_num_items_in_batch([batch], trainer.args.device))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return time.process_time() - started


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--steps", default=20, show_default=True)
@click.option("--batch-size", default=16, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(checkpoint: Path, steps: int, batch_size: int, output: Path) -> None:
    """Times the methods' optimizer steps from CHECKPOINT, a base that `python -m train warmstart` made."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {method: trainer_for(method, checkpoint, Path(folder) / method) for method in METHODS}
        seconds: dict[str, list[float]] = {method: [] for method in METHODS}
        order = list(trainers["dss"]._get_train_sampler())
        for step in range(steps + 2):
            rows = order[step * batch_size : (step + 1) * batch_size]
            for method, trainer in trainers.items():
                taken = step_seconds(trainer, [trainer.train_dataset[row] for row in rows])
                if step >= 2:  # the first ones warm up
                    seconds[method].append(taken)
    ratios = {m: [a / b for a, b in zip(seconds[m], seconds["dss"], strict=True)] for m in METHODS}
    methods = {
        method: {
            "ms_per_example": round(1000 * statistics.median(seconds[method]) / batch_size, 1),
            "times_dss": round(statistics.median(ratios[method]), 2),
        }
        for method in METHODS
    }
    result = {
        "versions": versions(),
        "steps": steps,
        "batch_size": batch_size,
        "parameters": sum(p.numel() for p in trainers["dss"].model.parameters()),
        "methods": methods,
    }
    write_report(result, output)
    for method, figures in methods.items():
        click.echo(f"{method:6} {figures['ms_per_example']:8.1f} ms an example, {figures['times_dss']:.2f} x dss")


if __name__ == "__main__":
    main()
