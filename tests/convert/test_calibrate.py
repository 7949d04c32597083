import json
from pathlib import Path

import numpy as np
import pytest

from convert.calibrate import fit
from r2d_edge import load
from r2d_edge.calibration import fit_temperature
from r2d_edge.errors import InputError
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
    assert found["temperature"] == pytest.approx(expected, rel=1e-2)
    assert "8 rows" in found["source"]

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
