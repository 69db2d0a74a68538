"""Locust extensions: a user that measures generated answers, extra rows, and pass or fail at the end of a run.

Answers are kept in this process's memory, so run locust in one process (no ``--processes``, no workers).
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from locust import FastHttpUser, events
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS

from loadtests.answers import BadAnswer, RecordedAnswer, read_stream, read_whole
from loadtests.thresholds import Figures, Thresholds, broken, figures

TTFT = "TTFT"
INTER_TOKEN = "INTER-TOKEN"  # noqa: S105 - a row
TOKENS_PER_SECOND = "TOKENS/S"
ROWS = (TTFT, INTER_TOKEN, TOKENS_PER_SECOND)
"""Request types of rows that are measurements; they do not count as requests."""

_FINISH_SECONDS = 120


class ModelUser(FastHttpUser):
    """Base class of users of an operation that generates text."""

    abstract = True
    network_timeout = 600.0  # a long queue of a slow model is not a network failure

    def ask(self, path: str, payload: dict[str, Any], name: str | None = None) -> RecordedAnswer | None:
        """Send a request, read its answer, and report both to locust.

        Args:
            path: the operation's path.
            payload: the request; the answer is streamed if ``stream`` is True in it.
            name: the rows' name; by default the path, marked if streamed.

        Returns:
            The answer, or None if it failed and was reported as failed.
        """
        stream = payload.get("stream") is True
        name = name or path + (" (stream)" if stream else "")
        began = time.perf_counter()
        with self.client.post(path, name=name, json=payload, stream=stream, catch_response=True) as response:
            try:
                response.raise_for_status()
                if stream:
                    answer = read_stream(iter(lambda: response._response.readline(b"\n"), b""), began)
                else:
                    answer = read_whole(response.content, began, time.perf_counter())
            except (BadAnswer, *FAILURE_EXCEPTIONS) as error:
                response.failure(error)
                return None
            finally:  # locust itself measures a stream only up to its headers
                response.request_meta["response_time"] = (time.perf_counter() - began) * 1000
        self._report(name, answer)
        return answer

    def _report(self, name: str, answer: RecordedAnswer) -> None:
        self.environment.answers.append(answer)
        rows = [
            (TTFT, f"{name} ms", answer.first and answer.first * 1000),
            (INTER_TOKEN, f"{name} ms", answer.inter_token_seconds and answer.inter_token_seconds * 1000),
            (TOKENS_PER_SECOND, f"{name} tokens/s", answer.tokens_per_second),
        ]
        for kind, label, value in rows:
            if value is not None:
                self.environment.events.request.fire(
                    request_type=kind, name=label, response_time=value, response_length=0, exception=None, context={}
                )


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Add the options of every load test here; each can also be set by an environment variable."""
    group = parser.add_argument_group("Thresholds and answers")

    def option(name: str, default: float | int | None, text: str) -> None:
        kind = int if isinstance(default, int) else float
        variable = "LOCUST_" + name.upper().replace("-", "_")
        group.add_argument(f"--{name}", type=kind, default=default, env_var=variable, help=text)

    option("max-failure-ratio", Thresholds.max_failure_ratio, "fail the run above this part of failed requests")
    option("max-ttft-p95-ms", None, "fail the run above this time to first token (95th percentile)")
    option("min-tokens-per-second", None, "fail the run below this many generated tokens per second, all users")
    option("max-new-tokens", 16, "tokens to ask for")


@events.init.add_listener
def begin(environment: Any, **_: Any) -> None:
    """Start with no answers, and let running answers finish at the end, so that none is cut and not measured."""
    environment.answers = []
    environment.stop_timeout = environment.stop_timeout or _FINISH_SECONDS


@events.quitting.add_listener
def judge(environment: Any, **_: Any) -> None:
    """Print the run's statistics, and fail it for every limit that it exceeded."""
    options = environment.parsed_options
    limits = Thresholds(options.max_failure_ratio, options.max_ttft_p95_ms, options.min_tokens_per_second)
    run = run_figures(environment)
    print(f"\nSUMMARY {json.dumps(asdict(run))}")
    for error in environment.stats.errors.values():  # Locust's own report is left out of a run with --json-file
        print(f"FAILED {error.occurrences} x {error.method} {error.name}: {error.error}")
    found = broken(run, limits)
    for sentence in found:
        print(f"THRESHOLD {sentence}")
    print(flush=True)
    environment.process_exit_code = 1 if found else 0


def run_figures(environment: Any) -> Figures:
    """Return the statistics of the run so far. An exception in a user's own code counts as a failed request."""
    real = [entry for entry in environment.stats.entries.values() if entry.method not in ROWS]
    crashes = sum(crash["count"] for crash in environment.runner.exceptions.values())
    return figures(
        environment.answers,
        sum(entry.num_requests for entry in real) + crashes,
        sum(entry.num_failures for entry in real) + crashes,
    )
