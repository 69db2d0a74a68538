"""Processes AWS Lambda events that are messages, and reports which of them Lambda is to redeliver.

No message is lost: Lambda deletes a message that is not reported as failed, so a rejected one is reported as failed
too, until the queue's redrive policy (or the function's failure destination) makes it a dead letter. The exception is a
``send`` function that stores errors as well as answers. Source: Lambda developer guide, "Handling errors for an SQS
event source".
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
    """The answer to a message.

    Args:
        kind: ``result`` for the operation's answer, ``error`` if the message was rejected.
        body: the answer byte for byte as HTTP sends it, or OpenAI's error object.
        headers: the headers as in the answers of other queues: id, operation, attempt, kind, and an error's reason.
    """

    kind: Literal["result", "error"]
    body: bytes
    headers: Mapping[str, str]


Send = Callable[[Mapping[str, Any], LambdaReply], None]
"""Stores the answer to a message, given the message as Lambda passed it.

It is called on a thread. If it raises, it is called again on redelivery; readers recognize duplicates by the id.
"""


class LambdaWorker:
    """Processes the messages of Lambda events.

    Args:
        processor: processes the messages.
        reporter: returns the reporter for a kind of event.
        max_concurrency: the maximum number of messages processed concurrently.
        send: stores the answers to messages of SQS, SNS and EventBridge; None to discard them.
    """

    def __init__(
        self,
        processor: Processor,
        reporter: Callable[[Kind], DeliveryReporter],
        *,
        max_concurrency: int,
        send: Send | None = None,
    ) -> None:
        self._processor = processor
        self._reporter = reporter
        self._max_concurrency = max_concurrency
        self._send = send

    async def batch(self, records: Sequence[Mapping[str, Any]], deadline: float | None) -> dict[str, Any]:
        """Process a batch of SQS messages.

        Args:
            records: the event's records. Those of a FIFO queue are processed in order up to the first failure, because
                later ones may depend on it; others concurrently.
            deadline: the event loop's time by which to finish; None for no limit.

        Returns:
            Lambda's partial batch response, which lists the messages to redeliver.

        Raises:
            InvalidRequest: a record does not have the shape of SQS; nothing was processed.
        """
        messages = _parse(lambda: [*map(_Message.of, records)], "sqs")
        if any(message.ordered for message in messages):
            done = 0
            # Each in a task of its own, so that log lines carry the right message's id.
            while done < len(messages) and await asyncio.create_task(self._finish(messages[done], deadline)):
                done += 1
            failed = messages[done:]
        else:
            slots = asyncio.Semaphore(self._max_concurrency)

            async def one(message: _Message) -> bool:
                async with slots:
                    return await self._finish(message, deadline)

            finished = await asyncio.gather(*map(one, messages))
            failed = [message for message, done in zip(messages, finished, strict=True) if not done]
        return {"batchItemFailures": [{"itemIdentifier": message.id} for message in failed]}

    async def single(self, kind: Kind, event: Mapping[str, Any], request_id: str, deadline: float | None) -> Any:
        """Process an event that is one message.

        Args:
            kind: ``sns``, ``eventbridge`` or ``direct``.
            event: the event.
            request_id: the invocation's request id.
            deadline: the event loop's time by which to finish; None for no limit.

        Returns:
            The answer, for a synchronous caller or the function's destination; the error object if ``send`` stored an
                error.

        Raises:
            ServiceError: processing failed. Lambda retries an asynchronous invocation, and then sends the event to the
                function's failure destination.
        """
        send = None if kind == "direct" else self._send

        def read() -> Envelope:
            if kind == "direct":
                return from_direct(event, request_id)
            return from_eventbridge(event) if kind == "eventbridge" else from_sns(event["Records"][0]["Sns"])

        outcome = await self._deliver(kind, event, read, 1, deadline, send)
        if isinstance(outcome, Ack):
            return outcome.result
        if isinstance(outcome, Reject) and send is not None:
            return outcome.error.openai()
        raise outcome.error

    async def _finish(self, message: _Message, deadline: float | None) -> bool:
        """Process an SQS message, and return whether it need not be redelivered."""
        record = message.record
        outcome = await self._deliver("sqs", record, lambda: from_sqs(record), message.attempt, deadline, self._send)
        return isinstance(outcome, Ack) or (isinstance(outcome, Reject) and self._send is not None)

    async def _deliver(
        self,
        kind: Kind,
        message: Mapping[str, Any],
        read: Callable[[], Envelope],
        attempt: int,
        deadline: float | None,
        send: Send | None,
    ) -> Outcome:
        """Process a message and send its answer. Raises nothing but ``asyncio.CancelledError``."""
        report = self._reporter(kind).begin(attempt)
        outcome: Outcome = Retry(0, Draining("the processing was cancelled"))  # if this task is cancelled
        try:
            async with asyncio.timeout_at(deadline) as limit:
                envelope = None
                try:
                    envelope = _parse(read, kind)
                    report.identify(envelope)
                    processed = await self._processor(envelope)
                except ServiceError as error:
                    processed = self._processor.policy.outcome(error, attempt)
                if send is not None and not isinstance(processed, Retry):
                    await asyncio.to_thread(send, message, _answer(envelope, processed, attempt))
                outcome = processed
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                outcome = Retry(0, DeadlineExceeded("the event was not finished within the function's time limit"))
            else:
                _log.exception("an answer could not be sent")
                outcome = Retry(0, InternalError("the answer could not be sent"))
        finally:
            report.end(outcome, settled=True)
        return outcome


class _Message(NamedTuple):
    """The fields of an SQS message that are needed whatever its body is."""

    record: Mapping[str, Any]
    id: str
    attempt: int
    ordered: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> _Message:
        attempt = int(record["attributes"]["ApproximateReceiveCount"])
        return cls(record, record["messageId"], attempt, record["eventSourceARN"].endswith(".fifo"))


def _parse(read: Callable[[], T], kind: Kind) -> T:
    try:
        return read()
    except (LookupError, TypeError, AttributeError, ValueError):  # AWS writes the event, so no schema is needed
        raise InvalidRequest(f"the event does not have the structure of {kind}") from None


def _answer(envelope: Envelope | None, outcome: Ack | Reject, attempt: int) -> LambdaReply:
    headers = {} if envelope is None else {ID: envelope.id, OPERATION: envelope.operation}
    headers[ATTEMPT] = str(attempt)
    if isinstance(outcome, Ack):
        return LambdaReply("result", encode(outcome.result), headers | {KIND: "result"})
    return LambdaReply("error", encode(outcome.error.openai()), headers | {KIND: "error", REASON: outcome.reason})
