"""What operations tell their trace, without OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from handlers.context import Context
from handlers.dispatch.lookup import find
from handlers.operations import OPERATIONS
from runtime.errors import InvalidRequest, NotFound
from tests.support.fakes import FakeEngine, fake_context


@dataclass
class Notes:
    """A trace that writes down what it is told; also makes itself for every request."""

    begun: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    ends: list[tuple[str, str | None, bool]] = field(default_factory=list)
    depth: int = 0

    def request(self, operation: str) -> Notes:
        self.begun.append(operation)
        return self

    @contextmanager
    def active(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def set(self, attributes: Mapping[str, Any]) -> None:
        self.attributes |= {name: value for name, value in attributes.items() if value is not None}

    def end(self, name: str, error: str | None = None, *, failed: bool = False) -> None:
        self.ends.append((name, error, failed))

    def close(self) -> None: ...


def traced(engine: FakeEngine | None = None) -> tuple[Context, Notes]:
    notes = Notes()
    return replace(fake_context(engine), tracing=notes), notes


def test_untraced_operations_are_the_plain_ones() -> None:
    """Without tracing nothing stands between an adapter and an operation; what is polled is never traced."""
    ctx, _ = traced()
    assert all(find(name, fake_context()) is operation for name, operation in OPERATIONS.items())
    plain = {name for name, operation in OPERATIONS.items() if find(name, ctx) is operation}
    assert plain == {"health", "model_info", "models", "cache_stats", "stats"}
    with pytest.raises(NotFound):
        find("nothing", ctx)


async def test_an_answer_is_told_and_left_as_it_is() -> None:
    """The same answer as untraced; its span is named by operation and model."""
    ctx, notes = traced()
    payload = {"prompt": ["x", "y"], "temperature": 0.5, "logit_bias": {"1": 2}}
    assert await find("generate", ctx).handle(payload, ctx) == await OPERATIONS["generate"].handle(payload, ctx)
    assert notes.begun == ["generate"]
    assert notes.ends == [("generate fake", None, False)]
    assert notes.attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "warmstart",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.response.model": "fake",
        "gen_ai.response.finish_reasons": ["stop", "stop"],
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 6,
    }


@pytest.mark.parametrize(
    ("operation", "payload", "told"),
    [
        ("responses", {"input": "x", "max_output_tokens": 9}, {"gen_ai.response.id": "resp_id1"}),
        (
            "messages",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9},
            {"gen_ai.response.id": "msg_id1", "gen_ai.response.finish_reasons": ["end_turn"]},
        ),
    ],
)
async def test_other_apis(operation: str, payload: dict[str, Any], told: dict[str, Any]) -> None:
    """A response and a message are told as chats, whole and streamed."""
    told = told | {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "warmstart",
        "gen_ai.request.max_tokens": 9,
        "gen_ai.response.model": "fake",
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 3,
    }
    ctx, notes = traced()
    await find(operation, ctx).handle(payload, ctx)
    assert notes.attributes == told
    ctx, notes = traced()
    stream = find(operation, ctx).stream
    assert stream is not None
    async for _ in stream(payload, ctx):
        pass
    assert notes.attributes == told
    assert notes.ends == [(f"{operation} fake", None, False)]


@pytest.mark.parametrize(
    "payload",
    [{"seed": 2**63}, {"seed": "1"}, {"temperature": [1]}, {"temperature": True}, {"max_new_tokens": float("nan")}],
    ids=str,
)
async def test_fields_that_nobody_has_checked(payload: dict[str, Any]) -> None:
    """Only numbers that OTLP can carry are told of a payload, as it is told before it is validated."""
    ctx, notes = traced()
    with pytest.raises(InvalidRequest):
        await find("complete", ctx).handle({"prompt": "x", "bad": 1} | payload, ctx)
    assert notes.attributes.keys() == {"gen_ai.operation.name", "gen_ai.provider.name"}
    assert notes.ends == [("complete", "invalid_request", False)]


async def test_a_long_name_is_cut() -> None:
    """An unknown model's name is in the span as it was asked for, up to a length, and never in the span's name."""
    ctx, notes = traced()
    with pytest.raises(NotFound):
        await find("complete", ctx).handle({"prompt": "x", "model": "m" * 256}, ctx)
    assert notes.ends == [("complete", "model_not_found", False)]
    with pytest.raises(InvalidRequest):
        await find("complete", ctx).handle({"prompt": "x", "model": "m" * 10_000}, ctx)
    assert notes.attributes["gen_ai.request.model"] == "m" * 256


async def test_faults() -> None:
    """An exception that is no answer to a caller is the service's fault, by its type's name."""
    ctx, notes = traced(FakeEngine(fail_after=1, failure=RuntimeError("planted")))
    with pytest.raises(RuntimeError):
        await find("complete", ctx).handle({"prompt": "x"}, ctx)
    assert notes.ends == [("complete", "RuntimeError", True)]


async def test_the_readers_code_is_not_in_the_request() -> None:
    """Between two events of a stream the request is not the current one."""
    ctx, notes = traced()
    stream = find("complete", ctx).stream
    assert stream is not None
    async for _ in stream({"prompt": "x"}, ctx):
        assert notes.depth == 0
    assert notes.ends == [("complete fake", None, False)]
    assert notes.attributes["gen_ai.response.finish_reasons"] == ["stop"]
