"""Measures what a batch costs interactive requests, and how near it comes to the service's peak of tokens per second.

    .venv/bin/python -m loadtests.batch_bench [--people 2] [--concurrency 32] [--rounds 3] [--pairs 4] [--seconds 8]

It runs the real service on a free port. Each round has a phase with as many clients in a closed loop as MAX_BATCH has
rows, which is the peak; one with a batch alone; and pairs of phases, people alone and people beside the batch, in
alternating order, so that what is compared is measured within half a minute and a machine that becomes slower changes
both. People wait between an answer and their next question. Prompts are about 85 tokens that come once, answers 64
tokens. The clients run on the same cores.

The times to the first token of all phases of a kind are pooled. The interval of the ratio of their medians is that of
90 % of 2,000 resamplings of the pairs (bootstrap, Efron 1979); where it is wide, more pairs help.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtests.service import Service, running_service

_NEW_TOKENS = 64
# The number comes first, so that no prefix cache can help.
_PROMPT = (
    "Letter number {number}. Dear friend, I have moved to a small town by the sea and started to keep a garden behind "
    "the house. Please write me a long letter about the seasons, the weather, the birds and the plants that I should "
    "expect to see."
)
_SETTLE_SECONDS = 1.5
_THINK_SECONDS = 0.5  # of a person, half of it at least and half more at most
_TOKENS, _ROWS = "warmstart:generation_tokens_total", "warmstart:batch_rows_total"
_number = itertools.count(100_000)


def _body(*, stream: bool) -> dict[str, Any]:
    messages = [{"role": "user", "content": _PROMPT.format(number=next(_number))}]
    asked = {"messages": messages, "max_tokens": _NEW_TOKENS, "min_tokens": _NEW_TOKENS, "temperature": 0}
    return asked | {"stream": True} if stream else asked


def _call(service: Service, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
    connection = service.connect()
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, {"Content-Type": content_type})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {text[:500]!r}")
    return text.decode() if path == "/metrics" else json.loads(text)


def _counter(service: Service, name: str) -> float:
    lines = _call(service, "GET", "/metrics").splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


class _Clients:
    """Threads that ask until they are told to stop."""

    def __init__(self, service: Service, count: int, think: float) -> None:
        self.first: list[float] = []  # seconds to the first token of each answer
        self._service, self._think = service, think
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until all have their last answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection: http.client.HTTPConnection = self._service.connect()
        while not self._stop.wait(self._think * random.uniform(0.5, 1.5)):
            began = time.perf_counter()
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(_body(stream=True)), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            first = None
            while line := answer.readline():
                if first is None and b'"content":' in line and b'"content": ""' not in line:
                    first = time.perf_counter() - began
                    self.first.append(first)
        connection.close()


def _upload(service: Service, rows: int) -> str:
    lines = "".join(
        json.dumps(
            {"custom_id": str(row), "method": "POST", "url": "/v1/chat/completions", "body": _body(stream=False)}
        )
        + "\n"
        for row in range(rows)
    )
    form = (
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n{lines}\r\n--b--\r\n'
    )
    file = _call(service, "POST", "/v1/files", form.encode(), "multipart/form-data; boundary=b")
    return str(file["id"])


def _batch(service: Service, file_id: str) -> str:
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return str(_call(service, "POST", "/v1/batches", body)["id"])


def _phase(service: Service, seconds: float, people: int, busy: int, file_id: str | None) -> dict[str, Any]:
    """Run clients and a batch for a while; return people's times and the rates of tokens and rows."""
    others = _Clients(service, busy, 0) if busy else None
    batch_id = None if file_id is None else _batch(service, file_id)
    if batch_id is not None:  # else the validation of its input file would be measured too
        while not _call(service, "GET", f"/v1/batches/{batch_id}")["request_counts"]["completed"]:
            time.sleep(0.05)
    time.sleep(_SETTLE_SECONDS)
    asking = _Clients(service, people, _THINK_SECONDS)
    tokens, rows, began = _counter(service, _TOKENS), _counter(service, _ROWS), time.perf_counter()
    time.sleep(seconds)
    passed = time.perf_counter() - began
    found = {
        "tokens": (_counter(service, _TOKENS) - tokens) / passed,
        "rows": (_counter(service, _ROWS) - rows) / passed,
    }
    for clients in (asking, others):
        if clients is not None:
            clients.stop()
    if batch_id is not None:
        _call(service, "POST", f"/v1/batches/{batch_id}/cancel")
        while _call(service, "GET", f"/v1/batches/{batch_id}")["status"] != "cancelled":
            time.sleep(0.05)
    return found | {"first": asking.first}


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description="People beside a batch.")
    parser.add_argument("--people", type=int, default=2, help="people who ask")
    parser.add_argument("--busy", type=int, default=64, help="clients of the phase that measures the peak")
    parser.add_argument("--concurrency", type=int, default=32, help="BATCH_CONCURRENCY")
    parser.add_argument("--rounds", type=int, default=3, help="of all phases")
    parser.add_argument("--pairs", type=int, default=4, help="of phases with people, in each round")
    parser.add_argument("--seconds", type=float, default=8, help="of each phase")
    parser.add_argument("--rows", type=int, default=5000, help="of the batch; more than run in a phase")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    rounds: list[_Phases] = []
    pairs: list[_Phases] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {"FILES_DIR": folder, "BATCH_CONCURRENCY": str(options.concurrency), "RESPONSE_CACHE": "off"}
        with running_service(**settings, LOG_LEVEL="WARNING") as service:
            service.wait("/readyz")
            file_id = _upload(service, options.rows)
            for _ in range(options.rounds):
                rounds.append(
                    {
                        "peak": _phase(service, options.seconds, 0, options.busy, None),
                        "batch": _phase(service, options.seconds, 0, 0, file_id),
                    }
                )
                for pair in range(options.pairs):
                    files = (None, file_id) if pair % 2 == 0 else (file_id, None)
                    phases = {file: _phase(service, options.seconds, options.people, 0, file) for file in files}
                    pairs.append({"alone": phases[None], "both": phases[file_id]})
    print(table(rounds, pairs))
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "pairs": pairs}, indent=1) + "\n")


_Phases = dict[str, dict[str, Any]]


def table(rounds: list[_Phases], pairs: list[_Phases]) -> str:
    """Return a Markdown table.

    Args:
        rounds: of each round the phases ``peak`` and ``batch``, as ``_phase`` returns them.
        pairs: of each pair the phases ``alone`` and ``both``.
    """

    def median(phases: list[_Phases], value: Callable[[_Phases], float]) -> float:
        return statistics.median(map(value, phases))

    draw = random.Random(1)
    resampled = sorted(_ratio(draw.choices(pairs, k=len(pairs))) for _ in range(2000))
    least, most = resampled[len(resampled) // 20], resampled[-len(resampled) // 20]
    alone, both = _first(pairs, "alone"), _first(pairs, "both")
    rows = [
        ("peak, tokens per second", f"{median(rounds, lambda r: r['peak']['tokens']):,.0f}"),
        ("batch alone, tokens per second", f"{median(rounds, lambda r: r['batch']['tokens']):,.0f}"),
        ("share of the peak", f"{median(rounds, lambda r: r['batch']['tokens'] / r['peak']['tokens']):.0%}"),
        ("batch alone, rows per second", f"{median(rounds, lambda r: r['batch']['rows']):.1f}"),
        ("batch beside people, all tokens per second", f"{median(pairs, lambda p: p['both']['tokens']):,.0f}"),
        (f"people alone, first token, median of {len(alone)}, ms", f"{statistics.median(alone):.1f}"),
        (f"people beside the batch, first token, median of {len(both)}, ms", f"{statistics.median(both):.1f}"),
        (
            f"ratio of the medians (90 % interval over {len(pairs)} pairs)",
            f"{_ratio(pairs):.2f}x ({least:.2f}-{most:.2f})",
        ),
        ("ratio of the 90th percentiles", f"{_ratio(pairs, _ninetieth):.2f}x"),
    ]
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def _first(pairs: list[_Phases], name: str) -> list[float]:
    """Return the times to the first token of all phases with this name, in milliseconds."""
    return [1000 * seconds for pair in pairs for seconds in pair[name]["first"]]


def _ratio(pairs: list[_Phases], summary: Callable[[list[float]], float] = statistics.median) -> float:
    return summary(_first(pairs, "both")) / summary(_first(pairs, "alone"))


def _ninetieth(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[-1]


if __name__ == "__main__":
    main()
