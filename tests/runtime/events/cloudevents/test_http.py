"""runtime.events.cloudevents.http: requests with events and the answers to them, and the contract of status codes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cloudevents.http import from_http
from prometheus_client import CollectorRegistry

import runtime.errors
from runtime.errors import (
    Draining,
    IdempotencyConflict,
    IdempotencyMismatch,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    PayloadTooLarge,
    ServiceError,
    TooManyRequests,
)
from runtime.events.cloudevents import http as cloudevents_http
from runtime.events.cloudevents.http import CloudEventsService, EventResponse
from runtime.events.cloudevents.parse import BATCH, STRUCTURED
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.envelope import Envelope, encode
from runtime.events.idempotency.memory import MemoryRecords
from runtime.events.outcome import Policy, Reject
from runtime.events.processor import Processor
from runtime.json_answer import MAX_INLINE_ITEMS
from runtime.telemetry.event_metrics import EventMetrics
from runtime.telemetry.request_scope import RequestScope, UsageCounter, current_caller, observe_usage, request_scope
from runtime.types import TokenUsage
from tests.support.fakes import until

RETRIED = {404, 408, 409, 429, *range(500, 600)}  # Knative Eventing, data plane contract
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/here",
    "type": "warmstart.generate",
    "data": {"prompt": "Hi"},
}
RESULT = {"text": "Hello é\n", "n": 1.5}


class Served:
    """A service whose operation raises what the event's data name as ``raise``, or answers ``result``."""

    def __init__(self, *, records: bool = True, concurrency: int = 4, result: Mapping[str, Any] = RESULT) -> None:
        self._result = result
        self.calls: list[Envelope] = []
        self.callers: list[str] = []
        self.running = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.metrics = CollectorRegistry()
        processor = Processor(
            self._dispatch, MemoryRecords() if records else None, Policy(draw=lambda: 0.5), clock=lambda: 100.0
        )
        reporter = DeliveryReporter("http", ["generate"], EventMetrics(self.metrics))
        self._service = CloudEventsService(processor, reporter, concurrency=concurrency, max_depth=100)

    async def _dispatch(self, envelope: Envelope, send_chunk: Any = None) -> Mapping[str, Any]:
        self.calls.append(envelope)
        self.callers.append(current_caller())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if (wanted := envelope.data.get("raise")) is not None:
                raise getattr(runtime.errors, wanted)("planted")
            observe_usage(TokenUsage(2, 3))
            return self._result
        finally:
            self.running -= 1

    async def post(self, body: Any, headers: Mapping[str, str] = {}, **options: Any) -> EventResponse:
        """A request: bytes go as they are, a list as a batch, a dict as an event."""
        kind = BATCH if isinstance(body, list) else STRUCTURED
        if not isinstance(body, bytes):
            headers = {"Content-Type": kind, **headers}
            body = json.dumps(body).encode()
        return await self._service.answer(headers.items(), body, **options)


def errors() -> Iterator[ServiceError]:
    """One of each kind that there is."""
    for kind in vars(runtime.errors).values():
        if isinstance(kind, type) and issubclass(kind, ServiceError):
            yield kind("planted")


def binary(**attributes: str) -> dict[str, str]:
    """Headers of the event in binary mode."""
    named = {name: value for name, value in EVENT.items() if name != "data"} | attributes
    return {"content-type": "application/json"} | {f"ce-{name}": value for name, value in named.items()}


async def test_structured() -> None:
    """An event for an event; the package reads it; its data are byte for byte what the operation answers over HTTP."""
    answer = await Served().post(EVENT)
    assert (answer.status, answer.rejected) == (200, ())
    reply = from_http(answer.headers, answer.body)
    assert reply.data == RESULT
    assert encode(RESULT) in answer.body
    assert {name: reply[name] for name in ("specversion", "source", "type", "datacontenttype", "causationid")} == {
        "specversion": "1.0",
        "source": "/warmstart",
        "type": "warmstart.generate.result",
        "datacontenttype": "application/json",
        "causationid": "1",
    }


async def test_binary() -> None:
    """The same in headers, which hold printable ASCII whatever the event is called; the body is the answer as it is."""
    answer = await Served().post(
        b'{"prompt": "Hi"}', binary(id="1%20%C3%A9", type="t%22", warmstartoperation="generate")
    )
    assert (answer.status, answer.body) == (200, encode(RESULT))
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["ce-causationid"] == "1%20%C3%A9"
    assert answer.headers["ce-type"] == "t%22.result"
    assert all(value.isascii() and value.isprintable() for value in answer.headers.values())
    assert from_http(answer.headers, answer.body).data == RESULT


async def test_a_large_answer_is_rendered_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each mode its bytes are those of a small one's making, and the event loop goes on meanwhile."""
    threads, render = set[int](), cloudevents_http._render

    def watched(*arguments: Any) -> tuple[dict[str, str], bytes]:
        threads.add(threading.get_ident())
        return render(*arguments)

    monkeypatch.setattr(cloudevents_http, "_render", watched)
    await Served().post(EVENT)
    assert threads == {threading.get_ident()}
    threads.clear()
    large = {"text": "é", "logprobs": [[1, "a"], {"b": None}] * MAX_INLINE_ITEMS}
    service = Served(result=large)
    for body, headers in ((EVENT, {}), ([EVENT], {}), (b'{"prompt": "Hi"}', binary())):
        answer = await service.post(body, headers)
        assert encode(large) in answer.body
    assert threads
    assert threading.get_ident() not in threads


async def test_batch() -> None:
    """A batch for a batch, in its order; one that is rejected is answered with its error, beside the others."""
    service = Served()
    answer = await service.post([EVENT, EVENT | {"id": "2", "data": {"raise": "InvalidRequest"}}, {**EVENT, "id": "3"}])
    assert (answer.status, answer.headers) == (200, {"content-type": BATCH})
    replies = json.loads(answer.body)
    assert [(reply["causationid"], reply["type"]) for reply in replies] == [
        ("1", "warmstart.generate.result"),
        ("2", "warmstart.generate.error"),
        ("3", "warmstart.generate.result"),
    ]
    assert replies[1]["data"] == InvalidRequest("planted").openai()
    assert [error.code for error in answer.rejected] == ["invalid_request"]
    assert (await service.post([])).body == b"[]"


async def test_batches_are_bounded() -> None:
    """No more events of one request are worked on at once than are allowed."""
    service = Served(concurrency=3)
    service.gate.clear()
    waiting = asyncio.create_task(service.post([EVENT | {"id": str(number)} for number in range(20)]))
    await until(lambda: service.running == 3)
    service.gate.set()
    assert len(json.loads((await waiting).body)) == 20
    assert service.most == 3


async def test_again() -> None:
    """The same event is not worked on again; it is answered as before, with the same id, in whatever mode it comes."""
    service = Served()
    first = await service.post(EVENT)
    again = await service.post(b'{"prompt": "Hi"}', binary())
    assert len(service.calls) == 1
    assert again.headers["ce-id"] == json.loads(first.body)["id"]
    assert again.body == encode(RESULT)
    other = await service.post(EVENT | {"source": "/there"})
    assert len(service.calls) == 2
    assert json.loads(other.body)["id"] != json.loads(first.body)["id"]


async def test_another_payload() -> None:
    """The same id with another payload is rejected, and not delivered again."""
    service = Served()
    await service.post(EVENT)
    answer = await service.post(EVENT | {"data": {"prompt": "other"}})
    assert answer.status == IdempotencyMismatch.status == 422
    assert json.loads(answer.body)["data"]["error"]["code"] == "idempotency_mismatch"


async def test_senders_are_apart() -> None:
    """What one sender's event was answered, another's of the same name is not; nor does it stand in its way."""
    service = Served()
    for caller in ("alice", "bob"):
        assert (await service.post(EVENT | {"data": {"prompt": caller}}, caller=caller)).status == 200
    assert service.callers == ["alice", "bob"]
    await service.post(EVENT | {"data": {"prompt": "alice"}}, caller="alice")
    assert len(service.calls) == 2


async def test_being_worked_on() -> None:
    """The same event at the same time is 409, as Knative has it for that: it comes again later."""
    service = Served()
    service.gate.clear()
    first = asyncio.create_task(service.post(EVENT))
    await until(lambda: service.calls)
    with pytest.raises(IdempotencyConflict) as caught:
        await service.post(EVENT)
    assert caught.value.status == 409
    assert caught.value.retry_after
    service.gate.set()
    assert (await first).status == 200


@pytest.mark.parametrize("error", list(errors()), ids=lambda error: type(error).__name__)
async def test_statuses(error: ServiceError) -> None:
    """Whatever may come of an event: what is to come again has a status that is sent again, what is not has none."""
    outcome = Policy().outcome(error, 1)
    service = Served(records=False)
    if isinstance(outcome, Reject):
        answer = await service.post(EVENT | {"data": {"raise": type(error).__name__}})
        assert 400 <= answer.status < 500
        assert answer.status not in RETRIED
        assert json.loads(answer.body)["type"] == "warmstart.generate.error"
        assert json.loads(answer.body)["data"] == error.openai()
    else:
        with pytest.raises(type(error)) as caught:
            await service.post(EVENT | {"data": {"raise": type(error).__name__}})
        assert caught.value.status in RETRIED
        assert caught.value.retry_after == pytest.approx(0.5, abs=0.5)


async def test_rejected_in_binary_mode() -> None:
    """The body is OpenAI's error object, which a dead letter then holds (Knative's knativeerrordata)."""
    answer = await Served().post(b'{"raise": "ModelNotFound"}', binary())
    assert answer.status == 422
    assert answer.body == encode(ModelNotFound("planted").openai())
    assert answer.headers["ce-type"] == "warmstart.generate.error"


async def test_a_batch_to_be_sent_again() -> None:
    """If one must come again, all must; what was done is not done twice then."""
    service = Served()
    batch = [
        EVENT,
        EVENT | {"id": "2", "data": {"raise": "Draining"}},
        EVENT | {"id": "3", "data": {"raise": "NotFound"}},
    ]
    with pytest.raises(Draining) as caught:
        await service.post(batch)
    assert (caught.value.status, caught.value.retry_after) == (503, 0.5)
    with pytest.raises(Draining):
        await service.post(batch)
    assert [call.id for call in service.calls] == ["1", "2", "3", "2", "3"]


async def test_a_bug_is_sent_again() -> None:
    """What was not foreseen is 500, without a word of what it was."""

    class Broken(Served):
        async def _dispatch(self, envelope: Envelope, send_chunk: Any = None) -> Mapping[str, Any]:
            raise KeyError("secret")

    with pytest.raises(InternalError) as caught:
        await Broken().post(EVENT)
    assert "secret" not in caught.value.message


async def test_deadline() -> None:
    """An event whose time is over is not worked on, and does not come again."""
    service = Served()
    answer = await service.post(EVENT | {"expirytime": "1970-01-01T00:01:39Z"})
    assert (answer.status, service.calls) == (422, [])
    assert json.loads(answer.body)["data"]["error"]["code"] == "deadline_passed"
    assert (await service.post(EVENT | {"expirytime": "1970-01-01T00:01:50Z"})).status == 200


async def test_what_is_no_event() -> None:
    """It is answered as any wrong request is, and nothing is done, whatever else is in the batch."""
    service = Served()
    for body, error in (([EVENT, {}], InvalidRequest), ({}, InvalidRequest), ([EVENT] * 101, PayloadTooLarge)):
        with pytest.raises(error):
            await service.post(body)
    assert service.calls == []


async def test_without_records() -> None:
    """Where none are kept, every delivery is worked on."""
    service = Served(records=False)
    await service.post(EVENT)
    await service.post(EVENT)
    assert len(service.calls) == 2


async def test_what_is_told() -> None:
    """Tokens of all events are added up for the request, each event counts, and each is told before its work."""
    service, usage, on_event = Served(), UsageCounter(), list[Envelope]()
    token = request_scope.set(RequestScope(usage=usage))
    try:
        await service.post([EVENT, {**EVENT, "id": "2"}, {**EVENT, "id": "3", "type": "?"}], on_event=on_event.append)
    finally:
        request_scope.reset(token)
    assert usage.total == TokenUsage(4, 6)
    assert [envelope.id for envelope in on_event] == ["1", "2"]

    def count(operation: str, outcome: str) -> float | None:
        labels = {"source": "http", "operation": operation, "outcome": outcome}
        return service.metrics.get_sample_value("warmstart:events_total", labels)

    assert (count("generate", "acked"), count("other", "rejected")) == (2, 1)


async def test_trace() -> None:
    """The request's trace is the work's, before the event's own, which goes on into the answer."""
    service = Served()
    for headers, expected in (({}, "own"), ({"Traceparent": "transport"}, "transport")):
        answer = await service.post(EVENT | {"id": expected, "traceparent": "own"}, headers)
        assert service.calls[-1].traceparent == expected
        assert json.loads(answer.body)["traceparent"] == "own"


async def test_the_sender_goes_away() -> None:
    """The work stops with it and is given back: sent again, it is on_event at once."""
    service = Served()
    service.gate.clear()
    sending = asyncio.create_task(service.post([EVENT, {**EVENT, "id": "2"}]))
    await until(lambda: service.running == 2)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert service.running == 0
    service.gate.set()
    assert (await service.post([EVENT, {**EVENT, "id": "2"}])).status == 200
    assert service.metrics.get_sample_value("warmstart:events_in_flight", {"source": "http"}) == 0


async def test_busy() -> None:
    """A full queue is 429 with the time to wait."""
    with pytest.raises(TooManyRequests) as caught:
        await Served().post(EVENT | {"data": {"raise": "TooManyRequests"}})
    assert (caught.value.status, caught.value.retry_after) == (429, 0.5)
