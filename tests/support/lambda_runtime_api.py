"""A server of AWS Lambda's runtime API for one function process: hands out invocations and collects their results.

Source: Lambda developer guide, "Using the Lambda runtime API for custom runtimes" (2018-06-01).
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

_PREFIX = "/2018-06-01/runtime"
_FUNCTION = {
    "AWS_LAMBDA_FUNCTION_NAME": "warmstart",
    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "2048",
    "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/warmstart",
    "AWS_LAMBDA_LOG_STREAM_NAME": "2025/06/04/[$LATEST]0123456789abcdef",
}


@dataclass
class RuntimeApi:
    """The runtime API and the function's process that polls it.

    Args:
        address: the API's host and port.
        process: the function's process, once it is started.
        init_errors: the initialisation errors that the function reported.
        waiting: invocations that the function has not taken: (request id, event, deadline in Unix time).
        ended: results: (request id, ``response`` or ``error``, content).
    """

    address: str = ""
    process: subprocess.Popen[str] | None = None
    init_errors: list[dict[str, Any]] = field(default_factory=list)
    waiting: queue.Queue[tuple[str, bytes, float]] = field(default_factory=queue.Queue)
    ended: queue.Queue[tuple[str, str, Any]] = field(default_factory=queue.Queue)

    def invoke(self, event: Any, seconds: float = 60.0) -> tuple[str, Any]:
        """Invoke the function and return ``response`` or ``error``, and the content.

        Args:
            event: the event.
            seconds: the function's time limit.
        """
        request_id = str(uuid4())
        self.waiting.put((request_id, json.dumps(event).encode(), time.time() + seconds))
        found, kind, content = self.ended.get(timeout=120)
        assert found == request_id
        return kind, content


@contextmanager
def function(log: Path, **settings: str) -> Iterator[RuntimeApi]:
    """Start a function's process as Lambda does in a container image, and yield its API.

    Args:
        log: the file for its output.
        settings: additional environment variables.
    """
    api = RuntimeApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    api.address = f"127.0.0.1:{server.server_port}"
    environment = os.environ | _FUNCTION | {"AWS_LAMBDA_RUNTIME_API": api.address} | settings
    command = [sys.executable, "-m", "awslambdaric", "handlers.lambda_function.handler"]
    with log.open("w") as output:
        api.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, text=True)
        try:
            yield api
        finally:
            api.process.kill()
            api.process.wait()
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: RuntimeApi

    def do_GET(self) -> None:
        if self.path != f"{_PREFIX}/invocation/next":
            return self._answer(404)
        request_id, event, deadline = self.api.waiting.get()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(round(deadline * 1e3)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-central-1:123456789012:function:warmstart",
            "Lambda-Runtime-Trace-Id": "Root=1-665f0c1e-3c5e7a9b1d3f5a7c9e1b3d5f;Sampled=0",
        }
        self._answer(200, event, headers)

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == f"{_PREFIX}/init/error":
            self.api.init_errors.append(content)
            return self._answer(202)
        place, request_id, kind = self.path.rsplit("/", 2)
        if place != f"{_PREFIX}/invocation" or kind not in ("response", "error"):
            return self._answer(404)
        self._answer(202)
        self.api.ended.put((request_id, kind, content))

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
