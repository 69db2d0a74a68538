"""CloudEvents 1.0 over HTTP, for any HTTP server: processes a request's events and builds the response.

An event that is done or rejected is answered with an event, in the request's content mode. If it must be sent again,
the response is an ordinary error with ``Retry-After``; input that is no event also gets an ordinary error. A batch is
either answered as a whole or must be sent again as a whole: events that are done then get their cached responses.

Statuses follow Knative Eventing's data plane contract: 404, 408, 409, 429 and all 5xx are redelivered; after any other
4xx an event goes to the dead letter sink at once.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent

from runtime.errors import Draining, ServiceError
from runtime.events.cloudevents.attributes import percent_encoded
from runtime.events.cloudevents.parse import BATCH, Mode, envelope, parse
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.envelope import TRACEPARENT, Envelope
from runtime.events.outcome import Ack, Outcome, Reject, Retry
from runtime.events.processor import Processor
from runtime.json_answer import dumps, is_large
from runtime.telemetry.request_scope import request_scope

SOURCE = "/warmstart"
"""The source attribute of all answers; their ids are unique across processes."""

_REDELIVERED_STATUSES = frozenset({404, 408, 409, 429})
_REJECTED = 422  # RFC 9110 section 15.5.21
_CANCELLED = Retry(0, Draining("the client closed the connection"))


@dataclass(frozen=True, slots=True)
class EventResponse:
    """The response to a request.

    Args:
        status: the HTTP status: 200, or a 4xx if the request's single event is rejected.
        headers: the headers, with lower-case names.
        body: one event, a batch, or the data of one event in binary mode.
        rejected: the errors of the rejected events.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    rejected: tuple[ServiceError, ...]


class CloudEventsService:
    """Processes the events of HTTP requests.

    Args:
        processor: processes the events.
        reporter: reports each event to log, metrics and audit log.
        concurrency: the maximum number of events of one request that are processed concurrently.
        max_depth: the maximum depth of JSON.
    """

    def __init__(self, processor: Processor, reporter: DeliveryReporter, *, concurrency: int, max_depth: int) -> None:
        self._processor = processor
        self._reporter = reporter
        self._concurrency = concurrency
        self._max_depth = max_depth

    async def answer(
        self,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        *,
        caller: str = "",
        on_event: Callable[[Envelope], None] = lambda envelope: None,
    ) -> EventResponse:
        """Process the events of a request; their tokens are added to the request's usage.

        Args:
            headers: the request's headers.
            body: the request's body.
            caller: identifies the sender, so that no sender gets the cached responses of another.
            on_event: called with each event's envelope before it is processed.

        Returns:
            The response.

        Raises:
            ServiceError: the request holds no event, or must be sent again.
        """
        headers = list(headers)
        mode, events = parse(headers, body, self._max_depth)
        traceparent = next((value for name, value in headers if name.lower() == TRACEPARENT), None)
        slots, request_usage = asyncio.Semaphore(self._concurrency), request_scope.get().usage

        async def work(event: CloudEvent) -> Outcome:
            async with slots:
                report = self._reporter.begin(1)  # HTTP has no delivery count
                request_scope.set(replace(request_scope.get(), caller=caller))
                outcome: Outcome = _CANCELLED
                try:
                    request = envelope(event, traceparent=traceparent, max_depth=self._max_depth)
                    report.identify(request)
                    on_event(request)
                    if caller:
                        request = replace(request, source=f"{caller} {request.source}")
                    outcome = await self._processor(request)
                except ServiceError as error:
                    outcome = Reject(error)
                finally:
                    report.end(outcome, settled=outcome is not _CANCELLED)
                    usage = request_scope.get().usage
                    if request_usage is not None and usage is not None and usage.total is not None:
                        request_usage.add(replace(usage.total, cache=None))  # one response has no one use of the cache
                return outcome

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(event)) for event in events]
        outcomes = [task.result() for task in tasks]
        if any(isinstance(outcome, Ack) and is_large(outcome.result) for outcome in outcomes):
            return await asyncio.to_thread(_build_response, mode, events, outcomes)
        return _build_response(mode, events, outcomes)


def _build_response(mode: Mode, events: Sequence[CloudEvent], outcomes: Sequence[Outcome]) -> EventResponse:
    retries = [outcome for outcome in outcomes if isinstance(outcome, Retry)]
    if retries:
        last = max(retries, key=lambda outcome: outcome.delay)
        last.error.retry_after = last.delay
        raise last.error
    settled = [
        (event, outcome) for event, outcome in zip(events, outcomes, strict=True) if not isinstance(outcome, Retry)
    ]
    rejected = tuple(outcome.error for _, outcome in settled if isinstance(outcome, Reject))
    status = _status(rejected[0]) if rejected and mode != "batch" else 200
    return EventResponse(status, *_render(mode, [_reply(event, outcome) for event, outcome in settled]), rejected)


def _reply(event: CloudEvent, outcome: Ack | Reject) -> CloudEvent:
    """Build the answer: an event of type ``<type>.result`` or ``<type>.error``, whose data is HTTP's response body.

    Its ``causationid`` (the extension Correlation) is the event's id. If the same event is sent again, the answer has
    the same id, so that receivers can recognize duplicates.
    """
    kind, data = ("result", outcome.result) if isinstance(outcome, Ack) else ("error", outcome.error.openai())
    name = json.dumps([event["source"], event["id"], event["type"], kind])
    attributes = {
        "specversion": "1.0",
        "id": sha256(name.encode()).hexdigest(),
        "source": SOURCE,
        "type": f"{event['type']}.{kind}",
        "datacontenttype": "application/json",
        "causationid": event["id"],
    }
    if "traceparent" in event:
        attributes["traceparent"] = event["traceparent"]
    return CloudEvent(attributes, data)


def _render(mode: Mode, replies: Sequence[CloudEvent]) -> tuple[dict[str, str], bytes]:
    """Encode the answers in the request's content mode; return headers and body."""
    if mode == "batch":
        return {"content-type": BATCH}, b"[" + b", ".join(_structured(reply)[1] for reply in replies) + b"]"
    (reply,) = replies
    if mode == "structured":
        return _structured(reply)
    headers, body = to_binary(reply, dumps)  # which does not percent-encode values
    return {name: percent_encoded(text) if name.startswith("ce-") else text for name, text in headers.items()}, body


def _structured(reply: CloudEvent) -> tuple[dict[str, str], bytes]:
    """Encode an event in structured mode; its data is encoded by ``dumps``, in pieces; return headers and body."""
    mark = secrets.token_hex(16)
    headers, body = to_structured(reply, lambda data: mark)
    return headers, body.replace(f'"{mark}"'.encode(), dumps(reply.data))


def _status(error: ServiceError) -> int:
    """Return the response status of a rejected event, one after which it is not redelivered."""
    return _REJECTED if error.status >= 500 or error.status in _REDELIVERED_STATUSES else error.status
