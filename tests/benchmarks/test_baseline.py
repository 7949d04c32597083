import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import baseline
from benchmarks import figures as figures_room
from r2d_edge.task import CTAS_LEVELS, LabelSet
from train.data import Example

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "train" / "corpora" / "ctas_notes"
RESULTS = ROOT / "benchmarks" / "results" / "baseline.json"
CTAS = LabelSet(CTAS_LEVELS, "ordered")
PAIR = LabelSet(("ill", "well"), "ordered")
WORDS = {"ill": ("crushing chest pain", "grey and sweating"), "well": ("mild cold", "wants a letter")}


def rows(part, count):
    with (CORPUS / f"{part}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines][:count]


def write(path, items):
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(baseline.main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    validation = rows("validation", 40)
    for row in validation:
        row["label_nurse"] = row["label"]
    validation[0]["label_nurse"] = CTAS_LEVELS[CTAS.index(validation[0]["label"]) - 1]
    paths = {
        "a": write(folder / "a.jsonl", rows("train", 120)),
        "b": write(folder / "b.jsonl", rows("train", 240)[120:]),
        "validation": write(folder / "validation.jsonl", validation),
    }
    return paths, validation


@pytest.fixture(scope="module")
def report(parts, tmp_path_factory):
    paths, _ = parts
    out = tmp_path_factory.mktemp("out") / "results" / "baseline.json"
    arguments = ["--train", paths["a"], "--train", paths["b"], "--validation", f"a={paths['validation']}"]
    arguments += ["--no-bertscore", "-o", out]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text(encoding="utf-8")), done.output


def test_report(parts, report):
    paths, validation = parts
    data, printed = report
    judged = data["results"]["a"]
    assert set(judged) == {"majority", "nurse", "per set", "pooled", "reference"}
    common = max(CTAS_LEVELS, key=[row["label"] for row in rows("train", 120)].count)
    share = sum(row["label"] == common for row in validation) / 40
    assert judged["majority"]["label"]["accuracy"] == round(share, 4)
    nurse = judged["nurse"]["label"]
    assert (nurse["accuracy"], nurse["over_triage"], nurse["under_triage"]) == (round(39 / 40, 4), round(1 / 40, 4), 0)
    for variant in ("per set", "pooled"):
        label = judged[variant]["label"]
        low, high = label["macro_f1_interval"]
        assert judged["majority"]["label"]["macro_f1"] < low < label["macro_f1"] < high
        assert 0 < label["ece"] < 1
        assert judged[variant]["rationale"]["rows"] == 40
    found, reference = judged["pooled"]["rationale"], judged["reference"]["rationale"]
    assert found["unsupported_term_rate"] > reference["unsupported_term_rate"]
    assert found["unsupported_number_share"] > reference["unsupported_number_share"]
    digest = hashlib.sha256(paths["b"].read_bytes()).hexdigest()
    assert data["datasets"]["train"]["b"] == {"file": "b.jsonl", "rows": 120, "sha256": digest}
    assert data["settings"]["seed"] == 13
    assert "scikit-learn" in data["versions"]
    assert f"{judged['pooled']['label']['macro_f1']:.3f}" in printed


def toy(labels, start=0):
    return [
        Example(f"{start + n}", f"{WORDS[label][n % 2]} number {start + n}", label, {"llm": f"because {start + n}"})
        for n, label in enumerate(labels)
    ]


def test_a_fine_tuned_encoder_stands_beside_the_baselines(parts, tmp_path):
    from tests.tiny_models import write_tiny_encoder
    from train.classifier import ClassifierModel, ClassifierRecipe, train_classifier

    paths, validation = parts
    recipe = ClassifierRecipe(
        checkpoint=str(write_tiny_encoder(tmp_path / "encoder")),
        output=tmp_path / "classifier",
        train=[paths["a"]],
        validation={"validation": paths["validation"]},
        labels=list(CTAS_LEVELS),
        max_input=96,
        epochs=0.5,
        evaluations=1,
    )
    folder = train_classifier(recipe)
    report = baseline.measure({"a": paths["a"]}, {"v": paths["validation"]}, CTAS, classifier=folder)
    found = report["results"]["v"]["classifier"]
    answers = ClassifierModel(folder).answer([row["text"] for row in validation], rationales=False)
    right = [answer.label == row["label"] for answer, row in zip(answers, validation, strict=True)]
    assert found["label"]["accuracy"] == pytest.approx(np.mean(right))
    assert found["model"].startswith("classifier sha256:")
    with pytest.raises(ValueError, match="labels are resuscitation"):
        baseline.measure(
            {"a": paths["a"]}, {"v": paths["validation"]}, LabelSet(CTAS_LEVELS[::-1], "ordered"), classifier=folder
        )


def test_the_nearest_note_lends_its_rationale():
    train = toy(["ill", "well"] * 10)
    train[4] = Example("4", train[4].text, "ill", {})
    model = baseline.Baseline(train, PAIR, seed=1)
    assert model.nearest([train[7].text, train[12].text], "llm") == ["because 7", "because 12"]
    assert model.nearest([train[4].text], "llm") != ["because 4"]


def test_probabilities_and_a_label_that_training_never_saw():
    labels = LabelSet(("dying", "ill", "well"), "ordered")
    model = baseline.Baseline(toy(["ill", "well"] * 10), labels, seed=1)
    found = model.probabilities([WORDS["ill"][0], WORDS["well"][1]])
    assert found.sum(axis=1) == pytest.approx([1, 1])
    assert found[:, 0].tolist() == [0, 0]
    assert found.argmax(axis=1).tolist() == [1, 2]


def test_choice_repeats_and_has_a_figure_to_show():
    examples = toy(["ill", "well", "well"] * 8)
    texts, gold = [example.text for example in examples], figures_room.label_indices(examples, PAIR)
    choice = baseline.choose(texts, gold, 2, seed=3)
    assert choice == baseline.choose(texts, gold, 2, seed=3)
    assert choice.macro_f1 == 1.0
    assert choice.strength in baseline.STRENGTHS


def test_numbers_stay_words():
    vectorizer = baseline._vectorizer().fit(["Pain 7/10, T 38.5, 3 kids; BP 140/90."])
    assert {"7/10", "38.5", "3", "140/90", "t 38.5"} <= set(vectorizer.get_feature_names_out())


def test_undefined_figures_are_null(tmp_path):
    gold = np.zeros(3, dtype=np.int64)
    figures = figures_room.label_figures(gold, gold, 5, seed=1)
    figures_room.write_report({"label": figures}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["label"]["quadratic_kappa"] is None


def test_equal_runs_write_equal_files(parts, tmp_path):
    paths, _ = parts
    written = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.json"
        run("--train", paths["a"], "--validation", paths["validation"], "--no-bertscore", "-o", out)
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_what_is_wrong_is_said(parts, tmp_path):
    paths, validation = parts
    bare = write(tmp_path / "bare.jsonl", [{**row, "rationales": {}} for row in validation])
    twice = run("--train", paths["a"], "--train", f"a={paths['b']}", "--validation", paths["validation"])
    assert (twice.exit_code, "given twice" in twice.output) == (2, True)
    overlap = run("--train", paths["validation"], "--validation", paths["validation"], "--no-bertscore")
    assert (overlap.exit_code, "ids that occur in both parts" in overlap.output) == (1, True)
    absent = run("--train", tmp_path / "none.jsonl", "--validation", paths["validation"])
    assert (absent.exit_code, "there is no file" in absent.output) == (2, True)
    silent = run("--train", paths["a"], "--validation", bare, "--no-bertscore")
    assert (silent.exit_code, "40 rows of validation set 'bare' have no 'llm' rationale" in silent.output) == (1, True)


def test_the_recorded_figures_are_of_this_corpus():
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    for part in ("train", "validation"):
        digest = hashlib.sha256((CORPUS / f"{part}.jsonl").read_bytes()).hexdigest()
        assert recorded["datasets"][part]["ctas"]["sha256"] == digest
    assert recorded["settings"]["token_pattern"] == baseline.TOKENS
    assert recorded["settings"]["strengths"] == list(baseline.STRENGTHS)
