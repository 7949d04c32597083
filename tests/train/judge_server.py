"""A small server on this machine that speaks OpenAI's chat format; its answers are the test's to choose."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends back; `content` stands in a chat completion unless `raw` replaces the body."""

    content: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


@dataclass
class ChatServer:
    """A running server. `requests` holds what it was sent, in order: path, headers and body."""

    url: str
    answer: Callable[[str], Reply | str]
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def chat_server(answer: Callable[[str], Reply | str]) -> Iterator[ChatServer]:
    """Serves `answer`, which gets the prompt, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append({"path": self.path, "headers": dict(self.headers), "body": body})
            reply = server.answer(body["messages"][0]["content"])
            if isinstance(reply, str):
                reply = Reply(reply)
            message = {"role": "assistant", "content": reply.content}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            data = {"id": "1", "object": "chat.completion", "model": body["model"], "choices": choices}
            content = json.dumps(data).encode() if reply.raw is None else reply.raw
            self.send_response(reply.status)
            for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            server.requests.append({"path": self.path, "headers": dict(self.headers), "body": None})
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = ChatServer(f"http://127.0.0.1:{listener.server_address[1]}/v1", answer)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def texts_of(prompt: str) -> dict[str, str]:
    """The texts between the marks of a prompt, by their headings."""
    mark = prompt.split("begin with ")[1].split(".")[0]
    found = {}
    for part in prompt.split(f"\n{mark} ")[1:]:
        heading, _, text = part.partition("\n")
        if not heading.startswith("END OF"):
            found[heading] = text
    return found
