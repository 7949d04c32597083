import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from convert.__main__ import main
from r2d_edge import load
from r2d_edge.bundle import Calibration
from r2d_edge.calibration import fit_temperature, probabilities
from r2d_edge.decide import Decider
from r2d_edge.errors import InputError
from r2d_edge.fitting import fit
from r2d_edge.label_scores import score_labels
from tests.cli.bundles import make_bundle
from tests.tiny_models import TEXTS


def test_fits_on_the_bundles_own_scores(tmp_path: Path) -> None:
    decider = load(make_bundle(tmp_path))
    labels = decider.task.labels.labels
    rows = [{"text": text, "label": labels[number % 5]} for number, text in enumerate(TEXTS[1:9])]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scores = score_labels(decider.engine, decider.encoder, [decider.encoder.predict(r["text"]).ids for r in rows])
    expected = fit_temperature(scores, np.array([labels.index(row["label"]) for row in rows]))
    found = fit(decider, [data], batch_size=3)
    assert found.calibration.temperature == pytest.approx(expected, rel=1e-2)
    assert "8 rows" in found.calibration.source
    assert not found.calibration.settings
    assert set(found.held_out) == {"one"}

    data.write_text(json.dumps({"text": "chest pain", "label": "calm"}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 1: its label is none of") as caught:
        fit(decider, [data])
    assert "calm" not in str(caught.value)  # it may be a note, in the wrong column
    for content, why in (
        (b'{"text": null, "label": "urgent"}', "no text"),
        (b"\xff\xfe", "UTF-8"),
        (b"", "no labelled"),
    ):
        data.write_bytes(content)
        with pytest.raises(InputError, match=why):
            fit(decider, [data])


def _labelled(decider: Decider, path: Path, rows: int, temperature: float, seed: int) -> Path:
    """Rows whose labels are drawn from the bundle's own probabilities at a temperature."""
    generator = np.random.default_rng(seed)
    texts = [f"{TEXTS[1 + row % 8]} {row}" for row in range(rows)]
    scores = score_labels(decider.engine, decider.encoder, [decider.encoder.predict(text).ids for text in texts])
    labels = decider.task.labels.labels
    chosen = [labels[generator.choice(5, p=row)] for row in probabilities(scores, temperature)]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(texts, chosen, strict=True)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_settings_get_temperatures_of_their_own_where_that_helps(tmp_path: Path) -> None:
    decider = load(make_bundle(tmp_path))
    sharp = _labelled(decider, tmp_path / "sharp.jsonl", 60, 0.1, 1)
    flat = _labelled(decider, tmp_path / "flat.jsonl", 60, 10.0, 2)
    found = fit(decider, [sharp, flat], ["sharp", "flat"])
    own = found.calibration.settings
    assert own["sharp"] < found.calibration.temperature < own["flat"]
    assert "not kept" not in found.calibration.source
    one, each = found.held_out["one"], found.held_out["each"]
    assert each["nll"] < one["nll"]
    assert each["sharp"]["rows"] == 60
    assert set(each["flat"]) == {"rows", "nll", "ece", "ece_if_calibrated", "debiased"}

    again = _labelled(decider, tmp_path / "again.jsonl", 60, 0.1, 3)
    alike = fit(decider, [sharp, again], ["first", "second"])
    kept = alike.held_out["each"]["nll"] < alike.held_out["one"]["nll"]
    assert set(alike.calibration.settings) == ({"first", "second"} if kept else set())
    assert ("not kept" in alike.calibration.source) is not kept

    short = _labelled(decider, tmp_path / "short.jsonl", 3, 1.0, 4)
    with pytest.raises(InputError, match="'short' has 3"):
        fit(decider, [sharp, short], [None, "short"])


def test_the_command_writes_what_a_conversion_reads(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    data = _labelled(load(bundle), tmp_path / "rows.jsonl", 10, 1.0, 5)
    output = tmp_path / "calibration.json"
    ran = CliRunner().invoke(main, ["calibrate", str(bundle), "--setting", "ward", str(data), "-o", str(output)])
    assert ran.exit_code == 0, ran.output
    written = json.loads(output.read_text(encoding="utf-8"))
    assert Calibration(**written).temperature_in(None) == written["temperature"]
    assert {**written, "held_out": json.loads(ran.stdout)["held_out"]} == json.loads(ran.stdout)
    before = output.read_bytes()
    longer = _labelled(load(bundle), tmp_path / "longer.jsonl", 12, 1.0, 6)

    def again(output: Path, *more: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["calibrate", str(bundle), "--data", str(longer), "-o", str(output), *more])
        return done.exit_code, done.stderr

    code, said = again(output)
    assert (code, "--force" in said, output.read_bytes() == before) == (1, True, True)
    kept = data.read_bytes()
    for other, words in ((data, "not a calibration"), (longer, "what else is read"), (bundle, "checkpoint itself")):
        code, said = again(other, "--force")
        assert (code, words in said) == (1, True)
    assert data.read_bytes() == kept
    assert again(output, "--force") == (0, "")
    assert "12 rows" in json.loads(output.read_text(encoding="utf-8"))["source"]
    assert not list(tmp_path.glob(".*"))
    ran = CliRunner().invoke(main, ["calibrate", str(bundle), "-o", str(output)])
    assert ran.exit_code == 2
    assert "--setting" in ran.output
