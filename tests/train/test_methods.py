"""Each method on real tiny models: its losses, its prompts, what it trains, and that it can be exported."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from convert.bundling import convert_to_ctranslate2
from convert.extras import ConversionOptions
from r2d_edge.decide import load
from tests.tiny_models import CHAT_TEMPLATE, write_tiny_bart, write_tiny_causal, write_tiny_t5
from train.checkpoint import load_for_training, load_model
from train.methods import fit, trainer_of
from train.methods.joint import LabelledItem, LabelStageTrainer, labelled_items
from train.recipe import FitRecipe, RecipeError
from train.stage1 import read_splits
from train.trainer import is_finished, training_arguments


def make_trainer(recipe: FitRecipe, steps: int) -> Any:
    train, validation = read_splits(recipe)
    model, _, encoder = load_for_training(recipe)
    items = labelled_items(train, "llm", encoder)
    arguments = training_arguments(recipe, eval_strategy="no")
    trainer = trainer_of(recipe.method)(recipe, encoder, items, validation, model=model, args=arguments)
    trainer.state.max_steps = steps
    return trainer


def loss_at(trainer: LabelStageTrainer, step: int, items: Sequence[LabelledItem]) -> float:
    trainer.state.global_step = step
    return float(trainer.compute_loss(trainer.model, {"items": list(items)}).detach())


def explained(trainer: LabelStageTrainer, count: int = 4) -> list[LabelledItem]:
    return [item for item in trainer.train_dataset if item.rationale][:count]


@pytest.mark.parametrize("method", ["sft", "dss", "r2d", "r2d-c"])
@pytest.mark.parametrize("shape", ["bart", "t5"])
def test_every_method_learns_and_exports(method: str, shape: str, fit_recipe, tmp_path: Path) -> None:
    if shape == "bart":
        base = write_tiny_bart(tmp_path / "base")
    else:
        base = write_tiny_t5(tmp_path / "base", tied=False, gated=True)
    recipe = fit_recipe(base, method=method, stage1_epochs=1.0, epochs=4.0, learning_rate=5e-3)
    fit(recipe)
    log = json.loads((recipe.output / "history.json").read_text(encoding="utf-8"))["log"]
    losses = [entry["loss_label"] for entry in log if "loss_label" in entry]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    assert (recipe.output.with_name("fit-stage1") / "model.safetensors").exists() == (method in ("r2d", "r2d-c"))
    assert json.loads((recipe.output / "r2d_provenance.json").read_text(encoding="utf-8"))["method"] == method
    bundle = convert_to_ctranslate2(recipe.output, tmp_path / "bundle", ConversionOptions(quantization="float32"))
    decider = load(bundle.output)
    decision = decider.decide("chest pain")
    assert decision.label in recipe.labels
    # A bundle explains as its model learned to: dss without the label, sft not at all.
    assert (decision.rationale is None) == (method == "sft")
    assert ("{label}" in (decider.task.prompts.explain or "")) == method.startswith("r2d")


@pytest.mark.parametrize("method", ["sft", "r2d"])
def test_decoder_only_models_learn_and_export(method: str, fit_recipe, tmp_path: Path) -> None:
    recipe = fit_recipe(
        write_tiny_causal(tmp_path / "base"),
        method=method,
        stage1_epochs=1.0,
        epochs=6.0,
        learning_rate=2e-2,
        lora_rank=4,
        template=CHAT_TEMPLATE,
    )
    fit(recipe)
    log = json.loads((recipe.output / "history.json").read_text(encoding="utf-8"))["log"]
    losses = [entry["loss_label"] for entry in log if "loss_label" in entry]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    bundle = convert_to_ctranslate2(recipe.output, tmp_path / "bundle", ConversionOptions(quantization="float32"))
    assert load(bundle.output).decide("chest pain", rationale=False).label in recipe.labels


@pytest.mark.parametrize(
    ("method", "shape"),
    [(method, shape) for method in ("sft", "dss", "r2d", "r2d-c") for shape in ("bart", "t5")]
    + [("sft", "causal"), ("r2d", "causal")],
)
def test_rows_without_a_target_add_nothing(method: str, shape: str, fit_recipe, tmp_path: Path) -> None:
    """They fill up the share of a process that has too few rows, or none; the gradients stay those of the others."""
    if shape == "causal":
        base = write_tiny_causal(tmp_path / "base")
        settings: dict[str, Any] = {"template": CHAT_TEMPLATE, "lora_rank": 4, "lora_dropout": 0.0}
    else:
        base = (write_tiny_bart if shape == "bart" else write_tiny_t5)(tmp_path / "base")
        settings = {"cycle_weight": 0.0}
    trainer = make_trainer(fit_recipe(base, method=method, dropout=0.0, **settings), steps=100)
    items = explained(trainer)
    empty = LabelledItem(-1, "", "", [trainer.encoder.end_id], [], [], is_gold=False)
    losses, gradients = [], []
    for rows in (items, [*items, empty], [empty, empty]):
        trainer.model.zero_grad()
        trainer.state.global_step = 3  # of the warm-up: r2d-c's later labels depend on the steps before
        loss = trainer.compute_loss(trainer.model, {"items": rows})
        loss.backward()
        losses.append(float(loss.detach()))
        learned = [parameter.grad for parameter in trainer.model.parameters() if parameter.requires_grad]
        gradients.append(torch.cat([torch.zeros(1) if g is None else g.flatten().clone() for g in learned]))
        if rows == [empty, empty]:  # among processes, each must take part in each parameter's gradient
            assert all(gradient is not None for gradient in learned)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert torch.allclose(gradients[1], gradients[0], atol=1e-5)
    assert losses[2] == 0.0
    assert not gradients[2].any()


def test_loss_of_sft_is_the_labels_alone(fit_recipe, tmp_path: Path) -> None:
    trainer = make_trainer(fit_recipe(write_tiny_bart(tmp_path / "base"), method="sft", dropout=0.0), steps=100)
    items = explained(trainer)
    silent = [replace(item, rationale=[]) for item in items]
    assert loss_at(trainer, 30, items) == loss_at(trainer, 30, silent) == loss_at(trainer, 0, items)


@pytest.mark.parametrize(("alpha", "weight"), [(None, 0.5), (0.8, 0.8)])
def test_loss_of_dss_has_a_fixed_weight_and_no_label_in_its_prompt(
    alpha: float | None, weight: float, fit_recipe, tmp_path: Path
) -> None:
    base = write_tiny_bart(tmp_path / "base")
    trainer = make_trainer(fit_recipe(base, method="dss", dropout=0.0, alpha=alpha), steps=100)
    items = explained(trainer)
    prediction = loss_at(trainer, 0, [replace(item, rationale=[]) for item in items]) / weight
    count = sum(len(item.rationale) for item in items)
    prompts = [trainer.encoder.rationale(item.text).ids for item in items]
    explanation = float(trainer.target_loss(trainer.model, prompts, [item.rationale for item in items], count))
    for step in (0, 99):
        assert loss_at(trainer, step, items) == pytest.approx(weight * prediction + (1 - weight) * explanation)


def test_loss_of_r2d_is_the_weighted_sum(fit_recipe, tmp_path: Path) -> None:
    """At alpha 0 the label target has no weight; at alpha_max the tasks weigh 0.7 and 0.3."""
    trainer = make_trainer(fit_recipe(write_tiny_bart(tmp_path / "base"), dropout=0.0, sampling="gold"), steps=1000)
    items = explained(trainer)
    explanation = loss_at(trainer, 0, items)
    prediction = loss_at(trainer, 50, [replace(item, rationale=[]) for item in items]) / 0.7
    assert loss_at(trainer, 50, items) == pytest.approx(0.7 * prediction + 0.3 * explanation, rel=1e-5)
    assert loss_at(trainer, 25, items) == pytest.approx(0.35 * prediction + 0.65 * explanation, rel=1e-5)


def test_explanation_prompts_follow_the_schedule(fit_recipe, tmp_path: Path) -> None:
    trainer = make_trainer(fit_recipe(write_tiny_bart(tmp_path / "base")), steps=1000)
    prompt = trainer.train_dataset[0].prompt
    items = [LabelledItem(row, "chest pain", "a gold label", prompt, [1], [1]) for row in range(400)]
    for step, share in ((0, 0.0), (50, 0.0), (350, 0.45), (650, 0.9), (999, 0.9)):
        labels = trainer.prompt_labels(items, step)
        own = sum(label != "a gold label" for label in labels) / len(labels)
        assert own == pytest.approx(share, abs=0.07)
        assert set(labels) - {"a gold label"} <= set(trainer.encoder.task.labels.labels)
    # Whether a row is drawn does not depend on the rows beside it.
    assert trainer.prompt_labels(items[100:140], 350) == trainer.prompt_labels(items, 350)[100:140]


def test_sampling_makes_labels_in_eval_mode_without_gradient(fit_recipe, tmp_path: Path) -> None:
    trainer = make_trainer(fit_recipe(write_tiny_bart(tmp_path / "base"), dropout=0.5), steps=10)
    trainer.model.train()
    gradients = []
    trainer.model.register_forward_pre_hook(lambda *_: gradients.append(torch.is_grad_enabled()))
    items = trainer.train_dataset
    first = trainer.prompt_labels(items, 9)
    assert all(trainer.prompt_labels(items, 9) == first for _ in range(5))  # dropout would show
    assert trainer.model.training
    assert gradients
    assert not any(gradients)


def test_labels_are_encoded_once(fit_recipe, tmp_path: Path) -> None:
    """Scoring labels that share a beginning, and then their confidence, takes one pass of the encoder."""
    labels = ["urgent a", "urgent b", "urgent c", "no", "yes"]
    from r2d_edge.engines.transformers import TransformersEngine
    from train.labels import predict_with_confidence

    recipe = fit_recipe(write_tiny_bart(tmp_path / "base"), labels=labels)
    model, _, encoder = load_for_training(recipe)
    passes = []
    model.get_encoder().register_forward_pre_hook(lambda *_: passes.append(1))
    found = predict_with_confidence(TransformersEngine(model, encoder), encoder, [encoder.predict("pain").ids] * 3)
    assert len(passes) == 1
    label, confidence = found[0]
    ids = torch.tensor([encoder.target_ids(label, 16)])
    with torch.inference_mode():
        logits = model.eval()(input_ids=torch.tensor([encoder.predict("pain").ids]), labels=ids).logits
    steps = logits.log_softmax(-1).gather(2, ids[..., None])
    assert confidence == pytest.approx(float(steps.mean().exp()), rel=1e-4)


def test_a_finished_stage1_can_be_shared(fit_recipe, stage1_recipe, tmp_path: Path) -> None:
    from train.stage1 import train_stage1

    base = write_tiny_bart(tmp_path / "base")
    stage1 = train_stage1(stage1_recipe(base))
    recipe = fit_recipe(base, stage1_checkpoint=str(stage1), stage1_epochs=9.0)
    fit(recipe)
    assert not recipe.output.with_name("fit-stage1").exists()
    provenance = json.loads((recipe.output / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["from"]["method"] == "stage 1"
    assert provenance["from"]["recipe"]["sources"] == ["llm", "nurse"]
    assert (provenance["rows"], provenance["rationales_missing"]) == (20, 1)


def test_a_gguf_base_is_plain_once_loaded(fit_recipe, tmp_path: Path) -> None:
    """What says that the weights were quantized would forbid to train and to save them."""
    from transformers.trainer_utils import validate_quantization_for_training

    from tests.tiny_parts import write_gguf
    from train.lora import add_adapter, merged

    (tmp_path / "gguf").mkdir()
    base = tmp_path / "gguf" / "base.gguf"
    write_gguf(write_tiny_causal(tmp_path / "llama"), base, tied=True)
    model = add_adapter(load_model(str(base), decoder_only=True), fit_recipe(base, lora_rank=4, template=CHAT_TEMPLATE))
    validate_quantization_for_training(model)
    merged(model).save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        saved, original = (load_model(str(p), decoder_only=True).eval()(ids).logits for p in (tmp_path / "saved", base))
    assert torch.allclose(saved, original, atol=1e-5)  # a fresh adapter changes nothing


def test_a_finished_run_is_left_as_it_is_and_another_is_not_taken_for_it(fit_recipe, tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    recipe = fit_recipe(base, stage1_epochs=1.0, epochs=1.0)
    fit(recipe)
    weights = recipe.output / "model.safetensors"
    stage1 = recipe.output.with_name("fit-stage1") / "model.safetensors"
    written = weights.stat().st_mtime_ns, stage1.stat().st_mtime_ns
    fit(recipe)
    assert (weights.stat().st_mtime_ns, stage1.stat().st_mtime_ns) == written
    with pytest.raises(RecipeError, match="begun with other sources"):
        fit(replace(recipe, stage1_sources=["nurse"]))


@pytest.mark.parametrize("resume", [True, False])
def test_an_earlier_result_is_not_taken_for_that_of_a_run_that_was_cut(
    resume: bool, fit_recipe, tmp_path: Path
) -> None:
    recipe = fit_recipe(write_tiny_bart(tmp_path / "base"), method="sft", epochs=1.0)
    fit(recipe)
    if resume:
        shutil.rmtree(recipe.output / "checkpoints")  # as a study does with what it has no more use for
    row = {"id": "new", "text": "a new row", "label": recipe.labels[0], "rationales": {}}
    with recipe.train[0].open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    fit(recipe, stop_after=2, resume=resume)
    fit(recipe)
    provenance = json.loads((recipe.output / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["rows"] == 21


def test_sources_that_the_data_have_not(fit_recipe, tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    for settings in ({"method": "dss"}, {"method": "r2d", "stage1_epochs": 1.0}):
        with pytest.raises(RecipeError, match=r"\['llm', 'nurse'\]"):
            fit(fit_recipe(base, sources=["doctor"], **settings))


def test_an_adapter_is_written_beside_the_merged_model(fit_recipe, tmp_path: Path) -> None:
    from peft import PeftModel

    base = write_tiny_t5(tmp_path / "base", tied=False, gated=True)
    recipe = fit_recipe(base, method="r2d", lora_rank=4, learning_rate=2e-2, dropout=0.0)
    fit(recipe)
    merged = load_model(str(recipe.output)).eval()
    adapted = PeftModel.from_pretrained(load_model(str(base)), recipe.output / "adapter").eval()
    ids, labels = torch.tensor([[5, 6, 7, 1]]), torch.tensor([[8, 9, 1]])
    with torch.inference_mode():
        outputs = [model(input_ids=ids, labels=labels).logits for model in (merged, adapted, load_model(str(base)))]
    assert torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-2)


def test_an_adapter_is_gone_on_from(fit_recipe, tmp_path: Path) -> None:
    """The run starts with what the adapter learned, trains that same adapter, and is another run with another one."""
    base = write_tiny_causal(tmp_path / "base")
    chat = {"method": "sft", "template": CHAT_TEMPLATE, "lora_rank": 4, "learning_rate": 2e-2}
    first = fit_recipe(base, **chat)
    fit(first)
    second = replace(first, output=tmp_path / "second", adapter=first.output / "adapter")
    ids = torch.tensor([[5, 6, 7, 1]])
    with torch.inference_mode():
        started, ended, plain = (
            model.eval()(input_ids=ids).logits
            for model in (
                load_for_training(second)[0],
                load_model(str(first.output), decoder_only=True),
                load_model(str(base), decoder_only=True),
            )
        )
    assert torch.allclose(started, ended, atol=1e-4)
    assert not torch.allclose(started, plain, atol=1e-2)
    fit(second)
    provenance = json.loads((second.output / "r2d_provenance.json").read_text(encoding="utf-8"))
    assert provenance["adapter_from"]["method"] == "sft"
    assert json.loads((second.output / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
    assert is_finished(second)
    fit(replace(first, seed=14), resume=False)
    assert not is_finished(second)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_rank": 8}, "rank 4 and alpha 8, the recipe 8 and 16"),
        ({"lora_alpha": 4.0}, "rank 4 and alpha 8, the recipe 4 and 4.0"),
        ({"adapter": Path("nowhere")}, "the adapter in nowhere cannot be read"),
        ({"lora_rank": 0}, "decoder-only models are trained by adapters.*|needs its lora_rank"),
        ({"method": "r2d", "stage1_epochs": 1.0}, "set stage1_epochs = 0"),
    ],
)
def test_adapters_that_do_not_fit(change: dict[str, Any], said: str, fit_recipe, tmp_path: Path) -> None:
    base = write_tiny_causal(tmp_path / "base")
    chat = {"method": "sft", "template": CHAT_TEMPLATE, "lora_rank": 4, "stage1_epochs": 0.0}
    first = fit_recipe(base, **chat)
    load_for_training(first)[0].save_pretrained(tmp_path / "adapter")
    with pytest.raises(RecipeError, match=said):
        load_for_training(fit_recipe(base, **{**chat, "adapter": tmp_path / "adapter", **change}))


@pytest.mark.parametrize("other", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"intermediate_size": 32}])
def test_an_adapter_of_another_model_is_refused(other: dict[str, int], fit_recipe, tmp_path: Path) -> None:
    """Also where PEFT would only warn: a layer more than the adapter has weights for, or one fewer."""
    chat = {"method": "sft", "template": CHAT_TEMPLATE, "lora_rank": 4}
    load_for_training(fit_recipe(write_tiny_causal(tmp_path / "base"), **chat))[0].save_pretrained(tmp_path / "adapter")
    base = write_tiny_causal(tmp_path / "other", **other)
    with pytest.raises(RecipeError, match="is of another model"):
        load_for_training(fit_recipe(base, adapter=tmp_path / "adapter", **chat))


def test_a_fresh_adapter_depends_on_the_seed_alone(fit_recipe, tmp_path: Path) -> None:
    base = write_tiny_bart(tmp_path / "base")
    drawn = []
    for state, seed in ((1, 13), (2, 13), (1, 14)):
        torch.manual_seed(state)
        model, _, _ = load_for_training(fit_recipe(base, lora_rank=4, seed=seed))
        drawn.append(torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_A" in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"batch_size": 2, "gradient_accumulation": 2}])
def test_memory_savings_change_no_result(change: dict[str, Any], fit_recipe, tmp_path: Path) -> None:
    """Recomputed activations and accumulated gradients give the weights of the plain run.

    Most rows have no rationale, so that the parts of a batch hold different numbers of targets.
    """
    base = write_tiny_t5(tmp_path / "base", tied=False, gated=True)
    plain = fit_recipe(base, dropout=0.0, output=tmp_path / "plain", epochs=1.0, patience=0)
    _thin_rationales(plain.train[0])
    saving = fit_recipe(base, dropout=0.0, output=tmp_path / "saving", epochs=1.0, patience=0, **change)
    first, second = (_losses(fit(recipe)) for recipe in (plain, saving))
    assert len(first) == 5
    assert second == pytest.approx(first, rel=2e-4)


def _thin_rationales(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [{**line, "rationales": line["rationales"] if number % 3 == 1 else {}} for number, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _losses(output: Path) -> list[float]:
    log = json.loads((output / "history.json").read_text(encoding="utf-8"))["log"]
    return [entry["loss"] for entry in log if "loss" in entry]
