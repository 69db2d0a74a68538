"""Works on AWS Lambda's events that are messages, and tells Lambda which of them are to come again.

Nothing is lost: Lambda deletes what a function does not call failed, so a message that is rejected is called failed
too, until the queue's redrive policy (or the function's failure destination) makes it a dead letter; unless ``send``
takes the error, as it takes the answers. Source: Lambda developer guide, "Handling errors for an SQS event source".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from runtime.errors import DeadlineExceeded, Draining, InternalError, InvalidRequest, ServiceError
from runtime.events.aws_lambda.kinds import Kind
from runtime.events.aws_lambda.messages import from_direct, from_eventbridge, from_sns, from_sqs
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.envelope import ATTEMPT, ID, KIND, OPERATION, REASON, Envelope, encode
from runtime.events.outcome import Ack, Outcome, Reject, Retry
from runtime.events.processor import Processor

_log = logging.getLogger("warmstart.events")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LambdaReply:
    """What came of a message.

    Args:
        kind: whether it is the operation's answer, or an error because of which the message is not tried again.
        body: byte for byte what HTTP answers, or OpenAI's error object.
        headers: as the answers of other queues have them: id, operation, attempt, kind, and an error's reason.
    """

    kind: Literal["result", "error"]
    body: bytes
    headers: Mapping[str, str]


Send = Callable[[Mapping[str, Any], LambdaReply], None]
"""Takes a message as Lambda brought it, and its answer, and puts that somewhere; called on a thread, and again if it
raises: readers tell answers apart by their id."""


class LambdaWorker:
    """See the module.

    Args:
        processor: does the work.
        reporter: tells of it; by the kind of event.
        most: messages worked on at the same time.
        send: takes answers to messages of SQS, SNS and EventBridge; None where nobody wants any.
    """

    def __init__(
        self, processor: Processor, reporter: Callable[[Kind], DeliveryReporter], *, most: int, send: Send | None = None
    ) -> None:
        self._processor = processor
        self._reporter = reporter
        self._most = most
        self._send = send

    async def batch(self, records: Sequence[Mapping[str, Any]], until: float | None) -> dict[str, Any]:
        """Work on messages of SQS.

        Args:
            records: as they came. Those of a FIFO queue are worked on in their order, and the first that fails is the
                last, as the others may depend on it; those of another queue all at once.
            until: the loop's time by which to be through.

        Returns:
            Lambda's partial batch response: which ones to deliver again.

        Raises:
            InvalidRequest: a record is not shaped as SQS has it; nothing was begun.
        """
        messages = _shaped(lambda: [*map(_Message.of, records)], "sqs")
        if any(message.ordered for message in messages):
            done = 0
            # Each on a task of its own, which the lines it logs belong to.
            while done < len(messages) and await asyncio.create_task(self._done(messages[done], until)):
                done += 1
            failed = messages[done:]
        else:
            room = asyncio.Semaphore(self._most)

            async def one(message: _Message) -> bool:
                async with room:
                    return await self._done(message, until)

            found = await asyncio.gather(*map(one, messages))
            failed = [message for message, done in zip(messages, found, strict=True) if not done]
        return {"batchItemFailures": [{"itemIdentifier": message.id} for message in failed]}

    async def single(self, kind: Kind, event: Mapping[str, Any], request_id: str, until: float | None) -> Any:
        """Work on what a function is invoked with for its own sake.

        Args:
            kind: ``sns``, ``eventbridge`` or ``direct``.
            event: as it came.
            request_id: of the invocation.
            until: the loop's time by which to be through.

        Returns:
            The answer: for who waits, or for the function's destination.

        Raises:
            ServiceError: there is none. Lambda tries again where nobody waits, and then keeps the event where the
                function's failure destination says.
        """
        send = None if kind == "direct" else self._send

        def read() -> Envelope:
            if kind == "direct":
                return from_direct(event, request_id)
            return from_eventbridge(event) if kind == "eventbridge" else from_sns(event["Records"][0]["Sns"])

        outcome = await self._deliver(kind, event, read, 1, until, send)
        if isinstance(outcome, Ack):
            return outcome.result
        if isinstance(outcome, Reject) and send is not None:
            return outcome.error.openai()
        raise outcome.error

    async def _done(self, message: _Message, until: float | None) -> bool:
        """Whether a message of SQS need not come again."""
        record = message.record
        outcome = await self._deliver("sqs", record, lambda: from_sqs(record), message.attempt, until, self._send)
        return isinstance(outcome, Ack) or (isinstance(outcome, Reject) and self._send is not None)

    async def _deliver(
        self,
        kind: Kind,
        message: Mapping[str, Any],
        read: Callable[[], Envelope],
        attempt: int,
        until: float | None,
        send: Send | None,
    ) -> Outcome:
        """A message's outcome, after its answer was sent. Never raises but for cancellation."""
        report = self._reporter(kind).begin(attempt)
        outcome: Outcome = Retry(0, Draining("the work was cut short"))  # by whoever cancels this
        try:
            async with asyncio.timeout_at(until) as limit:
                envelope = None
                try:
                    envelope = _shaped(read, kind)
                    report.name(envelope)
                    found = await self._processor(envelope)
                except ServiceError as error:
                    found = self._processor.policy.outcome(error, attempt)
                if send is not None and not isinstance(found, Retry):
                    await asyncio.to_thread(send, message, _answer(envelope, found, attempt))
                outcome = found
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                outcome = Retry(0, DeadlineExceeded("it was not done within the function's time"))
            else:
                _log.exception("an answer could not be sent")
                outcome = Retry(0, InternalError("its answer could not be sent"))
        finally:
            report.end(outcome, settled=True)
        return outcome


class _Message(NamedTuple):
    """What is needed of a message of SQS whatever is in it."""

    record: Mapping[str, Any]
    id: str
    attempt: int
    ordered: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Message:
        attempt = int(record["attributes"]["ApproximateReceiveCount"])
        return cls(record, record["messageId"], attempt, record["eventSourceARN"].endswith(".fifo"))


def _shaped(read: Callable[[], T], kind: Kind) -> T:
    try:
        return read()
    except (LookupError, TypeError, AttributeError, ValueError):  # of AWS, so nobody's text: not worth a schema
        raise InvalidRequest(f"the event is not shaped as {kind} has it") from None


def _answer(envelope: Envelope | None, outcome: Ack | Reject, attempt: int) -> LambdaReply:
    headers = {} if envelope is None else {ID: envelope.id, OPERATION: envelope.operation}
    headers[ATTEMPT] = str(attempt)
    if isinstance(outcome, Ack):
        return LambdaReply("result", encode(outcome.result), headers | {KIND: "result"})
    return LambdaReply("error", encode(outcome.error.openai()), headers | {KIND: "error", REASON: outcome.reason})
