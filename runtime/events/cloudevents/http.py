"""CloudEvents 1.0 over HTTP, whoever serves it: the answer to a request.

An event that is done or rejected is answered with an event, in the content mode that it came in. What must be sent
again is answered as any error is, with ``Retry-After``, and so is what is no event. Of a batch, either all events are
answered, or the whole is to be sent again: those that are done are then answered from their records.

Statuses are those of Knative Eventing's data plane contract: 404, 408, 409, 429 and all 5xx are delivered again, after
any other 4xx an event goes to the dead letter sink at once.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

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
from runtime.telemetry.request_scope import request_caller, request_usage

SOURCE = "/warmstart"
"""Of all answers; their ids differ wherever they were made."""

_DELIVERED_AGAIN = frozenset({404, 408, 409, 429})
_REJECTED = 422  # RFC 9110 section 15.5.21
_GONE = Retry(0, Draining("its sender has gone"))


@dataclass(frozen=True, slots=True)
class EventResponse:
    """To a request.

    Args:
        status: 200, or what says that its one event is rejected.
        headers: their names in lower case.
        body: one event or a batch, or the data of one.
        rejected: why events were.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    rejected: tuple[ServiceError, ...]


class CloudEventsService:
    """Works on events.

    Args:
        processor: does the work.
        reporter: told of each event.
        concurrency: events of one request that are worked on at once.
        max_depth: of JSON.
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
        begun: Callable[[Envelope], None] = lambda envelope: None,
    ) -> EventResponse:
        """Work on the events of a request; their tokens are added up in ``request_usage``.

        Args:
            headers: of the request.
            body: of the request.
            caller: tells senders apart, so that none gets at what another's events were answered.
            begun: told of each event's work.

        Raises:
            ServiceError: it is no event, or must be sent again.
        """
        headers = list(headers)
        mode, events = parse(headers, body, self._max_depth)
        traceparent = next((value for name, value in headers if name.lower() == TRACEPARENT), None)
        slots, total = asyncio.Semaphore(self._concurrency), request_usage.get()

        async def work(event: CloudEvent) -> Outcome:
            async with slots:
                report = self._reporter.begin(1)  # senders do not tell how often they have sent it
                request_caller.set(caller)
                outcome: Outcome = _GONE
                try:
                    found = envelope(event, traceparent=traceparent, max_depth=self._max_depth)
                    report.name(found)
                    begun(found)
                    if caller:
                        found = replace(found, source=f"{caller} {found.source}")
                    outcome = await self._processor(found)
                except ServiceError as error:
                    outcome = Reject(error)
                finally:
                    report.end(outcome, settled=outcome is not _GONE)
                    _add(total, request_usage.get())
                return outcome

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work(event)) for event in events]
        outcomes = [task.result() for task in tasks]
        if any(isinstance(outcome, Ack) and is_large(outcome.result) for outcome in outcomes):
            return await asyncio.to_thread(_answer, mode, events, outcomes)
        return _answer(mode, events, outcomes)


def _answer(mode: Mode, events: Sequence[CloudEvent], outcomes: Sequence[Outcome]) -> EventResponse:
    again = [outcome for outcome in outcomes if isinstance(outcome, Retry)]
    if again:
        last = max(again, key=lambda outcome: outcome.delay)
        last.error.retry_after = last.delay
        raise last.error
    ended = [
        (event, outcome) for event, outcome in zip(events, outcomes, strict=True) if not isinstance(outcome, Retry)
    ]
    rejected = tuple(outcome.error for _, outcome in ended if isinstance(outcome, Reject))
    status = _status(rejected[0]) if rejected and mode != "batch" else 200
    return EventResponse(status, *_render(mode, [_reply(event, outcome) for event, outcome in ended]), rejected)


def _add(total: dict[str, Any] | None, usage: dict[str, Any] | None) -> None:
    if total is not None and usage:
        for name in usage.keys() & {"prompt_tokens", "completion_tokens"}:
            total[name] = total.get(name, 0) + usage[name]


def _reply(event: CloudEvent, outcome: Ack | Reject) -> CloudEvent:
    """The answer: an event of type ``<type>.result`` or ``<type>.error``, with what HTTP would have sent as its data.

    Its ``causationid`` (the extension Correlation) is the event's id. The answer to the same event, sent again, has the
    same id, so that those behind can tell, too.
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
    """Headers and body, in the mode of the request."""
    if mode == "batch":
        return {"content-type": BATCH}, b"[" + b", ".join(_structured(reply)[1] for reply in replies) + b"]"
    (reply,) = replies
    if mode == "structured":
        return _structured(reply)
    headers, body = to_binary(reply, dumps)  # which leaves values as they are
    return {name: percent_encoded(text) if name.startswith("ce-") else text for name, text in headers.items()}, body


def _structured(reply: CloudEvent) -> tuple[dict[str, str], bytes]:
    """Headers and body in structured mode, whose data is encoded by ``dumps`` and not all at once."""
    mark = secrets.token_hex(16)
    headers, body = to_structured(reply, lambda data: mark)
    return headers, body.replace(f'"{mark}"'.encode(), dumps(reply.data))


def _status(error: ServiceError) -> int:
    """Of the answer to an event that is rejected: none that has it delivered again."""
    return _REJECTED if error.status >= 500 or error.status in _DELIVERED_AGAIN else error.status
