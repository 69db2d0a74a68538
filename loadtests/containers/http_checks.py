"""Requests to a service in a container, by the standard library alone."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from loadtests.containers.engine import ContainerFault

QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
_POLL_SECONDS = 0.05


class LocalClient:
    """A client of a port on the loopback interface.

    Args:
        port: the port.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def open(self, path: str, payload: Any = None, seconds: float = 120) -> http.client.HTTPResponse:
        """Send a request and return the response once its head is here. OSError, HTTPException: there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        body = None if payload is None else json.dumps(payload)
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def status(self, path: str) -> int:
        """Return the status of a GET; 0 without an answer."""
        try:
            with self.open(path, seconds=10) as response:
                response.read()
                return response.status
        except (OSError, http.client.HTTPException):
            return 0

    def wait(self, path: str, seconds: float = 120) -> None:
        """Wait until a GET is answered 200.

        Raises:
            ContainerFault: it is not in time.
        """
        wait_for(lambda: self.status(path) == 200, f"{path} on port {self.port} is not 200", seconds)

    def ask(self) -> None:
        """Ask a question.

        Raises:
            ContainerFault: the answer is not right.
        """
        with self.open("/chat/completions", {**QUESTION, "max_tokens": 16}) as response:
            text = response.read().decode()
        if response.status != 200 or "Paris" not in text:
            raise ContainerFault(f"the answer is {response.status}: {text}")

    def first_token(self) -> None:
        """Ask for a stream, and return when its first token is here."""
        with self.open("/chat/completions", {**QUESTION, "max_tokens": 8, "stream": True}) as response:
            while line := response.readline():
                if b'"content":"' in line and b'"content":""' not in line:
                    return
        raise ContainerFault("a stream has no token")

    def stream_over(self, stop: Callable[[], object]) -> None:
        """Begin a stream, call a function that stops the service, and check that the stream ends whole.

        Raises:
            ContainerFault: it was cut.
        """
        payload = {"prompt": "Once upon a time", "stream": True, "max_new_tokens": 64}
        with self.open("/generate", payload) as response:
            response.readline()
            stop()
            try:
                rest = response.read()
            except http.client.IncompleteRead as error:
                raise ContainerFault(f"a stop cut a stream after {len(error.partial)} bytes") from error
        if rest.count(b"data:") < 60 or not rest.endswith(b"data: [DONE]\n\n"):
            raise ContainerFault(f"a stop cut a stream: {rest[-200:]!r}")


def wait_for(condition: Callable[[], object], fault: str, seconds: float = 120) -> None:
    """Wait until a condition holds.

    Raises:
        ContainerFault: it does not in time; the message begins with ``fault``.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise ContainerFault(f"{fault} after {seconds:.0f} s")
        time.sleep(_POLL_SECONDS)


def check(condition: object, fault: str) -> None:
    """Raise a ``ContainerFault`` unless a condition holds."""
    if not condition:
        raise ContainerFault(fault)
