"""Spans of requests: what they say, whose children they are, and what happens where they cannot be sent."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given as any_of
from hypothesis import settings as examples
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from app import create_app
from handlers.context import Context
from handlers.local import build_context, invoke, invoke_stream
from runtime.errors import ContextLengthExceeded, InternalError, SettingsError
from runtime.settings import Settings
from runtime.telemetry import tracing as tracing_module
from runtime.telemetry.request_scope import request_facts
from runtime.telemetry.tracing import Tracer, caller_trace, parse_traceparent
from tests.support.engines import Made
from tests.support.fakes import caching, fake_context, until
from tests.support.soak import soak

TRACE, PARENT = "a1" * 16, "b2" * 8
PROMPT = "a secret prompt"


class Traced:
    """A real engine on a runner without a model, traced into memory."""

    def __init__(self, **options: Any) -> None:
        self.made = Made(**options)
        self.exporter = InMemorySpanExporter()
        self.tracing = Tracer(self.exporter, "0.test")
        self.ctx: Context = replace(fake_context(self.made.engine), tracing=self.tracing)  # type: ignore[arg-type]

    def spans(self) -> list[ReadableSpan]:
        """All spans, in the order in which they ended."""
        self.tracing.close()
        return list(self.exporter.get_finished_spans())


@pytest.fixture
def traced() -> Iterator[Traced]:
    """See ``Traced``."""
    made = Traced()
    yield made
    made.tracing.close()
    made.made.engine.close()


def by_name(spans: list[ReadableSpan]) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


def said(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


async def test_a_request_and_what_the_engine_did(traced: Traced) -> None:
    """Queue, prefill and decode lie beneath the request, one after the other, with what they cost."""
    payload = {"prompt": PROMPT, "max_new_tokens": 5, "temperature": 0, "model": "fake", "num_return_sequences": 2}
    await invoke("complete", payload, ctx=traced.ctx)
    spans = by_name(traced.spans())
    assert spans.keys() == {"complete fake", "queue", "prefill", "decode"}
    request = spans["complete fake"]
    assert (request.kind, request.parent, request.status.status_code) == (SpanKind.SERVER, None, StatusCode.UNSET)
    assert request.context is not None
    for name in ("queue", "prefill", "decode"):
        parent = spans[name].parent
        assert parent is not None
        assert (parent.trace_id, parent.span_id) == (request.context.trace_id, request.context.span_id)
    assert spans["queue"].end_time == spans["prefill"].start_time
    assert spans["prefill"].end_time == spans["decode"].start_time
    tokens = len(PROMPT)
    assert dict(said(request)) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "warmstart",
        "gen_ai.request.model": "fake",
        "gen_ai.request.temperature": 0,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.model": "fake",
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": tokens,
        "gen_ai.usage.output_tokens": 10,
    }
    assert said(spans["prefill"])["gen_ai.usage.input_tokens"] == tokens
    assert said(spans["decode"])["gen_ai.usage.output_tokens"] == 10
    assert request.resource.attributes["service.name"] == "warmstart"


async def test_a_stream(traced: Traced) -> None:
    """It is one span until its last event, and its id is the answer's."""
    payload = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "seed": 4, "stream": True}
    async with aclosing(invoke_stream("chat", payload, ctx=traced.ctx)) as events:
        ids = {event["id"] async for event in events}
    spans = by_name(traced.spans())
    assert spans.keys() == {"chat fake", "queue", "prefill", "decode"}
    request = said(spans["chat fake"])
    assert {request["gen_ai.response.id"]} == ids
    assert (request["gen_ai.operation.name"], request["gen_ai.request.seed"]) == ("chat", 4)
    assert request["gen_ai.response.finish_reasons"] == ("length",)
    assert request["gen_ai.request.stream"] is True


async def test_two_streams_in_turn(traced: Traced) -> None:
    """Streams that one task reads alternately keep their spans apart."""
    payload = {"prompt": "x", "max_new_tokens": 4}
    first, second = (invoke_stream("complete", payload | {"seed": i}, ctx=traced.ctx) for i in range(2))
    async with aclosing(first), aclosing(second):
        left = [first, second]
        while left:
            for stream in list(left):
                if await anext(stream, None) is None:
                    left.remove(stream)
    assert tracing_module.current_trace.get() is None
    spans = traced.spans()
    requests = {span.context.span_id for span in spans if span.kind is SpanKind.SERVER and span.context}
    parents = [span.parent.span_id for span in spans if span.name == "decode" and span.parent]
    assert len(parents) == 2
    assert set(parents) == requests


async def test_a_kept_answer(traced: Traced) -> None:
    """One from the response cache says so and has no work of an engine beneath it."""
    ctx = caching(traced.ctx)
    for _ in range(2):
        await invoke("complete", {"prompt": "x", "max_new_tokens": 2, "temperature": 0}, ctx=ctx)
    spans = traced.spans()
    assert sorted(span.name for span in spans) == ["complete fake", "complete fake", "decode", "prefill", "queue"]
    computed, kept = (span for span in spans if span.kind is SpanKind.SERVER)
    assert computed.context is not None
    assert {span.parent.span_id for span in spans if span.parent} == {computed.context.span_id}
    assert (said(computed)["warmstart.cache"], said(kept)["warmstart.cache"]) == ("miss", "hit")
    assert said(kept)["gen_ai.usage.output_tokens"] == 2


async def test_a_comparison(traced: Traced) -> None:
    """Each variant's work lies beneath the one request, which has the tokens of all."""
    variants = [{"label": "cold", "temperature": 0}, {"label": "warm", "temperature": 1, "seed": 3}]
    payload = {"prompt": "x", "max_new_tokens": 4, "variants": variants, "score": False}
    await invoke("compare", payload, ctx=traced.ctx)
    spans = traced.spans()
    assert sorted(span.name for span in spans) == ["compare", *["decode"] * 2, *["prefill"] * 2, *["queue"] * 2]
    assert said(spans[-1])["gen_ai.usage.output_tokens"] == 8
    assert said(spans[-1])["gen_ai.response.finish_reasons"] == ("length", "length")


async def test_beneath_the_callers_span(traced: Traced) -> None:
    """A caller's traceparent is the parent; log lines have that trace's id."""
    caller_trace.set({"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"})
    await invoke("complete", {"prompt": "x", "max_new_tokens": 1}, ctx=traced.ctx)
    request = by_name(traced.spans())["complete fake"]
    assert request.parent is not None
    assert request.context is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, PARENT)
    assert request.context.trace_state.get("vendor") == "1"


async def test_log_lines_get_the_trace_of_who_came_without(traced: Traced) -> None:
    """A request that brings no trace id logs with its span's, and the span has the request's id."""
    facts: dict[str, object] = {"request_id": "mine"}
    request_facts.set(facts)
    await invoke("complete", {"prompt": "x", "max_new_tokens": 1}, ctx=traced.ctx)
    request = by_name(traced.spans())["complete fake"]
    assert request.context is not None
    assert facts["trace_id"] == f"{request.context.trace_id:032x}"
    assert said(request)["warmstart.request_id"] == "mine"


async def test_the_callers_choice_is_honoured(traced: Traced) -> None:
    """A caller whose sampled flag is off gets its answer and no span."""
    caller_trace.set({"traceparent": f"00-{TRACE}-{PARENT}-00"})
    answer = await invoke("complete", {"prompt": "x", "max_new_tokens": 1}, ctx=traced.ctx)
    assert answer["text"]
    assert traced.spans() == []


async def test_texts_stay_out(traced: Traced) -> None:
    """Neither prompt, answer nor stop strings are in any span, whatever field a caller writes them in."""
    payload = {"prompt": PROMPT, "max_new_tokens": 30, "temperature": 0, "stop": ["halt here"]}
    answer = await invoke("complete", payload, ctx=traced.ctx)
    with pytest.raises(Exception, match="temperature"):
        await invoke("complete", {"prompt": PROMPT, "temperature": PROMPT, "seed": 10**30}, ctx=traced.ctx)
    told = " ".join(span.to_json() for span in traced.spans())
    assert answer["text"]
    for text in (PROMPT, answer["text"], "halt here"):
        assert text not in told


async def test_mistakes_and_faults(traced: Traced) -> None:
    """A caller's mistake is named and leaves the status alone; a fault of the service is an error."""
    traced.made.runner.fail = lambda row: InternalError("planted")
    with pytest.raises(ContextLengthExceeded):
        await invoke("complete", {"prompt": "x" * 5000, "max_new_tokens": 1}, ctx=traced.ctx)
    with pytest.raises(InternalError):
        await invoke("complete", {"prompt": "x", "max_new_tokens": 1}, ctx=traced.ctx)
    mistake, *children, fault = traced.spans()
    assert [span.name for span in (mistake, *children, fault)] == ["complete", "queue", "prefill", "complete"]
    assert (said(mistake)["error.type"], mistake.status.status_code) == ("context_length_exceeded", StatusCode.UNSET)
    assert (said(fault)["error.type"], fault.status.status_code) == ("internal_error", StatusCode.ERROR)


async def test_a_caller_that_goes_away(traced: Traced) -> None:
    """The span ends with the request, and says that nobody waited for it."""
    events = invoke_stream("complete", {"prompt": "x", "max_new_tokens": 1000}, ctx=traced.ctx)
    await anext(events)
    await events.aclose()
    await until(lambda: traced.made.idle)
    spans = by_name(traced.spans())
    assert spans.keys() == {"queue", "prefill", "decode", "complete"}
    assert said(spans["complete"])["error.type"] == "cancelled"


async def test_what_is_asked_every_second_is_not_traced(traced: Traced) -> None:
    """Probes and pages leave no spans."""
    for operation in ("health", "models", "model_info", "stats", "cache_stats"):
        await invoke(operation, {}, ctx=traced.ctx)
    assert traced.spans() == []


def test_off_imports_nothing() -> None:
    """Without TRACING the application does not even import opentelemetry."""
    code = (
        "import sys; from app import create_app; from runtime.settings import Settings; create_app(Settings.load());"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)


def test_on_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRACING=true stops at start where OpenTelemetry is missing, and says what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"TRACING: .*pip install 'warmstart\[otel\]'"):
        build_context(Settings.load(tracing=True))


def test_on_with_wrong_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own variables are named too when they are wrong."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(SettingsError, match=r"TRACING: .*max_queue_size"):
        build_context(Settings.load(tracing=True))


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[ExportTraceServiceRequest]]:
    """An OTLP/HTTP receiver that the SDK's variables point to; what it was sent."""
    received: list[ExportTraceServiceRequest] = []

    async def take(request: web.Request) -> web.Response:
        received.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    server = TestServer(app)
    await server.start_server()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", str(server.make_url("/")))
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    yield received
    await server.close()


async def test_over_http_to_a_collector(
    collector: list[ExportTraceServiceRequest], aiohttp_client: Any, tiny_gpt2: Path
) -> None:
    """A real request to a real model reaches a real receiver, all of it at the latest when the service ends."""
    settings = Settings.load(tracing=True, model_name=str(tiny_gpt2), kv_cache_bytes=1 << 20)
    http = await aiohttp_client(create_app(settings))
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine-1"}
    answer = await http.post("/complete", json={"prompt": "You", "max_new_tokens": 3}, headers=headers)
    assert answer.status == 200
    await http.get("/stats")
    await http.close()
    resources = [resource for request in collector for resource in request.resource_spans]
    named = {a.key: a.value.string_value for resource in resources for a in resource.resource.attributes}
    assert named["service.name"] == "mine"
    spans = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == ["complete tiny-gpt2", "decode", "prefill", "queue"]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    (request,) = [span for span in spans if span.name == "complete tiny-gpt2"]
    assert request.parent_span_id.hex() == PARENT
    assert {a.key: a.value.string_value for a in request.attributes}["warmstart.request_id"] == "mine-1"


async def test_a_collector_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, unused_tcp_port: int
) -> None:
    """Requests are answered as ever, the log tells of it once, and the end does not wait for it."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{unused_tcp_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setattr(tracing_module, "_FLUSH_SECONDS", 0.1)
    made = Made()
    tracing = tracing_module.start_tracing("0.test")
    ctx = replace(fake_context(made.engine), tracing=tracing)  # type: ignore[arg-type]

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name.startswith("opentelemetry")]

    for seed in range(20):
        assert (await invoke("complete", {"prompt": "x", "max_new_tokens": 2, "seed": seed}, ctx=ctx))["text"]
    await until(told)
    for seed in range(20):
        assert (await invoke("complete", {"prompt": "x", "max_new_tokens": 2, "seed": seed}, ctx=ctx))["text"]
    await asyncio.to_thread(tracing.close)
    assert len(told()) == 1
    made.engine.close()


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        pytest.param(f"00-{TRACE}-{PARENT}-01", True, id="sampled"),
        pytest.param(f"00-{TRACE}-{PARENT}-00", True, id="not sampled"),
        pytest.param(f"00-{TRACE}-{PARENT}-ff", True, id="unknown flags"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01", True, id="higher version"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01-what-comes-then", True, id="higher version with more"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01.what", False, id="higher version with more, but no dash"),
        pytest.param(f"00-{TRACE}-{PARENT}-01-more", False, id="version 00 with more"),
        pytest.param(f"00-{TRACE}-{PARENT}-01-", False, id="version 00 with a dash more"),
        pytest.param(f"ff-{TRACE}-{PARENT}-01", False, id="version ff"),
        pytest.param(f"0-{TRACE}-{PARENT}-01", False, id="short version"),
        pytest.param(f"00-{'0' * 32}-{PARENT}-01", False, id="trace of zeros"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", False, id="parent of zeros"),
        pytest.param(f"00-{TRACE.upper()}-{PARENT}-01", False, id="capitals"),
        pytest.param(f"00-{TRACE[1:]}-{PARENT}-01", False, id="short trace"),
        pytest.param(f"00-{TRACE}0-{PARENT}-01", False, id="long trace"),
        pytest.param(f"00-{TRACE}-{PARENT[1:]}-01", False, id="short parent"),
        pytest.param(f"00-{TRACE}-{PARENT}", False, id="no flags"),
        pytest.param(f"00-{TRACE}-{PARENT}-1", False, id="short flags"),
        pytest.param(f"00-{TRACE}-{PARENT}-zz", False, id="no hex"),
        pytest.param(f" 00-{TRACE}-{PARENT}-01", False, id="blank before"),
        pytest.param(f"00-{TRACE}-{PARENT}-01\n", False, id="line break after"),
        pytest.param(f"00_{TRACE}_{PARENT}_01", False, id="underscores"),
        pytest.param(f"٠٠-{TRACE}-{PARENT}-01", False, id="digits, but not ASCII"),  # noqa: RUF001 - that is the point
        pytest.param("", False, id="empty"),
    ],
)
def test_traceparent(value: str, valid: bool) -> None:
    """W3C Trace Context section 3.2: a value that is not valid is ignored as if it were not there."""
    assert parse_traceparent(value) == ((TRACE, PARENT) if valid else None)


FIELDS = ["00", "01", "ff", "0A", "", TRACE, TRACE.upper(), "0" * 32, PARENT, PARENT[1:], "0" * 16, "g" * 16]
TRACEPARENTS = st.text(max_size=60) | st.lists(st.sampled_from(FIELDS), max_size=6).map("-".join)


@examples(max_examples=soak(10_000))
@any_of(TRACEPARENTS)
def test_any_traceparent(value: str) -> None:
    """Any text is no trace, or one that reads field by field as the recommendation has it."""
    found = parse_traceparent(value)
    version, *fields = value.split("-")
    lower = [re.fullmatch("[0-9a-f]+", field) is not None for field in (version, *fields[:3])]
    valid = (
        len(fields) >= 3
        and all(lower)
        and [len(version), *map(len, fields[:3])] == [2, 32, 16, 2]
        and version != "ff"
        and set(fields[0]) != {"0"}
        and set(fields[1]) != {"0"}
        and (version != "00" or len(fields) == 3)
        and "\n" not in value
    )
    assert found == ((fields[0], fields[1]) if valid else None)
