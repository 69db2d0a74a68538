"""Measures how long one request can block the event loop: the longest gap between answers of /livez.

Run from the repository's root: ``python -m loadtests.event_loop_bench [--rounds 3] [--case NAME ...] [--model NAME]``.
It starts the service, requests /livez every few milliseconds on one connection, and meanwhile sends each case's request
on another: bodies of the largest allowed size that are as slow to parse as possible, and the largest answers that may
be requested. The table shows the longest gap during each, and that without any; of several rounds the least, because
other load on the machine only adds to it. The goal is at most 50 ms above the baseline.
"""

from __future__ import annotations

import argparse
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

from loadtests.service import Service, running_service

BODY_BYTES = 1_048_576
"""The size of the largest body, the default of MAX_BODY_BYTES."""

GOAL_MS = 50
_PAUSE_SECONDS = 0.002
_BASELINE_SECONDS = 1.0
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Case:
    """One request.

    Args:
        name: the name in the table.
        path: the route's path.
        body: returns the JSON body; None sends a GET.
        headers: the request's header fields.
    """

    name: str
    path: str
    body: Callable[[], bytes] | None = None
    headers: dict[str, str] = field(default_factory=lambda: JSON)


def filled(start: str, item: Callable[[int], str], end: str, size: int = BODY_BYTES) -> bytes:
    """Return a JSON text with as many comma-separated items as fit into a size in bytes.

    Args:
        start: the text before the items.
        item: returns the text of an item by its number.
        end: the text after the items.
        size: the most bytes of the whole text.
    """
    items: list[str] = []
    left = size - len((start + end).encode()) + 1
    while (left := left - len((text := item(len(items))).encode()) - 1) >= 0:
        items.append(text)
    return (start + ",".join(items) + end).encode()


def _chat(content: str) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 1}).encode()


def _text(prompt: str) -> bytes:
    return json.dumps({"prompt": prompt, "max_new_tokens": 1}, ensure_ascii=False).encode()


def _answer(**options: object) -> Callable[[], bytes]:
    question = {"messages": [{"role": "user", "content": "Tell me a long story."}], "temperature": 1, "min_tokens": 512}
    return lambda: json.dumps(question | {"max_tokens": 512, "n": 16} | options).encode()


def _event(number: int) -> str:
    data = '{"operation":"health","data":{}}'
    return f'{{"specversion":"1.0","id":"{number}","source":"/a","type":"warmstart.health","data":{data}}}'


_CHAT, _COMPLETIONS, _GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
_DEEP = "[" * 28 + "]" * 28
_BATCH = {"Content-Type": "application/cloudevents-batch+json"}
CASES = (
    # Bodies that are rejected: parsing, validation and error messages
    Case("prompt: numbers", _COMPLETIONS, lambda: filled('{"prompt":[', lambda i: "1", "]}")),
    Case("prompt: objects", _GENERATE, lambda: filled('{"prompt":[', lambda i: "{}", "]}")),
    Case("prompt: deep arrays", _GENERATE, lambda: filled('{"prompt":[', lambda i: _DEEP, "]}")),
    Case("unknown fields", _GENERATE, lambda: filled("{", lambda i: f'"{i}":0', "}")),
    Case("unknown field, deep arrays", _CHAT, lambda: filled('{"a":[', lambda i: _DEEP, "]}")),
    Case("one field again and again", _GENERATE, lambda: filled("{", lambda i: '"a":0', "}")),
    Case("no JSON: brackets", _GENERATE, lambda: b"[" * BODY_BYTES),
    Case("no JSON: quotes", _GENERATE, lambda: b'"\\"' * (BODY_BYTES // 3)),
    Case("a number of a million digits", _GENERATE, lambda: b'{"a":' + b"9" * (BODY_BYTES - 6) + b"}"),
    Case("as many values as are decoded", _GENERATE, lambda: filled('{"prompt":[', lambda i: "{}", "]}", 29_800)),
    Case(
        "as many wrong parts",
        _CHAT,
        lambda: filled('{"messages":[{"role":"user","content":[', lambda i: "{}", "]}]}", 29_800),
    ),
    Case("as many unknown fields", _GENERATE, lambda: filled("{", lambda i: f'"{i}":0', "}", 188_000)),
    Case("messages: numbers", _CHAT, lambda: filled('{"messages":[', lambda i: "1", "]}")),
    Case("messages: empty", _CHAT, lambda: filled('{"messages":[', lambda i: '{"role":"user","content":""}', "]}")),
    Case(
        "messages: text parts",
        _CHAT,
        lambda: filled(
            '{"max_tokens":1,"messages":[{"role":"user","content":[', lambda i: '{"type":"text","text":""}', "]}]}"
        ),
    ),
    Case(
        "messages: wrong parts",
        _CHAT,
        lambda: filled('{"messages":[{"role":"user","content":[', lambda i: "{}", "]}]}"),
    ),
    Case(
        "message: unknown fields",
        _CHAT,
        lambda: filled('{"messages":[{"role":"user","content":"",', lambda i: f'"{i}":0', "}]}"),
    ),
    Case("stop strings", _GENERATE, lambda: filled('{"prompt":"a","stop":[', lambda i: '"a"', "]}")),
    Case("logit_bias", _GENERATE, lambda: filled('{"prompt":"a","logit_bias":{', lambda i: f'"{i}":0', "}}")),
    Case(
        "logit_bias: wrong keys", _GENERATE, lambda: filled('{"prompt":"a","logit_bias":{', lambda i: f'"a{i}":0', "}}")
    ),
    Case("variants", "/models/compare", lambda: filled('{"prompt":"a","variants":[', lambda i: "{}", "]}")),
    Case("prompt: escapes", _GENERATE, lambda: b'{"prompt":"' + b"\\u20ac" * (BODY_BYTES // 6 - 3) + b'"}'),
    Case("prompt: half surrogates", _GENERATE, lambda: b'{"prompt":"' + b"\\ud800" * (BODY_BYTES // 6 - 3) + b'"}'),
    Case("prompt: a megabyte", _GENERATE, lambda: b'{"prompt":"' + b"a" * (BODY_BYTES - 13) + b'"}'),
    # Texts of MAX_PROMPT_CHARS: tokenizing them, and splitting forged control tokens
    Case("chat: <u", _CHAT, lambda: _chat("<u" * 99_000)),
    Case("chat: <|im_start|>", _CHAT, lambda: _chat("<|im_start|>" * 16_000)),
    Case("chat: a", _CHAT, lambda: _chat("a" * 199_000)),
    Case("chat: blanks", _CHAT, lambda: _chat(" \n" * 99_000)),
    Case(
        "chat: 1,024 messages",
        _CHAT,
        lambda: json.dumps({"messages": [{"role": "user", "content": "<u " * 60}] * 1024, "max_tokens": 1}).encode(),
    ),
    Case("text: emoji", _GENERATE, lambda: _text("\U0001f469\u200d\U0001f680" * 60_000)),
    Case("text: words", _GENERATE, lambda: _text("word " * 39_000)),
    Case("16 texts", _COMPLETIONS, lambda: json.dumps({"prompt": ["word " * 2_400] * 16, "max_tokens": 1}).encode()),
    # Events
    Case("events: a batch", "/events", lambda: filled("[", _event, "]"), _BATCH),
    Case("events: what is none", "/events", lambda: filled("[", lambda i: "{}", "]"), _BATCH),
    Case(
        "event: unknown fields",
        "/events",
        lambda: filled(
            '{"specversion":"1.0","id":"1","source":"/a","type":"warmstart.generate","data":{',
            lambda i: f'"{i}":0',
            "}}",
        ),
        {"Content-Type": "application/cloudevents+json"},
    ),
    Case(
        "event: log-probabilities",
        "/events",
        lambda: (
            b'{"specversion":"1.0","id":"1","source":"/a","type":"warmstart.chat","data":'
            + _answer(logprobs=True, top_logprobs=20)()
            + b"}"
        ),
        {"Content-Type": "application/cloudevents+json"},
    ),
    # Request lines, headers and GET routes
    Case("headers", "/health", None, {f"X-{i}": "a" * 300 for i in range(95)}),
    Case("query", "/health?" + "&".join(f"a{i}=%41" for i in range(800)), None, {}),
    Case("path", "/" + "%2e%2e/" * 1_000, None, {}),
    Case("traces", "/health", None, {"traceparent": "0" * 8_000, "Forwarded": 'for="' + ";" * 7_000}),
    Case("description", "/openapi.json", None, {}),
    Case("metrics", "/metrics", None, {}),
    # Large answers
    Case("answer: 16 x 512 tokens", _CHAT, _answer()),
    Case("answer: log-probabilities", _CHAT, _answer(logprobs=True, top_logprobs=20)),
    Case("stream: log-probabilities", _CHAT, _answer(logprobs=True, top_logprobs=20, stream=True)),
    Case(
        "echo: log-probabilities",
        _COMPLETIONS,
        lambda: json.dumps({"prompt": "word " * 8_000, "max_tokens": 0, "echo": True, "logprobs": 5}).encode(),
    ),
    Case("kept answer: log-probabilities", _CHAT, _answer(logprobs=True, top_logprobs=20, seed=1)),
    Case("kept stream: log-probabilities", _CHAT, _answer(logprobs=True, top_logprobs=20, seed=1, stream=True)),
)


class Probe:
    """Requests /livez continuously on its own thread.

    Args:
        service: the service to probe.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._answers: list[float] = []
        self._stop = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Probe during the block."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def wait(self) -> None:
        """Wait for two more answers, so that blocking after a case's answer counts too."""
        before = len(self._answers)
        while len(self._answers) < before + 2:
            time.sleep(_PAUSE_SECONDS)

    def gap_ms(self, since: float, until: float) -> float:
        """Return the longest gap between answers, in ms, that overlaps an interval of ``time.perf_counter``."""
        pairs = pairwise(list(self._answers))
        return 1e3 * max((later - earlier for earlier, later in pairs if later > since and earlier < until), default=0)

    def _run(self) -> None:
        connection = self._service.connect()
        while not self._stop.is_set():
            connection.request("GET", "/livez")
            connection.getresponse().read()
            self._answers.append(time.perf_counter())
            time.sleep(_PAUSE_SECONDS)
        connection.close()


def ask(service: Service, case: Case, body: bytes | None) -> tuple[int, int]:
    """Send a case's request on a new connection.

    Returns:
        The answer's status and its size in bytes.
    """
    connection = service.connect()
    try:
        connection.request("GET" if body is None else "POST", case.path, body, case.headers)
        response = connection.getresponse()
        return response.status, len(response.read())
    finally:
        connection.close()


def main() -> None:
    """Measure every case and print the table."""
    parser = argparse.ArgumentParser(description="How long one request can hold up everybody.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", metavar="NAME", help="only cases whose names begin so")
    parser.add_argument("--model", metavar="MODEL_NAME", help="another model than the embedded one")
    options = parser.parse_args()
    settings = {"KEEPALIVE_REQUESTS": "1000000000"}  # all probes of /livez use one connection
    if options.model:
        settings["MODEL_NAME"] = options.model
    print("| case | gap ms | baseline ms | request MB | answer MB | status |\n|---|---:|---:|---:|---:|---:|")
    with running_service(LOG_LEVEL="WARNING", IDEMPOTENCY="off", **settings) as service:
        service.wait("/readyz")
        probe = Probe(service)
        with probe.running():
            for case in CASES:
                if options.case is None or case.name.startswith(tuple(options.case)):
                    print(_row(service, probe, case, options.rounds), flush=True)


def _row(service: Service, probe: Probe, case: Case, rounds: int) -> str:
    body = case.body() if case.body is not None else None
    gaps, baselines, status, size = [], [], 0, 0
    if case.name.startswith("kept"):
        ask(service, case, body)  # the measured answer comes from the response cache, unless it is too large
        probe.wait()
    for _ in range(rounds):
        started = time.perf_counter()
        time.sleep(_BASELINE_SECONDS)
        asked = time.perf_counter()
        with suppress(ConnectionError, http.client.HTTPException):  # rejected before all of it was sent
            status, size = ask(service, case, body)
        probe.wait()
        ended = time.perf_counter()
        baselines.append(probe.gap_ms(started, asked))
        gaps.append(probe.gap_ms(asked, ended))
    gap, baseline = min(gaps), min(baselines)
    mark = " (over)" if gap > baseline + GOAL_MS else ""
    megabytes = len(body or b"") / 1e6
    return f"| {case.name} | {gap:.1f}{mark} | {baseline:.1f} | {megabytes:.1f} | {size / 1e6:.1f} | {status} |"


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
