"""The speed benchmark: its statistics, equal work on real tiny models, refusals, and failures that are told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import laps, machine, plot, speed, tables, targets
from benchmarks.models import FULL_SIZE, INT8, PRODUCT, TRIMMED, Model, SideSpec
from benchmarks.notes import FIXED_LABEL, FIXED_NOTE, mixed_rows
from benchmarks.process import SideError, SideProcess
from benchmarks.shapes import Shape, make_checkpoint
from benchmarks.sides import Row, Wish, batches, by_length
from benchmarks.tables import TABLES
from convert.bundling import convert_to_ctranslate2
from convert.extras import ConversionOptions
from r2d_edge.bundle import open_bundle
from r2d_edge.decide import load
from r2d_edge.engines import EngineOptions
from r2d_edge.task import PromptEncoder
from tests.tiny_models import TEXTS

ROOT = Path(__file__).parents[2]
TOKENS = 7
REPORT = {
    "flips": {"rate": 0.004, "ordered": {"net_under_rate": 0.006}},
    "compared": {"data": {"used": 643}},
    "quality": {"difference": {"macro_f1": {"value": -0.012, "low": -0.03, "high": 0.004}}},
}


def lap(label: float, rationale: float, tokens: int = 5) -> dict[str, float]:
    return {"label": label, "first": label, "rationale": rationale, "tokens": tokens, "cpu": label + rationale}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny T5 whose rationales have `TOKENS` tokens, and its int8 bundle."""
    import torch

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("speed")
    notes = [*TEXTS, *(row["text"] for row in mixed_rows(20))]
    shape = Shape(d_model=32, d_ff=64, layers=2, heads=2)
    make_checkpoint(folder / "checkpoint", shape, notes, tokens=TOKENS, rows=700)
    golden = folder / "golden.jsonl"
    golden.write_text(json.dumps({"text": TEXTS[1]}) + "\n", encoding="utf-8")
    options = ConversionOptions(quantization="int8", golden=golden, name="tiny")
    convert_to_ctranslate2(folder / "checkpoint", folder / "bundle", options)
    return {name: folder / name for name in ("checkpoint", "bundle")}


@pytest.fixture(scope="module")
def model(folders: dict[str, Path]) -> Model:
    """The tiny T5 on real sides, one whose files are missing, one whose Python is missing, one that is not run."""
    bundle = open_bundle(folders["bundle"])
    encoder = PromptEncoder.from_file(bundle.path("tokenizer.json"), bundle.manifest.task)
    full = {"path": str(folders["checkpoint"]), "compute_type": "float32"}
    network = folders["bundle"] / "model"
    int8 = {"path": str(network), "compute_type": "default"}
    sides = [
        SideSpec(FULL_SIZE, "transformers", full, encoder, [folders["checkpoint"] / "model.safetensors"]),
        SideSpec(INT8, "ctranslate2", int8, encoder, [network / "model.bin"], batch_sizes=(0, 2)),
        SideSpec("broken", "ctranslate2", {**int8, "path": str(folders["bundle"] / "nothing")}, encoder),
        SideSpec("nowhere", "transformers", full, encoder, python=str(folders["bundle"] / "no-python")),
        SideSpec("absent", "", reason="there is no such thing"),
        SideSpec(PRODUCT, "r2d-edge", {"path": str(folders["bundle"])}, encoder, batch_sizes=(0,)),
    ]
    parity = {INT8: bundle.manifest.extra["parity"]}
    return Model("t5-small", "random", Wish(TOKENS), None, sides, {INT8: str(folders["bundle"])}, parity)


@pytest.fixture(scope="module")
def measured(model: Model) -> dict[str, object]:
    return speed.measure(model, speed.Effort(notes=4, rounds=2, many=3), lambda step: None)


# Statistics


def test_quantiles_are_times_that_were_measured() -> None:
    seconds = np.random.default_rng(1).permutation(np.arange(1, 31)) / 1000
    found = laps.summary(seconds)
    assert found == {"p50": 15.0, "p95": 29.0, "p99": 30.0, "mean": 15.5, "min": 1.0, "max": 30.0}
    assert laps.summary(np.arange(1, 101) / 1000)["p99"] == 99.0


def test_latency_counts_tokens_after_the_first_and_processor_time_of_all() -> None:
    found = laps.latency([lap(0.010, 0.050, tokens=5), lap(0.020, 0.080, tokens=11)])
    assert found["ms"]["note"]["p50"] == pytest.approx(60)
    assert found["ms"]["first"]["max"] == pytest.approx(20)
    assert found["tokens"] == 8
    assert found["tokens_per_second"] == pytest.approx((4 + 10) / (0.040 + 0.060))
    assert found["cpu_seconds_per_1000_notes"] == pytest.approx(80)


def test_a_ratio_is_of_medians_with_an_interval_around_it() -> None:
    slow = [lap(0.1, 0.3 + 0.01 * number) for number in range(21)]
    fast = [lap(0.05, 0.05 + 0.001 * number) for number in range(21)]
    found = laps.ratio(slow, fast)
    assert found["value"] == pytest.approx(0.5 / 0.11)
    assert found["low"] < found["value"] < found["high"]
    assert laps.ratio(slow, [*fast[:3]])["notes"] == 3  # the same notes on both sides


# Equal work


def test_every_side_writes_as_many_tokens_as_is_wished(folders: dict[str, Path]) -> None:
    bundle = open_bundle(folders["bundle"])
    encoder = PromptEncoder.from_file(bundle.path("tokenizer.json"), bundle.manifest.task)
    rows = [
        {"text": text, "predict": encoder.predict(text).ids, "explain": encoder.explain(text, "urgent").ids}
        for text in TEXTS[1:4]
    ]
    written = {}
    for kind, path in (("transformers", folders["checkpoint"]), ("ctranslate2", folders["bundle"] / "model")):
        compute_type = "float32" if kind == "transformers" else "default"
        with SideProcess(threads=1) as process:
            settings = {"path": str(path), "compute_type": compute_type, "threads": 1}
            about = process.ask("open", kind=kind, settings=settings)["about"]
            assert about["engine"] == kind
            assert about["threads"] == 1
            answer = process.ask("notes", rows=rows, wish=asdict(Wish(TOKENS + 4)))
            assert [lap["tokens"] for lap in answer["laps"]] == [TOKENS + 4] * 3
            assert all(0 < lap["first"] < lap["rationale"] for lap in answer["laps"])
            assert answer["peak_bytes"] > 10e6
            together = process.ask("many", rows=rows, wish=asdict(Wish(TOKENS + 4)), batch_size=2)
            assert together["tokens"] == 3 * (TOKENS + 4)
            written[kind] = [lap["ids"] for lap in answer["laps"]]
    assert written["transformers"] != [[0] * (TOKENS + 4)] * 3
    same = np.mean(np.array(written["transformers"]) == np.array(written["ctranslate2"]))
    assert same > 0.3  # int8 may take another way, random answers would agree on one in hundreds


def test_forcing_holds_where_a_model_would_stop_at_once(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.tiny_models import write_tiny_bart

    folder = write_tiny_bart(tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    weights["final_logits_bias"][0, 3] = 1e3  # the end token, always
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    golden = tmp_path / "golden.jsonl"
    golden.write_text(json.dumps({"text": TEXTS[1]}) + "\n", encoding="utf-8")
    convert_to_ctranslate2(folder, tmp_path / "bundle", ConversionOptions(quantization="float32", golden=golden))
    torch.set_num_threads(1)
    row = Row(TEXTS[1], [2, 20, 21, 3], [2, 20, 21, 22, 3])
    from benchmarks.sides import open_side

    for side in (
        open_side("transformers", {"path": str(folder), "compute_type": "float32", "threads": 1}),
        open_side("ctranslate2", {"path": str(tmp_path / "bundle/model"), "compute_type": "default", "threads": 1}),
    ):
        assert side.note(row, Wish(9)).tokens == 9
        assert side.note(row, Wish(9, forced=False)).tokens == 0


def test_batches_are_of_neighbours_in_length() -> None:
    rows = [Row("", [], [0] * length) for length in (3, 9, 4, 8, 5)]
    found = batches(by_length(rows), 2)
    assert [[len(row.explain) for row in batch] for batch in found] == [[9, 8], [5, 4], [3]]
    assert len(batches(rows, 0)) == 1


def test_a_shape_never_stops_by_itself(folders: dict[str, Path]) -> None:
    decider = load(folders["bundle"], EngineOptions(threads=1))
    prompt = decider.encoder.explain(FIXED_NOTE, FIXED_LABEL).ids
    decoding = decider.bundle.manifest.decoding
    assert len(decider.engine.generate([prompt], max_tokens=TOKENS, decoding=decoding)[0]) == TOKENS


def test_the_fixed_note_has_150_tokens() -> None:
    bundle = open_bundle(ROOT / "r2d_edge" / "models" / "triage-nano")
    encoder = PromptEncoder.from_file(bundle.path("tokenizer.json"), bundle.manifest.task)
    assert len(encoder.text_ids(FIXED_NOTE)) == 150


def test_the_mix_is_the_same_each_time_and_of_many_lengths() -> None:
    assert mixed_rows(64)[:10] == mixed_rows(10)
    assert len({len(row["text"]) for row in mixed_rows(64)}) > 32
    with pytest.raises(ValueError, match="495 validation notes; 9999"):
        mixed_rows(9999)


# A whole measurement


def test_sides_are_measured_and_failures_are_told(measured: dict) -> None:
    sides = measured["sides"]
    assert [side["status"] for side in sides.values()] == ["run", "run", "failed", "failed", "not run", "run"]
    assert "nothing" in sides["broken"]["reason"]
    assert "no-python cannot be started" in sides["nowhere"]["reason"]
    assert sides["absent"]["reason"] == "there is no such thing"
    for name in (FULL_SIZE, INT8, PRODUCT):
        assert sides[name]["latency"]["equal"]["notes"] == 4
        assert 0 < sides[name]["latency"]["equal"]["tokens"] < 2 * TOKENS  # the product's are counted in its text
        assert sides[name]["opening"]["peak_bytes"] > 10e6
        assert sides[name]["times_full_size"]["equal"]["value"] > 0
    assert sides[FULL_SIZE]["latency"]["equal"]["tokens"] == sides[INT8]["latency"]["equal"]["tokens"] == TOKENS
    assert sides[PRODUCT]["latency"]["fixed note"]["notes"] == 4
    assert sides[FULL_SIZE]["times_full_size"]["equal"]["value"] == 1
    assert sides[FULL_SIZE]["same_tokens"] == 1
    assert set(sides[INT8]["throughput"]["batch_sizes"]) == {"0", "2"}
    assert sides[INT8]["throughput"]["best"]["tokens"] == TOKENS
    assert sides[INT8]["about"]["compute_type"] == "int8_float32"


def test_a_side_that_breaks_at_work_keeps_its_reason() -> None:
    with SideProcess(threads=1) as process:
        with pytest.raises(SideError, match="nothing was opened"):
            process.ask("notes", rows=[], wish=asdict(Wish(2)))
        with pytest.raises(SideError, match="KeyError"):
            process.ask("open", kind="abacus", settings={})


def test_a_process_that_dies_is_no_hang(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('out of beads')\n", encoding="utf-8")
    script.chmod(0o755)
    if os.name == "nt":
        pytest.skip("a script is no program on Windows")
    with SideProcess(threads=1, python=str(script)) as process, pytest.raises(SideError, match="out of beads"):
        process.ask("open", kind="ctranslate2", settings={})


# Figures to reach


def test_figures_say_reached_not_reached_or_why_not(measured: dict) -> None:
    found = {figure["name"]: figure for figure in targets.figures({"t5-small": measured})}
    assert all((figure["reached"] is None) == (figure["value"] is None) for figure in found.values())
    assert all(figure["reason"] for figure in found.values() if figure["reached"] is None)
    size = found["size of the network, int8 of fp32, T5-small shape"]
    files = [measured["sides"][name]["size_bytes"] for name in (INT8, FULL_SIZE)]
    assert size["value"] == pytest.approx(files[0] / files[1])
    speedup = found["int8 against transformers fp32, batch 1, T5-small shape"]
    assert speedup["reached"] is (speedup["value"] >= 3)
    assert speedup["interval"][0] <= speedup["value"] <= speedup["interval"][1]
    assert found["label log-probabilities, int8, T5-small shape"]["reached"] is True


def test_limits_are_kept_on_both_sides_of_them() -> None:
    def nano(label: float) -> dict:
        ms = {"label": {"p50": label}, "note": {"p50": 100.0}}
        return {"sides": {PRODUCT: {"latency": {"fixed note": {"ms": ms}}}}}

    name = "triage-nano, 150-token note: label, ms"
    for label, reached in ((14.9, True), (15.1, False)):
        [found] = [figure for figure in targets.figures({"triage-nano": nano(label)}) if figure["name"] == name]
        assert found["reached"] is reached


def test_what_was_missed_says_why() -> None:
    small = {"infer": {INT8: {"peak_bytes": 180_000_000}, TRIMMED: {"peak_bytes": 130_000_000}}, "sides": {}}
    found = [figure for figure in targets.figures({"t5-small": small}) if "peak memory" in figure["name"]]
    assert [figure["reached"] for figure in found] == [False, True]
    assert "tokenizers" in found[0]["reason"]
    assert found[1]["reason"] is None


def test_a_reports_figures_are_taken_over() -> None:
    found = {figure["name"]: figure for figure in targets.figures({}, REPORT, REPORT)}
    assert found["label flips int8 against fp32, share of notes"]["reached"] is True
    assert found["net under-triage by these flips, share of notes"]["reached"] is False
    lost = found["macro-F1 that the student lost"]
    assert (lost["value"], lost["reached"], lost["interval"]) == (0.012, False, [-0.004, 0.03])


# Machine


def test_a_busy_machine_is_refused() -> None:
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        with pytest.raises(machine.MachineBusyError, match="--busy-ok"):
            machine.refuse_if_busy()
        assert machine.refuse_if_busy(busy_ok=True) > machine.MAX_BUSY_CORES
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def test_the_command_refuses_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "busy_cores", lambda: 1.5)
    done = CliRunner().invoke(command.main, ["all", "--cache", str(tmp_path / "cache")])
    assert done.exit_code == 1
    assert "1.50 of" in done.output
    assert not (tmp_path / "cache").exists()


def test_an_unknown_shape_is_named() -> None:
    done = CliRunner().invoke(command.main, ["latency", "--shapes", "small,tiny"])
    assert done.exit_code == 2
    assert "tiny: not one of small, base, large" in done.output


def test_memory_of_a_process_is_its_own(tmp_path: Path) -> None:
    ballast = bytearray(200 << 20)  # a child must not be told its parent's size
    target = tmp_path / "peak"
    subprocess.run([sys.executable, "-m", "benchmarks.peak", str(target), "this"], cwd=ROOT, check=True, stdout=-3)
    assert 5e6 < int(target.read_text(encoding="ascii")) < len(ballast) / 2


# The command, its file and its plot


def test_one_run_gives_json_file_plot_and_tables(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr(command.models, "shaped", lambda name, choice, tell, lean: model)
    output, picture = tmp_path / "out" / "speed.json", tmp_path / "out" / "speed.svg"
    arguments = ["all", "--no-embedded", "--notes", "2", "--many", "2", "--rounds", "1", "--runs", "1", "--busy-ok"]
    arguments += ["--cache", str(tmp_path / "cache"), "-o", str(output), "--plot", str(picture)]
    done = CliRunner().invoke(command.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout.splitlines()[-1])
    assert last == json.loads(output.read_text(encoding="utf-8"))
    assert last["schema"] == 1
    assert last["load"]["busy_ok"] is True
    assert last["machine"]["versions"]["ctranslate2"]
    assert last["effort"]["notes"] == 2
    assert last["models"]["t5-small"]["infer"][INT8]["peak_bytes"] > 10e6
    assert last["models"]["t5-small"]["infer"][INT8]["first_label_seconds"]["p50"] > 0
    assert len(last["figures"]) == len(targets.figures({}))
    assert "nowhere failed: " in done.stderr
    assert "absent not run: there is no such thing" in done.stderr
    drawing = picture.read_text(encoding="utf-8")
    assert drawing.startswith("<?xml")
    for name in (FULL_SIZE, INT8, PRODUCT):
        assert f"<!-- {name} -->" in drawing
    monkeypatch.setattr(tables, "RESULTS", output.parent)
    assert "\n- absent not run: there is no such thing\n" in TABLES["speed-t5-small"]()
    assert f"| {INT8} |" in TABLES["throughput-t5-small"]()
    assert "| not measured |" in TABLES["figures"]()
    report = tmp_path / "report.json"
    report.write_text(json.dumps(REPORT), encoding="utf-8")
    again = CliRunner().invoke(command.main, ["figures", str(output), "--report", str(report)], catch_exceptions=False)
    judged = json.loads(output.read_text(encoding="utf-8"))
    assert again.exit_code == 0
    assert {**judged, "figures": None} == {**last, "figures": None}
    assert {figure["value"] for figure in judged["figures"]} >= {0.004, 0.006}
    first = picture.read_bytes()
    plot.draw(last, picture)
    assert picture.read_bytes() == first


def test_a_single_command_measures_its_part_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Model("t5-small", "random", model.equal, None, [model.sides[1]])
    monkeypatch.setattr(command.models, "shaped", lambda name, choice, tell, lean: alone)
    done = CliRunner().invoke(command.main, ["memory", "--no-embedded", "--busy-ok"], catch_exceptions=False)
    found = json.loads(done.stdout.splitlines()[-1])
    side = found["models"]["t5-small"]["sides"][INT8]
    assert side["opening"]["peak_bytes"] > 10e6
    assert "latency" not in side
    assert "throughput" not in side
    assert found["figures"] == []
    assert found["models"]["t5-small"]["infer"] == {}
