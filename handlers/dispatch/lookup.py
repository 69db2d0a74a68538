"""Looks up operations by name for all adapters, and wraps them with tracing if the context has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

from handlers.context import Context
from handlers.operations import OPERATIONS, Operation
from handlers.protocols import Trace, Tracing
from runtime.errors import NotFound, ServiceError
from runtime.types import TokenUsage

# Called every second by web pages and probes; their traces would crowd out the others.
_UNTRACED = frozenset({"health", "model_info", "models", "cache_stats", "stats"})

# Names of the operations and of numeric fields in OpenTelemetry's semantic conventions for generative AI.
_KINDS = {
    "chat": "chat",
    "generate": "text_completion",
    "complete": "text_completion",
    "completions": "text_completion",
    "responses": "chat",
    "messages": "chat",
    "ollama_chat": "chat",
    "ollama_generate": "chat",
}
_NUMBERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "seed": "gen_ai.request.seed",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_new_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
    "num_return_sequences": "gen_ai.request.choice.count",
}
_LONGEST_NAME = 256
_LARGEST = 2**63  # OTLP's integers are signed with 64 bits


def find(name: str, ctx: Context) -> Operation:
    """Return an operation by name, with tracing if ``ctx.tracing`` is set.

    Raises:
        NotFound: there is no such operation.
    """
    if name not in OPERATIONS:
        raise NotFound(f"no operation {name!r}; there are {', '.join(OPERATIONS)}")
    if ctx.tracing is None or name in _UNTRACED:
        return OPERATIONS[name]
    return _traced(name, OPERATIONS[name], ctx.tracing)


def _traced(name: str, operation: Operation, tracing: Tracing) -> Operation:
    async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
        with _request(name, payload, ctx, tracing) as request, request.trace.active():
            answer = await operation.handle(payload, request.ctx)
            request.saw(answer)
            return answer

    async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
        assert operation.stream is not None  # else this is not used
        with _request(name, payload, ctx, tracing) as request:
            async with aclosing(operation.stream(payload, request.ctx)) as events:
                while True:
                    # Not active during the yield, because the caller's own code runs then.
                    with request.trace.active():
                        event = await anext(events, None)
                    if event is None:
                        return
                    request.saw(event)
                    yield event

    return replace(operation, handle=handle, stream=None if operation.stream is None else stream)


class _Request:
    """Collects the attributes of a request's span from its answer and usage."""

    def __init__(self, name: str, ctx: Context, trace: Trace) -> None:
        self.name = name
        self.trace = trace
        self._observe = ctx.observe
        self.ctx = replace(ctx, observe=self._add)
        self._model: str | None = None
        self._id: str | None = None
        self._reasons: list[str] = []
        self._usage = TokenUsage()

    def saw(self, answer: Mapping[str, Any]) -> None:
        """Read the attributes from an answer or a chunk."""
        answer = next((answer[name] for name in ("response", "message") if _is_answer(answer.get(name))), answer)
        self._model = answer.get("model") or self._model
        if "choices" in answer or answer.get("object") == "response" or answer.get("type") == "message":
            self._id = answer.get("id")
        delta = answer.get("delta")
        last = delta if isinstance(delta, dict) else answer
        parts = answer.get("choices") or answer.get("sequences") or answer.get("answers") or [last]
        reasons = [reason for part in parts if (reason := _reason(part))]
        # The last chunk of a comparison repeats the answers of the chunks before it.
        self._reasons = reasons if "answers" in answer else self._reasons + reasons

    def end(self, error: BaseException | None) -> None:
        """Set the attributes and end the span, with the error if there is one."""
        self.trace.set(
            {
                "gen_ai.response.model": self._model,
                "gen_ai.response.id": self._id,
                "gen_ai.response.finish_reasons": self._reasons or None,
                "gen_ai.usage.input_tokens": self._usage.prompt_tokens or None,
                "gen_ai.usage.output_tokens": self._usage.completion_tokens or None,
                "warmstart.cache": None if self._usage.cache is None else self._usage.cache.status,
            }
        )
        name = self.name if self._model is None else f"{self.name} {self._model}"
        if error is None:
            self.trace.end(name)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.trace.end(name, "cancelled")
        elif isinstance(error, ServiceError):
            self.trace.end(name, error.code, failed=error.status >= 500)
        else:
            self.trace.end(name, type(error).__name__, failed=True)

    def _add(self, usage: TokenUsage) -> None:
        self._usage += usage
        self._observe(usage)


def _is_answer(value: object) -> bool:
    """Return whether a member of an event of the Responses or Messages API is the answer so far."""
    return isinstance(value, dict) and "model" in value


def _reason(part: Mapping[str, Any]) -> str | None:
    reason: str | None = part.get("finish_reason") or part.get("stop_reason") or part.get("done_reason")
    return reason


@contextmanager
def _request(name: str, payload: dict[str, Any], ctx: Context, tracing: Tracing) -> Iterator[_Request]:
    request = _Request(name, ctx, tracing.request(name))
    request.trace.set(_asked(name, payload))
    try:
        yield request
    except BaseException as error:
        request.end(error)
        raise
    request.end(None)


def _asked(name: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the span attributes of a payload that is not validated yet: its numbers and the model's name only."""
    model = payload.get("model")
    told: dict[str, Any] = {
        "gen_ai.operation.name": _KINDS.get(name, name),
        "gen_ai.provider.name": "warmstart",
        "gen_ai.request.model": model[:_LONGEST_NAME] if isinstance(model, str) else None,
        "gen_ai.request.stream": True if payload.get("stream") is True else None,
    }
    for field, attribute in _NUMBERS.items():
        value = payload.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
            told[attribute] = value
    return told
