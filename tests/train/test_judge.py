import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tests.train.judge_server import Reply, chat_server, texts_of
from train.cli import main
from train.data import DatasetError
from train.judging.backends import Endpoint
from train.judging.cache import AnswerCache, answer_key
from train.judging.judge import judge_pairs, judge_scores, outcome, read_cases, sign_test, summarize_pairs
from train.judging.rubric import CRITERIA, PAIR_FORM, SCORE_FORM, JudgeError, Question

ROOT = Path(__file__).parents[2]
NOTES = {f"n{number}": f"secret note {number} about a leg" for number in range(6)}
SHORT, LONG = "Cold leg.", "A cold white leg since two hours."


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_records(path, rationales):
    rows = [
        {"id": row, "gold": "emergent", "label": "urgent", "probabilities": {}, "rationale": text, "reference": None}
        for row, text in zip(NOTES, rationales, strict=False)
    ]
    return write_lines(path, rows)


@pytest.fixture
def data(tmp_path):
    rows = [{"id": row, "text": note, "label": "emergent"} for row, note in NOTES.items()]
    return write_lines(tmp_path / "notes.jsonl", rows)


@pytest.fixture
def cache(tmp_path):
    return AnswerCache(tmp_path / "answers.jsonl")


def judge_at(server, **options):
    return Endpoint(server.url, "judge-1", backoff=0.01, **options)


def likes_length(prompt):
    """A judge without bias: the longer rationale is better; its scores are the number of words."""
    texts = texts_of(prompt)
    if "RATIONALE" in texts:
        return json.dumps(dict.fromkeys(CRITERIA, min(5, len(texts["RATIONALE"].split()) or 1)))
    a, b = len(texts["RATIONALE A"]), len(texts["RATIONALE B"])
    return json.dumps({"better": "tie" if a == b else "A" if a > b else "B"})


# Pairs, by hand.


@pytest.mark.parametrize(
    ("a_first", "b_first", "expected"),
    [
        ("a", "a", "a"),
        ("b", "b", "b"),
        ("tie", "tie", "tie"),
        ("a", "b", "tie"),
        ("b", "a", "tie"),
        ("a", "tie", "tie"),
        ("tie", "b", "tie"),
        (None, "a", None),
        ("a", None, None),
        (None, None, None),
    ],
)
def test_a_win_needs_both_orders(a_first, b_first, expected):
    assert outcome(a_first, b_first) == expected


def test_figures_of_pairs_by_hand():
    verdicts = [
        ("a", "a"),
        ("a", "a"),
        ("a", "a"),
        ("a", "a"),
        ("b", "b"),
        ("a", "b"),  # the first place both times
        ("a", "b"),
        ("b", "a"),  # the second place both times
        ("tie", "tie"),
        ("tie", "b"),
        (None, "a"),
    ]
    found = summarize_pairs(verdicts, seed=1)
    assert (found["wins_a"], found["wins_b"], found["unjudged"]) == (4, 1, 1)
    assert found["ties"] == {"all": 5, "agreed": 1, "disagreed": 4}
    assert found["preference_a"]["value"] == pytest.approx((4 + 5 / 2) / 10)
    assert found["sign_test_p"] == pytest.approx(2 * (1 + 5) / 32)
    assert found["self_agreement"]["value"] == pytest.approx(6 / 10)
    # First place: the four wins of a and the one of b name each place once; then 2 + 2, 0, 0 and 1.
    assert {key: found["position"][key] for key in ("first", "second", "neither")} == {
        "first": 5 + 4 + 1,
        "second": 5 + 2,
        "neither": 3,
    }
    assert found["position"]["first_share"]["value"] == pytest.approx(10 / 17)
    assert found["self_agreement"]["low"] < 6 / 10 < found["self_agreement"]["high"]


def test_nothing_judged():
    found = summarize_pairs([(None, "a"), (None, None)], seed=1)
    assert found["unjudged"] == 2
    assert found["sign_test_p"] == 1
    nothing = {"value": None, "low": None, "high": None}
    assert found["preference_a"] == found["self_agreement"] == found["position"]["first_share"] == nothing


VERDICTS = st.sampled_from(["a", "b", "tie", None])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(VERDICTS, VERDICTS), max_size=12))
def test_exchanging_the_files_exchanges_the_wins(verdicts):
    other = {"a": "b", "b": "a", "tie": "tie", None: None}
    there = summarize_pairs(verdicts, seed=1)
    # With the files exchanged, what was asked second is asked first.
    back = summarize_pairs([(other[b_first], other[a_first]) for a_first, b_first in verdicts], seed=1)
    assert (there["wins_a"], there["wins_b"]) == (back["wins_b"], back["wins_a"])
    for same in ("ties", "unjudged", "sign_test_p", "self_agreement", "position"):
        assert there[same] == back[same]


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_the_sign_test_is_the_binomial_test(wins, losses):
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_many_wins_have_a_finite_p():
    assert 0 <= sign_test(1200, 3) < 1e-300
    assert sign_test(1200, 1200) == 1


# Pairs and scores, asked.


def test_pairs_asked_in_both_orders(tmp_path, data, cache):
    a = write_records(tmp_path / "a.jsonl", [LONG, LONG, SHORT, SHORT, LONG, None])
    b = write_records(tmp_path / "b.jsonl", [SHORT, SHORT, LONG, SHORT, SHORT, LONG])
    with chat_server(likes_length) as server:
        found = judge_pairs(a, b, data, judge_at(server), cache)
    assert (found["wins_a"], found["wins_b"], found["ties"]["all"]) == (3, 2, 1)
    assert found["self_agreement"] == {"value": 1, "low": 1, "high": 1}
    assert found["position"]["first_share"]["value"] == 0.5
    assert found["rows"] == {"available": 6, "judged": 6, "blank_rationales": {"a": 1, "b": 0}}
    assert found["answers"] == {"asked": 12, "refused": 0, "unparsable": 0, "unparsable_share": 0}
    assert found["judgements"][2] == {"id": "n2", "a_first": "b", "b_first": "b", "outcome": "b"}
    assert len(server.requests) == 11  # the pair of two equal rationales is one question
    assert "secret note" not in json.dumps(found)
    assert found["judge"]["model"] == "judge-1"
    assert "size is unknown" in found["warning"]
    shown = [texts_of(request["body"]["messages"][0]["content"]) for request in server.requests[:2]]
    assert shown[0]["RATIONALE A"] == shown[1]["RATIONALE B"] == LONG
    assert shown[0]["RATIONALE B"] == shown[1]["RATIONALE A"] == SHORT
    assert shown[0]["NOTE"] == NOTES["n0"]
    assert shown[0]["CORRECT LABEL"] == "emergent"


def test_a_judge_that_always_names_one_place_gives_no_win(tmp_path, data, cache):
    a = write_records(tmp_path / "a.jsonl", [LONG] * 6)
    b = write_records(tmp_path / "b.jsonl", [SHORT] * 6)
    with chat_server(lambda prompt: '{"better": "B"}') as server:
        found = judge_pairs(a, b, data, judge_at(server), cache)
    assert (found["wins_a"], found["wins_b"]) == (0, 0)
    assert found["ties"] == {"all": 6, "agreed": 0, "disagreed": 6}
    assert found["self_agreement"]["value"] == 0
    assert found["position"]["first_share"]["value"] == 0
    assert found["preference_a"]["value"] == 0.5


def test_who_wrote_a_rationale_is_not_shown(tmp_path, data, cache):
    a = write_records(tmp_path / "from-the-great-model.jsonl", [LONG])
    b = write_records(tmp_path / "from-the-baseline.jsonl", [SHORT])
    with chat_server(likes_length) as server:
        judge_pairs(a, b, data, judge_at(server), cache)
    sent = json.dumps([request["body"] for request in server.requests])
    for name in ("great", "baseline", "urgent", "n0"):  # "urgent" is what the model answered
        assert name not in sent


def test_scores_by_hand(tmp_path, data, cache):
    records = write_records(tmp_path / "a.jsonl", ["one", "one two", "one two", "no json", "one two three four", ""])

    def judge(prompt):
        return "I'd say 4." if "no json" in prompt else likes_length(prompt)

    with chat_server(judge) as server:
        found = judge_scores(records, data, judge_at(server, parameters=7e10), cache)
    assert found["answers"] == {"asked": 6, "refused": 0, "unparsable": 1, "unparsable_share": pytest.approx(1 / 6)}
    assert found["scores"]["complete"]["value"] == pytest.approx((1 + 2 + 2 + 4 + 1) / 5)
    assert found["scores"]["complete"]["counts"] == {"1": 2, "2": 2, "3": 0, "4": 1, "5": 0}
    assert found["scores"]["overall"]["value"] == pytest.approx(2)
    assert found["scores"]["overall"]["low"] < 2 < found["scores"]["overall"]["high"]
    assert found["judgements"][3] == {"id": "n3", "scores": None}
    assert found["rows"]["blank_rationales"] == 1
    assert found["warning"] is None


def test_nothing_that_could_be_read(tmp_path, data, cache):
    records = write_records(tmp_path / "a.jsonl", [LONG] * 3)
    with chat_server(lambda prompt: "4") as server:
        found = judge_scores(records, data, judge_at(server), cache)
    assert found["answers"]["unparsable_share"] == 1
    assert found["scores"]["overall"] == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_does_not_end_the_run(tmp_path, data, status, parallel):
    records = write_records(tmp_path / "a.jsonl", ["one", "one two", "filtered", "one two three", "x", ""])
    path = tmp_path / "answers.jsonl"

    def judge(prompt):
        return Reply(status=status) if "filtered" in prompt else likes_length(prompt)

    with chat_server(judge) as server:
        found = judge_scores(records, data, judge_at(server), AnswerCache(path), parallel=parallel)
        assert len(server.requests) == 6
        again = judge_scores(records, data, judge_at(server), AnswerCache(path), parallel=parallel)
        assert len(server.requests) == 7  # only what was refused is asked again
    assert found == again
    assert found["answers"] == {"asked": 6, "refused": 1, "unparsable": 0, "unparsable_share": 0}
    assert found["judgements"][2] == {"id": "n2", "scores": None}
    assert found["scores"]["overall"]["value"] == pytest.approx((1 + 2 + 3 + 1 + 1) / 5)


def test_a_pair_that_is_refused_is_not_judged(tmp_path, data, cache):
    a, b = write_records(tmp_path / "a.jsonl", [LONG] * 6), write_records(tmp_path / "b.jsonl", [SHORT] * 6)
    with chat_server(lambda prompt: Reply(status=400) if NOTES["n4"] in prompt else likes_length(prompt)) as server:
        found = judge_pairs(a, b, data, judge_at(server), cache)
    assert (found["wins_a"], found["unjudged"], found["answers"]["refused"]) == (5, 1, 2)
    assert found["judgements"][4] == {"id": "n4", "a_first": None, "b_first": None, "outcome": None}


@pytest.mark.parametrize(("rows", "parallel", "most"), [(2, 1, 2), (40, 1, 10), (40, 3, 16)])
def test_a_judge_that_refuses_every_question_is_an_error(tmp_path, cache, rows, parallel, most):
    notes = [{"id": f"n{row}", "text": f"secret note {row}", "label": "emergent"} for row in range(rows)]
    data = write_lines(tmp_path / "many.jsonl", notes)
    records = [{"id": f"n{row}", "gold": "emergent", "rationale": f"because {row}"} for row in range(rows)]
    path = write_lines(tmp_path / "a.jsonl", records)
    with (
        chat_server(lambda prompt: Reply(status=400)) as server,
        pytest.raises(JudgeError, match=r"status 400; the judge refused all of the first \d+ questions") as raised,
    ):
        judge_scores(path, data, judge_at(server), cache, parallel=parallel)
    assert len(server.requests) <= most
    assert "secret" not in str(raised.value)


def test_a_sample_is_drawn_with_the_seed(tmp_path, data):
    a = write_records(tmp_path / "a.jsonl", [f"{number}" for number in range(6)])

    def drawn(seed):
        cases, available = read_cases([a], data, 3, seed)
        assert available == 6
        return [case.id for case in cases]

    assert drawn(1) == drawn(1) == sorted(drawn(1))
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 1
    turned = write_lines(tmp_path / "turned.jsonl", [json.loads(line) for line in reversed(a.read_text().splitlines())])
    cases, _ = read_cases([turned], data, 3, 1)
    assert sorted(case.id for case in cases) == drawn(1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{secret note", "line 1: not JSON"),
        ('["secret note"]', "line 1: not a record"),
        ('{"id": "n0", "gold": "emergent"}', "line 1: not a record"),
        ('{"id": 5, "gold": "emergent", "rationale": "x"}', "line 1: not a record"),
        ('{"id": "n0", "gold": "emergent", "rationale": null}', "no rationales"),
        ("", "no record"),
        ('{"id": "n0", "gold": "emergent", "rationale": "x"}\n' * 2, "line 2: id 'n0' stands twice"),
        ('{"id": "n9", "gold": "emergent", "rationale": "x"}', "does not hold the notes of these rows: n9"),
        ('{"id": "n0", "gold": "urgent", "rationale": "x"}', "different gold labels for: n0"),
    ],
)
def test_records_that_do_not_fit(tmp_path, data, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(JudgeError, match=message) as raised:
        read_cases([path], data, None, 1)
    assert "secret" not in str(raised.value)


def test_files_of_different_rows_are_no_pair(tmp_path, data):
    a = write_records(tmp_path / "a.jsonl", ["x"] * 6)
    b = write_records(tmp_path / "b.jsonl", ["x"])
    with pytest.raises(JudgeError, match="only in one: n1, n2, n3, n4, n5"):
        read_cases([a, b], data, None, 1)
    with pytest.raises(DatasetError):
        read_cases([a], write_lines(tmp_path / "bad.jsonl", [{"id": "n0", "text": "", "label": "x"}]), None, 1)


# The cache.


def test_a_cut_run_goes_on(tmp_path, data):
    records = write_records(tmp_path / "a.jsonl", [f"{'x ' * number}" for number in range(6)])
    path = tmp_path / "answers.jsonl"
    asked = []

    def fails_at_the_fourth(prompt):
        asked.append(prompt)
        return Reply(status=401) if len(asked) == 4 else likes_length(prompt)

    with chat_server(fails_at_the_fourth) as server:
        judge = judge_at(server)
        with pytest.raises(JudgeError, match=r"^row n3: 127\.0\.0\.1 answered with status 401$"):
            judge_scores(records, data, judge, AnswerCache(path))
        assert len(AnswerCache(path)) == 3
        resumed = judge_scores(records, data, judge, AnswerCache(path))
        assert len(asked) == 4 + 3
        again = judge_scores(records, data, judge, AnswerCache(path))
        whole = judge_scores(records, data, judge, AnswerCache(tmp_path / "fresh.jsonl"), parallel=3)
        assert len(asked) == 7 + 6
    assert resumed == again == whole


def test_a_killed_run_goes_on(tmp_path, data):
    """A process that is killed while the judge thinks over the fourth question."""
    records = write_records(tmp_path / "a.jsonl", [f"{'x ' * number}" for number in range(6)])
    output, cache = tmp_path / "judge.json", tmp_path / "answers.jsonl"
    asked, reached, killed = [], threading.Event(), threading.Event()

    def waits_at_the_fourth(prompt):
        asked.append(prompt)
        if len(asked) == 4:
            reached.set()
            killed.wait(300)
        return likes_length(prompt)

    with chat_server(waits_at_the_fourth) as server:
        command = ["judge", "--score", records, "--data", data, "-o", output, "--cache", cache]
        command += ["--endpoint", server.url, "--model", "judge-1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "train", *map(str, command)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert reached.wait(300)
        finally:
            process.kill()
            process.communicate()
            killed.set()
        assert not output.exists()
        kept = cache.read_bytes()
        assert kept.count(b"\n") == 3
        cache.write_bytes(kept[:-9])  # as if the third line had been cut, too
        result = CliRunner().invoke(main, [*map(str, command)])
        assert result.exit_code == 0, result.output
    assert len(asked) == 4 + 4
    assert asked[4:] == asked[2:3] + asked[3:4] + asked[6:]
    assert len(json.loads(output.read_text(encoding="utf-8"))["judgements"]) == 6
    assert len(AnswerCache(cache)) == 6


def test_a_cache_line_that_was_cut_is_passed_over(tmp_path):
    path = tmp_path / "answers.jsonl"
    cache = AnswerCache(path)
    cache.put("k1", "ä\n1")
    cache.put("k2", "2")
    path.write_bytes(path.read_bytes()[:-3])
    cut = AnswerCache(path)
    assert (cut.get("k1"), cut.get("k2")) == ("ä\n1", None)
    cut.put("k3", "3")
    whole = AnswerCache(path)
    assert (whole.get("k1"), whole.get("k2"), whole.get("k3"), len(whole)) == ("ä\n1", None, "3", 2)


def test_an_answer_belongs_to_its_judge_and_question():
    question = Question("1", "prompt", SCORE_FORM)
    keys = {
        answer_key({"model": "m", "seed": 1}, question),
        answer_key({"model": "m", "seed": 2}, question),
        answer_key({"model": "n", "seed": 1}, question),
        answer_key({"model": "m", "seed": 1}, Question("1", "prompt.", SCORE_FORM)),
        answer_key({"model": "m", "seed": 1}, Question("1", "prompt", PAIR_FORM)),
    }
    assert len(keys) == 5
    assert answer_key({"seed": 1, "model": "m"}, Question("2", "prompt", SCORE_FORM)) in keys


# The command.


@pytest.fixture
def run(tmp_path, data):
    def invoke(*arguments, output="judge.json"):
        command = ["judge", "--data", data, "-o", tmp_path / output, *arguments]
        result = CliRunner().invoke(main, [str(argument) for argument in command])
        assert "secret note" not in result.output
        return result

    return invoke


def test_the_command_writes_and_prints(tmp_path, run, monkeypatch):
    a = write_records(tmp_path / "a.jsonl", [LONG] * 6)
    b = write_records(tmp_path / "b.jsonl", [SHORT] * 6)
    monkeypatch.setenv("JUDGE_KEY", "sk-secret\n")
    monkeypatch.setenv("COLUMNS", "200")
    with chat_server(lambda prompt: Reply(status=400) if "filtered" in prompt else likes_length(prompt)) as server:
        where = ["--endpoint", server.url, "--model", "judge-1", "--api-key-env", "JUDGE_KEY", "--limit", 4]
        paired = run("--pair", a, b, *where)
        again = run("--pair", a, b, *where, output="again.json")
        scored = run("--score", a, *where, "--billions", 70, output="score.json")
        refused = run("--score", write_records(tmp_path / "c.jsonl", ["filtered", "two"]), *where, output="c.json")
    assert paired.exit_code == scored.exit_code == again.exit_code == 0, paired.output
    assert {request["headers"]["Authorization"] for request in server.requests} == {"Bearer sk-secret"}
    assert (tmp_path / "judge.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    found = json.loads((tmp_path / "judge.json").read_text(encoding="utf-8"))
    assert found["wins_a"] == 4
    assert "sk-secret" not in json.dumps(found) + paired.output + (tmp_path / "judge.answers.jsonl").read_text()
    assert "warning: the judge's size is unknown" in paired.stderr
    assert "agreement with itself under swapping" in paired.stdout
    assert "4 of 6 rows; 0 of 8 answers unparsable" in paired.stdout
    assert "no invented facts" in scored.stdout
    assert "refused" not in scored.stdout
    assert "0 of 2 answers unparsable (0.0%); 1 questions refused" in " ".join(refused.stdout.split())
    assert "warning" not in scored.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gguf", "x.gguf"], "--score FILE or --pair FILE FILE"),
        (["--score", "A", "--pair", "A", "A", "--gguf", "x.gguf"], "--score FILE or --pair FILE FILE"),
        (["--score", "A"], "name one judge"),
        (["--score", "A", "--gguf", "x.gguf", "--transformers", "y"], "name one judge"),
        (["--score", "A", "--endpoint", "http://localhost/v1"], "needs --model"),
        (["--score", "A", "--endpoint", "https://example.com/v1", "--model", "m"], "say --i-may-send-notes"),
        (
            ["--score", "A", "--endpoint", "http://localhost/v1", "--model", "m", "--api-key-env", "sk-secret"],
            "variable that --api-key-env names is not set",
        ),
        (["--score", "A", "--endpoint", "http://localhost/v1", "--model", "m", "--body", "[]"], "not a JSON object"),
        (["--score", "A", "--transformers", "nowhere"], "nowhere is neither a checkpoint folder"),
    ],
)
def test_wrong_use_is_explained(tmp_path, run, arguments, message):
    records = write_records(tmp_path / "a.jsonl", [LONG])
    result = run(*(records if argument == "A" else argument for argument in arguments))
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
    assert "sk-secret" not in result.output
    assert not (tmp_path / "judge.json").exists()
