"""Locust users for every operation of a running service, whole and, where possible, streamed.

    .venv-load/bin/locust -f loadtests/locustfile.py --headless -u 6 -r 2 -t 60s --host http://127.0.0.1:8000

``loadtests/smoke.py`` adds the short load shape of the tests, ``loadtests/closed_loop.py`` measures throughput.
"""

from __future__ import annotations

import random

from locust import FastHttpUser, between, task

from loadtests.measure import ModelUser

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at a temperature of",
    "Write one sentence about the moon.",
    "List three colours of the rainbow:",
    "A good way to learn a language is to",
)
PROBES = {  # path: a field that its answer must have
    "/livez": "status",
    "/readyz": "status",
    "/health": "uptime_seconds",
    "/models": "data",
    "/v1/models": "data",
    "/model-info": "context_length",
}


class _TextUser(ModelUser):
    """Requests a whole and a streamed answer in one task, so that the shortest run has both."""

    abstract = True
    wait_time = between(0.5, 1.5)
    path = ""

    @task
    def text(self) -> None:
        """Request one answer of each kind."""
        for stream in (False, True):
            payload = {
                "prompt": random.choice(PROMPTS),
                "max_new_tokens": self.environment.parsed_options.max_new_tokens,
            }
            self.ask(self.path, payload | {"stream": stream})


class GenerateUser(_TextUser):
    """Continues prompts with /generate."""

    path = "/generate"


class CompleteUser(_TextUser):
    """Completes prompts with /complete."""

    path = "/complete"


class ChatUser(ModelUser):
    """Chats with streamed answers, as most callers do."""

    weight = 2
    wait_time = between(0.5, 1.5)

    @task
    def chat(self) -> None:
        """Request one streamed answer."""
        payload = _chat(self.environment.parsed_options.max_new_tokens)
        self.ask("/chat/completions", payload | {"stream": True, "stream_options": {"include_usage": True}})


class ChatOnceUser(ModelUser):
    """Chats over the OpenAI-compatible path with whole answers."""

    wait_time = between(0.5, 1.5)

    @task
    def chat(self) -> None:
        """Request one whole answer."""
        self.ask("/v1/chat/completions", _chat(self.environment.parsed_options.max_new_tokens))


class ProbeUser(FastHttpUser):
    """Requests the routes that need no generation, as an orchestrator and a dashboard do."""

    wait_time = between(1, 2)

    @task
    def probe(self) -> None:
        """Request each route once."""
        for path, field in PROBES.items():
            with self.client.get(path, catch_response=True) as response:
                if not response.ok:
                    continue  # reported as failed by its status
                try:
                    found = field in response.json()
                except ValueError:
                    found = False
                if not found:
                    response.failure(f"no {field!r} in the answer")


def _chat(tokens: int) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": random.choice(PROMPTS)}], "max_tokens": tokens}
