"""Closed-loop Locust test: tokens per second with 1, 8, 16 and 32 clients (DESIGN section 4).

Prompts of about 85 tokens, 64 new tokens, streamed. One command, about two minutes; prints a table:

    .venv-load/bin/locust -f loadtests/closed_loop.py --headless --only-summary --host http://127.0.0.1:8000

Requests have only fields that OpenAI defines, so the same file measures other servers (``--model`` for those that
require a name).
"""

from __future__ import annotations

import random
from argparse import ArgumentParser
from typing import Any

from locust import LoadTestShape, constant, events, task

from loadtests.measure import ModelUser
from loadtests.thresholds import Figures, window

NEW_TOKENS = 64
SETTLE = 0.2  # share of a stage that is not counted, because its clients start at the same time
PATH = "/v1/chat/completions"
# The number comes first, so that no prefix cache can help.
PROMPT = (
    "Letter number {number}. Dear friend, I have moved to a small town by the sea and started to keep a garden behind "
    "the house. Please write me a long letter about the seasons, the weather, the birds and the plants that I should "
    "expect to see."
)


class ClosedLoopUser(ModelUser):
    """A user that sends its next request as soon as it has the answer."""

    wait_time = constant(0)

    @task
    def chat(self) -> None:
        """Request one streamed answer."""
        options = self.environment.parsed_options
        payload: dict[str, Any] = {
            "messages": [{"role": "user", "content": PROMPT.format(number=random.randrange(100_000, 1_000_000))}],
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self.ask(PATH, payload | ({"model": options.model} if options.model else {}))


class ClosedLoopShape(LoadTestShape):
    """One stage per number of clients."""

    def tick(self) -> tuple[int, float] | None:
        """Return the number of clients now, all started at once; None ends the run."""
        options = self.runner.environment.parsed_options
        stage = int(self.get_run_time() // options.stage_seconds)
        return (options.clients[stage], options.clients[stage]) if stage < len(options.clients) else None


def _numbers(text: str) -> list[int]:
    return sorted(int(number) for number in text.split(","))  # ascending, so no client is stopped during an answer


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Add the options for the stages and the model's name."""
    parser.add_argument("--clients", type=_numbers, default="1,8,16,32", help="clients of each stage")
    parser.add_argument("--stage-seconds", type=float, default=30.0, help="length of a stage")
    parser.add_argument("--model", default="", help="name to send; none by default")


@events.quitting.add_listener
def print_stages(environment: Any, **_: Any) -> None:
    """Print a table with one line per stage."""
    options, start = environment.parsed_options, environment.shape_class.start_time
    length = options.stage_seconds
    print("\n| clients | tok/s | TTFT p50 ms | TTFT p95 ms | between tokens p50 ms | prompt tokens p50 | requests |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for stage, clients in enumerate(options.clients):
        found = window(environment.answers, start + (stage + SETTLE) * length, start + (stage + 1) * length)
        print(f"| {clients} | {_row(found)} |")


def _row(found: Figures) -> str:
    cells = (
        found.tokens_per_second,
        found.ttft_p50_ms,
        found.ttft_p95_ms,
        found.inter_token_p50_ms,
        found.prompt_tokens_p50,
        found.requests,
    )
    return " | ".join("-" if cell is None else f"{cell:g}" for cell in cells)
