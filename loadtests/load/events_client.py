"""Sends events through ``loadtests.load.events_bridge``, which runs in the service's environment."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from loadtests.load.answer import has_text
from loadtests.load.http_answer import BadAnswer, Piece
from loadtests.load.launch import package_environment

_END_SECONDS = 10.0


class BridgedEvents:
    """Sends events of any number of threads through one broker.

    Args:
        python: an interpreter that has the service.
        url: the broker's URL.
    """

    def __init__(self, python: str, url: str) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "loadtests.load.events_bridge", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=package_environment(),
            text=True,
        )
        self._waiting: dict[int, SimpleQueue[tuple[float, dict[str, Any]]]] = {}
        self._numbers = itertools.count()
        self._writing = Lock()
        Thread(target=self._read, daemon=True).start()

    def request(self, operation: str, body: dict[str, Any], seconds: float) -> tuple[Sequence[Piece], bytes]:
        """Send an event and wait for its result; see ``loadtests.load.sending.EventSender``."""
        number, replies = next(self._numbers), SimpleQueue[tuple[float, dict[str, Any]]]()
        self._waiting[number] = replies
        chunks: list[Piece] = []
        end = time.perf_counter() + seconds
        try:
            assert self._process.stdin
            with self._writing:
                self._process.stdin.write(json.dumps({"id": number, "operation": operation, "data": body}) + "\n")
                self._process.stdin.flush()
            while True:
                now, reply = replies.get(timeout=max(0.001, end - time.perf_counter()))
                if reply["kind"] == "error":
                    raise BadAnswer(json.dumps(reply["body"]))
                if reply["kind"] == "result":
                    return chunks, json.dumps(reply["body"]).encode()
                if has_text(reply["body"]):
                    chunks.append((now, b""))
        except Empty:
            raise TimeoutError(f"no result after {seconds:g} s") from None
        finally:
            del self._waiting[number]

    def close(self) -> None:
        """End the bridge."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            now, reply = time.perf_counter(), json.loads(line)
            if replies := self._waiting.get(reply["id"]):
                replies.put((now, reply))
        ended: dict[str, Any] = {"kind": "error", "body": f"the bridge ended with status {self._process.wait()}"}
        for replies in list(self._waiting.values()):
            replies.put((time.perf_counter(), ended))
