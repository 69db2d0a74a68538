"""Measures a cold start, from process start to the first answer, and one client's tokens per second and memory.

    .venv/bin/python -m loadtests.cold_start [--runs 3] [--json]

Run it with the service's interpreter, from the repository's root. The very first start on a machine converts the
embedded model and takes longer. "Cold" means a new process; the files may be in the system's page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from loadtests.answers import RecordedAnswer, read_stream
from loadtests.load.http_answer import BadAnswer
from loadtests.service import Service, running_service

NEW_TOKENS = 64
STREAMS = 3
QUESTION = "What is the capital of France?"
LONG = "Write a long letter about the four seasons."
LABELS = {
    "livez_s": "start to /livez, s",
    "readyz_s": "start to /readyz, s",
    "first_token_s": "start to first token, s",
    "first_answer_s": "start to first answer, s",
    "tokens_per_second": "tokens per second, one client",
    "decode_tokens_per_second": "the same after the first token",
    "ttft_ms": "time to first token when warm, ms",
    "rss_mb": "RSS, MB",
    "peak_rss_mb": "peak RSS, MB",
}


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description="Cold start, tokens per second of one client, memory.")
    parser.add_argument("--runs", type=int, default=1, help="fresh starts; medians are printed")
    parser.add_argument("--json", action="store_true", help="print all runs as JSON instead of a table")
    options = parser.parse_args()
    runs = []
    for number in range(options.runs):
        with running_service(RESPONSE_CACHE="off") as service:  # the same question is asked several times
            runs.append(measure(service))
        print(f"run {number + 1} of {options.runs}: {runs[-1]}", file=sys.stderr)
    middle = {key: statistics.median(run[key] for run in runs) for key in LABELS}
    if options.json:
        print(json.dumps({"median": middle, "runs": runs}))
        return
    print("| figure | median |\n|---|---:|")
    for key, label in LABELS.items():
        print(f"| {label} | {middle[key]:g} |")


def measure(service: Service) -> dict[str, float]:
    """Measure one fresh start; the keys are those of ``LABELS``.

    Raises:
        BadAnswer: an answer is wrong.
        RuntimeError: the service does not start.
    """
    livez, readyz = service.wait("/livez"), service.wait("/readyz")
    asked = time.perf_counter() - service.started
    capital = ask(service, QUESTION, 16)
    if "Paris" not in capital.text or capital.first is None:
        raise BadAnswer(f"{QUESTION} {capital.text!r}")
    streams = [ask(service, LONG, NEW_TOKENS) for _ in range(STREAMS)]
    memory = service.memory()
    median = statistics.median
    return {
        "livez_s": round(livez, 2),
        "readyz_s": round(readyz, 2),
        "first_token_s": round(asked + capital.first, 2),
        "first_answer_s": round(asked + capital.seconds, 2),
        "tokens_per_second": round(median(answer.tokens_per_second for answer in streams), 1),
        "decode_tokens_per_second": round(median(1 / (answer.inter_token_seconds or 1) for answer in streams), 1),
        "ttft_ms": round(median((answer.first or 0) * 1000 for answer in streams), 1),
        "rss_mb": memory["rss"],
        "peak_rss_mb": memory["peak"],
    }


def ask(service: Service, question: str, tokens: int) -> RecordedAnswer:
    """Request one greedy, streamed chat answer.

    Raises:
        BadAnswer: it is an error or incomplete.
    """
    payload = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = service.connect()
    try:
        began = time.perf_counter()
        connection.request("POST", "/chat/completions", json.dumps(payload), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise BadAnswer(f"{response.status}: {response.read(500)!r}")
        return read_stream(response, began)
    finally:
        connection.close()


if __name__ == "__main__":
    main()
