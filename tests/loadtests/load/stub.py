"""An OpenAI-compatible server that does no work: it streams ``w`` tokens at once and counts prompts by their words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

TEMPLATE_TOKENS = 10


class StubServer(ThreadingHTTPServer):
    """The server, with what it was asked.

    Args:
        delay: seconds before each answer, with one answer at a time if ``serial``.
        pause: seconds before each piece of a stream.
        fails: paths that answer 500.
    """

    daemon_threads = True

    def __init__(
        self, delay: float = 0.0, serial: bool = False, pause: float = 0.0, fails: tuple[str, ...] = ()
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay, self.serial, self.pause, self.fails = delay, serial, pause, fails
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.turn = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def stub_server(**how: Any) -> Iterator[StubServer]:
    with StubServer(**how) as server:
        thread = Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubServer

    def do_GET(self) -> None:
        self._json(200, {"data": [{"id": "stub"}]} if self.path == "/v1/models" else {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if self.path in self.server.fails:
            return self._json(500, {"error": "planted"})
        if self.server.serial:
            with self.server.turn:
                time.sleep(self.server.delay)
        else:
            time.sleep(self.server.delay)
        texts = [message["content"] for message in body.get("messages", ())] or [body.get("prompt") or body["input"]]
        read = sum(len(text.split()) for text in texts) + TEMPLATE_TOKENS * ("messages" in body)
        written = body.get("max_tokens", body.get("max_new_tokens", 0))
        text = '{"a": 1}' if "response_format" in body else "w " * written
        usage = {"prompt_tokens": read, "completion_tokens": written}
        if not body.get("stream"):
            message = {"content": text} if "messages" in body else None
            choice = {"index": 0, "finish_reason": "stop", **({"message": message} if message else {"text": text})}
            return self._json(200, {"choices": [choice], "usage": usage})
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = [text] if "response_format" in body else ["w "] * written
        try:
            for piece in pieces:
                time.sleep(self.server.pause)
                self._event({"choices": [{"delta": {"content": piece}, "text": piece, "finish_reason": None}]})
            self._event({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": usage})
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has hung up
            self.close_connection = True

    def _event(self, event: dict[str, Any]) -> None:
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass
