"""OpenTelemetry traces: one span per request, with child spans for the engine's queue, prefill and decode times.

Attributes follow the semantic conventions for generative AI; texts never go into spans. A thread sends spans over
OTLP/HTTP to the endpoint in the SDK's own ``OTEL_*`` variables. opentelemetry is imported only once tracing starts.
"""

from __future__ import annotations

import atexit
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import SettingsError
from runtime.telemetry.request_scope import request_facts

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

# The caller's W3C headers (traceparent, tracestate), set by the adapter that received a valid traceparent.
caller_trace: ContextVar[Mapping[str, str] | None] = ContextVar("caller_trace", default=None)
# The trace of the request being served; None if it is not traced.
current_trace: ContextVar[RequestTrace | None] = ContextVar("current_trace", default=None)

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?")

_FLUSH_SECONDS = 5.0
_QUIET_SECONDS = 60.0
_EXPORT_LOGS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")


@dataclass(frozen=True, slots=True)
class GenerationTimings:
    """The timings and token counts of one generation. Times are monotonic seconds, 0 for events that never happened.

    Args:
        model: the model's id.
        arrived: the time at which the generation was requested.
        started: the time at which its first step began.
        first: the time of its first token.
        last: the time of its last token.
        ended: the time at which its stream was closed.
        prompt_tokens: the tokens of all prompts that produced a first token.
        cached_tokens: how many of those were in the prefix cache.
        tokens: the number of generated tokens.
    """

    model: str
    arrived: float
    started: float
    first: float
    last: float
    ended: float
    prompt_tokens: int
    cached_tokens: int
    tokens: int


def parse_traceparent(value: str) -> tuple[str, str] | None:
    """Return (trace id, parent id), or None if the header is not valid and is ignored (W3C Trace Context section 3.2).

    Version 00 has exactly four fields; a higher version may have more.
    """
    match = _TRACEPARENT.fullmatch(value)
    if match is None or (value.startswith("00") and len(value) != 55):
        return None
    return match.group(1), match.group(2)


def continue_trace(traceparent: str | None, tracestate: str = "") -> dict[str, str]:
    """Make the caller's trace the parent of the request's spans, and return its ids for the request's log lines.

    Args:
        traceparent: the caller's header; None if there is none.
        tracestate: the caller's header, several lines joined by commas.

    Returns:
        ``trace_id`` and ``parent_id``; nothing if the header is missing or not valid, and then there is no parent.
    """
    ids = parse_traceparent(traceparent) if traceparent else None
    if traceparent is None or ids is None:
        caller_trace.set(None)  # an earlier request of the same task may have set one
        return {}
    caller_trace.set({"traceparent": traceparent} | ({"tracestate": tracestate} if tracestate else {}))
    return {"trace_id": ids[0], "parent_id": ids[1]}


def start_tracing(version: str) -> Tracer:
    """Start tracing, with an exporter that sends the spans over OTLP/HTTP.

    Args:
        version: the service's version.

    Raises:
        SettingsError: opentelemetry is not installed, or one of its variables is wrong.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Tracer(OTLPSpanExporter(), version)
    except ImportError:
        raise SettingsError("TRACING: OpenTelemetry is not installed; run: pip install 'warmstart[otel]'") from None
    except ValueError as error:
        raise SettingsError(f"TRACING: OpenTelemetry does not start: {error}") from None


class Tracer:
    """Creates the spans of requests. Implements ``handlers.protocols.Tracing``.

    Args:
        exporter: gets the ended spans in batches, from a thread.
        version: the service's version.
    """

    def __init__(self, exporter: SpanExporter, version: str) -> None:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._provider: TracerProvider = TracerProvider(resource=_resource(version), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("warmstart", version)
        self._export_filter = _OncePerMinute()
        for name in _EXPORT_LOGS:
            logging.getLogger(name).addFilter(self._export_filter)
        atexit.register(self.close)

    def request(self, operation: str) -> RequestTrace:
        """Start a request's span, as a child of the caller's if it sent one; its log lines get the trace id."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = caller_trace.get()
        parent = None if carrier is None else TraceContextTextMapPropagator().extract(carrier)
        span = self._tracer.start_span(operation, context=parent, kind=SpanKind.SERVER)
        facts = request_facts.get()
        if facts is not None:
            facts.setdefault("trace_id", f"{span.get_span_context().trace_id:032x}")
            span.set_attribute("warmstart.request_id", str(facts["request_id"]))
        return RequestTrace(self._tracer, span)

    def close(self) -> None:
        """Send the remaining spans, for 5 s at most; later ones are dropped."""
        atexit.unregister(self.close)
        # On a thread, because the SDK waits much longer for a collector that does not answer.
        thread = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        thread.start()
        thread.join(_FLUSH_SECONDS)
        if not thread.is_alive():  # otherwise it still logs, so the filter is kept
            for name in _EXPORT_LOGS:
                logging.getLogger(name).removeFilter(self._export_filter)


class RequestTrace:
    """The span of one request. Implements ``handlers.protocols.Trace``.

    Args:
        tracer: the OpenTelemetry tracer that creates the child spans.
        span: the request's span.
    """

    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer = tracer
        self._span = span
        self._sampled = span.is_recording()
        self._epoch = time.time() - time.monotonic()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the current trace inside the block, so that generations started there belong to this request."""
        token = current_trace.set(self)
        try:
            yield
        finally:
            current_trace.reset(token)

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes to the span; those that are None are left out."""
        if self._sampled:
            self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def generated(self, timings: GenerationTimings) -> None:
        """Add the child spans of a generation that has ended, for the phases it reached."""
        if not self._sampled:
            return
        model = {"gen_ai.response.model": timings.model}
        self._child("queue", timings.arrived, timings.started or timings.ended, model)
        if timings.started:
            read = {
                "gen_ai.usage.input_tokens": timings.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": timings.cached_tokens,
            }
            self._child("prefill", timings.started, timings.first or timings.ended, model | read)
        if timings.first:
            self._child("decode", timings.first, timings.last, model | {"gen_ai.usage.output_tokens": timings.tokens})

    def end(self, name: str, error: str | None = None, *, failed: bool = False) -> None:
        """End the span.

        Args:
            name: the span's name, from a bounded set only, so never text from a caller.
            error: the error's code, if there was one.
            failed: whether the error is the service's fault.
        """
        from opentelemetry.trace import StatusCode

        self._span.update_name(name)
        if error is not None:
            self._span.set_attribute("error.type", error)
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def _child(self, name: str, start: float, end: float, attributes: Mapping[str, Any]) -> None:
        from opentelemetry.trace import set_span_in_context

        parent = set_span_in_context(self._span)
        child = self._tracer.start_span(name, context=parent, attributes=attributes, start_time=self._wall(start))
        child.end(self._wall(end))

    def _wall(self, moment: float) -> int:
        """Convert monotonic seconds to Unix time in nanoseconds."""
        return int((moment + self._epoch) * 1e9)


class _OncePerMinute(logging.Filter):
    """A filter that passes one record a minute, so that an unavailable collector does not flood the log."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created < self._next:
            return False
        self._next = record.created + _QUIET_SECONDS
        return True


def _resource(version: str) -> Any:
    """Return the traced resource; ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` override the default name."""
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource

    resource = Resource.create({SERVICE_VERSION: version})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: "warmstart"}))
    return resource
