"""Judges: a chat endpoint, a GGUF through llama.cpp, a checkpoint or GGUF through transformers.

All are asked for their most probable answer (temperature 0), and held to the allowed answers while they
write where the backend can do that. Endpoints may answer the same question differently at times all the same.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import importlib.metadata
import ipaddress
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from r2d_edge.base_models import locate
from train.files import file_sha256
from train.judging.rubric import Form, JudgeError, RefusedError

WEAK_BELOW = 7e9  # parameters

_MAX_TOKENS = 64  # the longest allowed answer has about 35
_MAX_RESPONSE = 10_000_000  # bytes
_MAX_WAIT = 60.0  # seconds
_REFUSALS = (400, 413, 422)  # HTTP statuses of a request that is not taken as it is
_SHORT_NAME = re.compile(r"[\w.\-]{1,60}")
_SIZE_LABEL = re.compile(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([KMBT])", re.IGNORECASE)
_HASHED = (".safetensors", ".json", ".jinja", ".model")


class Backend(Protocol):
    """A judge that can be asked.

    Attributes:
        identity: the judge and every option that its answers depend on; JSON-ready, holds no secret.
        parameters: how many it has, None if unknown.
    """

    identity: dict[str, Any]
    parameters: float | None

    def ask(self, prompt: str, form: Form) -> str:
        """What the judge writes; whether that is an allowed answer is for the form to say.

        Raises:
            RefusedError: it does not take this question; others it may.
            JudgeError: it cannot answer; the message holds nothing of the prompt.
        """
        ...


def weakness(backend: Backend) -> str | None:
    """A plain warning about a judge that is small or of unknown size."""
    if backend.parameters is None:
        return (
            "the judge's size is unknown: verdicts of models under about 7 billion parameters are weak evidence; "
            "check a sample by hand"
        )
    if backend.parameters < WEAK_BELOW:
        return (
            f"the judge has {backend.parameters / 1e9:.2g} billion parameters: verdicts of models under about "
            "7 billion are weak evidence, often led by position, length or wording; draw no conclusion from them alone"
        )
    return None


class Endpoint:
    """Any service that speaks OpenAI's chat-completions format, remote or local.

    Args:
        url: the base URL (`https://host/v1`) or the whole one, up to `/chat/completions`.
        api_key: sent as a bearer token; None sends none.
        may_send: consent that notes go to a host other than this machine.
        allow_http: lets notes (and the key) go to another host unencrypted.
        body: more fields for the request, over ours; None as a value removes a field. Services differ:
            some want `max_completion_tokens`, some refuse `temperature`, `seed` or `response_format`.
        parameters: the model's size, where the user knows it.
        timeout: seconds to wait for an answer.
        attempts: how often to try when the service is busy (408, 429), failing (5xx) or cut off.
        backoff: seconds before the second attempt; doubled each time, `Retry-After` is honoured.

    Raises:
        JudgeError: the URL cannot be used, or consent for it is missing.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        may_send: bool = False,
        allow_http: bool = False,
        constrained: bool = True,
        max_tokens: int = _MAX_TOKENS,
        seed: int = 0,
        body: Mapping[str, Any] | None = None,
        parameters: float | None = None,
        timeout: float = 120.0,
        attempts: int = 6,
        backoff: float = 1.0,
    ) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise JudgeError("the endpoint is not a URL") from None
        if parts.scheme not in ("http", "https") or not host:
            raise JudgeError("the endpoint is not an http or https URL")
        if parts.username is not None or parts.password is not None:
            raise JudgeError("the endpoint's URL holds a user name or password: use --api-key-env instead")
        if not is_local(host):
            if not may_send:
                raise JudgeError(
                    f"notes would leave this machine for {host}: say --i-may-send-notes if they may be sent there"
                )
            if parts.scheme == "http" and not allow_http:
                raise JudgeError(f"notes would go to {host} unencrypted: use https, or say --allow-http")
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise JudgeError("the API key is empty or holds blanks or characters that a header cannot carry")
        path = parts.path.rstrip("/")
        if not path.endswith("/chat/completions"):
            path += "/chat/completions"
        self._url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
        self._host = host
        self._key = api_key
        self._timeout, self._attempts, self._backoff = timeout, attempts, backoff
        self._fields = {"model": model, "temperature": 0, "max_tokens": max_tokens, "seed": seed}
        self._body = dict(body or {})
        self._constrained = constrained
        self.parameters = parameters
        self.identity = {
            "backend": "endpoint",
            # Without the query, in which some services take a key.
            "endpoint": urlunsplit((parts.scheme, parts.netloc, path, "", "")),
            **self._fields,
            "constrained": constrained,
            "body": self._body,
        }
        # A redirect could carry notes and key elsewhere, and so could a proxy that stands before this machine.
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if is_local(host):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, prompt: str, form: Form) -> str:
        body: dict[str, Any] = {**self._fields, "messages": [{"role": "user", "content": prompt}]}
        if self._constrained:
            schema = {"name": form.name, "strict": True, "schema": form.schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body = {key: value for key, value in {**body, **self._body}.items() if value is not None}
        return self._content(self._post(json.dumps(body).encode()))

    def _post(self, data: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "r2d-edge"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        wait = self._backoff
        for attempt in range(1, self._attempts + 1):
            asked = 0.0
            try:
                request = urllib.request.Request(self._url, data, headers, method="POST")
                with self._opener.open(request, timeout=self._timeout) as response:
                    content: bytes = response.read(_MAX_RESPONSE + 1)
                if len(content) > _MAX_RESPONSE:
                    raise JudgeError(f"{self._host} answered with more than {_MAX_RESPONSE} bytes")
                return content
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"{self._host} answered with status {error.code}{_reason(error)}"
                    asked = _seconds(error.headers.get("Retry-After"))
                if error.code not in (408, 429) and error.code < 500:
                    raise (RefusedError if error.code in _REFUSALS else JudgeError)(problem) from None
            except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
                cause = getattr(error, "reason", error)
                problem = f"{self._host} did not answer ({type(cause).__name__})"
                if isinstance(cause, (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)):
                    raise JudgeError(problem) from None
            if attempt < self._attempts:
                time.sleep(min(max(wait, asked), _MAX_WAIT))
                wait *= 2
        raise JudgeError(f"{problem}, {self._attempts} times")

    def _content(self, response: bytes) -> str:
        try:
            content = json.loads(response)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, LookupError, TypeError):
            content = 0
        if content is None:  # the model declines: no answer, which the form will count as unparsable
            return ""
        if not isinstance(content, str):
            raise JudgeError(f"{self._host} does not answer in the chat-completions format")
        return content


class LlamaCpp:
    """A GGUF file through llama-cpp-python (extra `gguf`), with the chat template that the file holds.

    Args:
        path: the file.
        context: tokens that prompt and answer may have together.
    """

    def __init__(
        self,
        path: Path,
        *,
        constrained: bool = True,
        max_tokens: int = _MAX_TOKENS,
        seed: int = 0,
        context: int = 4096,
        parameters: float | None = None,
    ) -> None:
        # By name: this room's extra does not declare it, as it has to be compiled.
        try:
            llama_cpp = importlib.import_module("llama_cpp")
        except ImportError:
            raise JudgeError(
                "llama-cpp-python is not installed: pip install 'r2d-edge[gguf]' (it compiles for some minutes), "
                "or read the file with --transformers"
            ) from None
        _check_file(path)
        self._constrained, self._max_tokens, self._seed = constrained, max_tokens, seed
        try:
            self._model = llama_cpp.Llama(
                model_path=str(path), n_ctx=context, n_gpu_layers=-1, seed=seed, verbose=False
            )
        except (ValueError, RuntimeError) as error:
            raise JudgeError(f"llama.cpp cannot read {path.name} ({type(error).__name__})") from None
        if "tokenizer.chat_template" not in self._model.metadata:  # the library would then take that of Llama 2
            raise JudgeError(f"{path.name} has no chat template: only instruction-tuned models can judge")
        label = _SIZE_LABEL.fullmatch(str(self._model.metadata.get("general.size_label", "")))
        self.parameters = parameters or (_size(label) if label else None)
        self.identity = {
            "backend": "llama.cpp",
            "library": f"llama-cpp-python {llama_cpp.__version__}",
            "file": path.name,
            "sha256": file_sha256(path),
            "context": context,
            "max_tokens": max_tokens,
            "seed": seed,
            "constrained": constrained,
        }

    def ask(self, prompt: str, form: Form) -> str:
        options: dict[str, Any] = {}
        if self._constrained:
            options["response_format"] = {"type": "json_object", "schema": form.schema()}
        # What is in memory of the question before would be used for this one; read in other pieces, the same tokens
        # are rounded otherwise, and the answer would depend on the order of the questions.
        self._model.reset()
        try:
            completion = self._model.create_chat_completion(
                messages=[{"role": "user", "content": prompt}],
                temperature=0.0,
                repeat_penalty=1.0,
                max_tokens=self._max_tokens,
                seed=self._seed,
                **options,
            )
        except (ValueError, RuntimeError) as error:  # whose message may hold the prompt
            if "exceed context window" in str(error):
                raise RefusedError("the prompt is longer than the judge's context: say --context with more") from None
            raise JudgeError(f"llama.cpp cannot answer ({type(error).__name__})") from None
        return completion["choices"][0]["message"]["content"] or ""


class Transformers:
    """A checkpoint folder or a GGUF file through transformers, with its chat template.

    Held to the allowed answers, it writes the most probable token of those that can still lead to one.

    Args:
        name: a folder, a .gguf file or `package:NAME`; hub names are not looked up.
    """

    def __init__(
        self,
        name: str,
        *,
        constrained: bool = True,
        max_tokens: int = _MAX_TOKENS,
    ) -> None:
        import torch
        import transformers

        from train.checkpoint import load_model, load_tokenizer

        folder, file = locate(name, local=True)
        path = Path(folder, file or "")
        cuda = torch.cuda.is_available()
        dtype = torch.bfloat16 if cuda else torch.float32
        tokenizer = load_tokenizer(name)
        if not tokenizer.chat_template:
            raise JudgeError(f"{path.name} has no chat template: only instruction-tuned models can judge")
        self._model = load_model(name, decoder_only=True, dtype=dtype).eval().to("cuda" if cuda else "cpu")
        end = self._model.generation_config.eos_token_id
        self._ends = [end] if isinstance(end, int) else list(end or [tokenizer.eos_token_id])
        # A model's own settings for sampling (penalties and the like) are not wanted here.
        self._model.generation_config = transformers.GenerationConfig(
            do_sample=False, eos_token_id=self._ends, pad_token_id=self._ends[0], max_new_tokens=max_tokens
        )
        self._tokenizer = tokenizer
        self._constrained, self._max_tokens = constrained, max_tokens
        self._allowed: dict[str, dict[tuple[int, ...], list[int]]] = {}
        self.parameters: float | None = float(self._model.num_parameters())
        self.identity = {
            "backend": "transformers",
            "library": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "file": path.name,
            "sha256": file_sha256(path) if file else _folder_sha256(path),
            "dtype": str(dtype).removeprefix("torch."),
            "max_tokens": max_tokens,
            "constrained": constrained,
        }

    def ask(self, prompt: str, form: Form) -> str:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._model.device)
        length = inputs["input_ids"].shape[1]
        room = getattr(self._model.config, "max_position_embeddings", None)
        if room is not None and length + self._max_tokens > room:
            raise RefusedError(f"the prompt has {length} tokens, the judge's context ends at {room}")
        options: dict[str, Any] = {}
        if self._constrained:
            allowed = self._next_tokens(form)
            options["prefix_allowed_tokens_fn"] = lambda _, ids: allowed[tuple(ids[length:].tolist())]
            options["max_new_tokens"] = max(map(len, allowed)) + 1
        with torch.inference_mode():
            written = self._model.generate(**inputs, **options)[0, length:]
        return str(self._tokenizer.decode(written, skip_special_tokens=True))

    def _next_tokens(self, form: Form) -> dict[tuple[int, ...], list[int]]:
        """For each beginning of an allowed answer, the tokens that may come next."""
        if form.name not in self._allowed:
            found: dict[tuple[int, ...], set[int]] = {}
            for answer in form.answers():
                ids = (*self._tokenizer.encode(answer, add_special_tokens=False), self._ends[0])
                for end in range(len(ids)):
                    found.setdefault(ids[:end], set()).add(ids[end])
            self._allowed[form.name] = {beginning: sorted(tokens) for beginning, tokens in found.items()}
        return self._allowed[form.name]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def is_local(host: str) -> bool:
    """Whether a host is this machine itself (a neighbour in the network is not)."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _folder_sha256(folder: Path) -> str:
    """One hash over a checkpoint's weights, configuration and tokenizer."""
    files = sorted(path for path in folder.iterdir() if path.suffix in _HASHED)
    lines = (f"{path.name} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise JudgeError(f"there is no file {path}")


def _size(label: re.Match[str]) -> float:
    """Parameters by a GGUF's size label: 135M, 7B, 8x7B."""
    return int(label[1] or 1) * float(label[2]) * {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[label[3].upper()]


def _reason(error: urllib.error.HTTPError) -> str:
    """Code, type and parameter of a service's error; its message is left out, it may quote the prompt."""
    try:
        stated = json.loads(error.read(100_000))["error"]
        found = [f"{key} {stated[key]}" for key in ("code", "type", "param") if stated.get(key) is not None]
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError, http.client.HTTPException):
        return ""
    short = [words for words in found if _SHORT_NAME.fullmatch(words.split(" ", 1)[1])]
    return f" ({', '.join(short)})" if short else ""


def _seconds(text: str | None) -> float:
    """A Retry-After header in seconds; its other form, a date, is not read."""
    return float(text) if text is not None and text.strip().isdecimal() else 0.0
