"""Runs the rows of batches through a queue: ``warmstart consume`` processes on any machine answer them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

from handlers.generation.batch_objects import ENDPOINTS
from runtime.backoff import full_jitter
from runtime.batch_types import StoredBatch
from runtime.batches.resources import RowAnswer
from runtime.error_response import ErrorForm, error_body
from runtime.errors import ServiceError, SettingsError
from runtime.events.envelope import TYPE_PREFIX, Envelope
from runtime.events.queues.base import BrokerUnavailable, QueueOptions, Reply, Submitter
from runtime.events.queues.factory import default_names
from runtime.settings import Settings
from runtime.types import TokenUsage

_log = logging.getLogger("warmstart.batches")

_LATE_SECONDS = 30.0  # between a batch's end and the deadline of its rows, for clocks that differ
_FIRST_PAUSE, _MAX_PAUSE = 0.5, 30.0  # seconds between attempts while the broker is unavailable
_RESEND_SECONDS = 3600.0  # a broker that was restarted may have lost the message or its answer


def queue_of(settings: Settings) -> QueueOptions:
    """Return the queue of rows: ``BATCH_STREAM`` of the broker ``EVENTS_URL``.

    Raises:
        SettingsError: no queue supports the URL.
    """
    url = settings.events_url.get_secret_value()
    _, results, dead = default_names(url)
    return QueueOptions(
        url=url,
        stream=settings.batch_stream,
        group="warmstart",
        results=results,
        dead=dead,
        results_seconds=settings.idempotency_ttl_seconds,
    )


class QueuedRows:
    """Sends rows to a queue and waits for their answers; implements ``runtime.batches.resources.RowHandler``.

    A row's message has the same id whenever it is sent, so that after a crash of this process the workers answer from
    their idempotency records what they have done already. Their retry policy applies, not this process's.

    Args:
        submitter: the queue, not open yet.
        error_form: returns the form of errors on a path.
        resend_seconds: a row without an answer is sent again after so many seconds.
    """

    in_process = False

    def __init__(
        self, submitter: Submitter, error_form: Callable[[str], ErrorForm], resend_seconds: float = _RESEND_SECONDS
    ) -> None:
        self._submitter = submitter
        self._error_form = error_form
        self._resend_seconds = resend_seconds
        self._opening = asyncio.Lock()
        self._is_open = False
        self._opens = self._failures = 0

    async def run(self, batch: StoredBatch, body: dict[str, Any], request_id: str) -> RowAnswer:
        """Send a row to the queue, and return its answer or the error with which a worker rejected it.

        While the broker is unavailable, the row is sent again.

        Args:
            batch: the row's batch.
            body: the request's body.
            request_id: the message's id.

        Raises:
            PayloadTooLarge: the row exceeds the broker's maximum size.
        """
        operation = ENDPOINTS[batch.endpoint]
        deadline = batch.expires + _LATE_SECONDS
        envelope = Envelope(request_id, "batches", TYPE_PREFIX + operation, operation, body, deadline=deadline)
        reply = await self._reply(envelope)
        if reply.kind == "result":
            return RowAnswer(reply.body, request_id, usage_of(reply.body))
        error = ServiceError.from_openai(reply.body)
        return RowAnswer(self.render(batch, error), request_id, TokenUsage(), error.status)

    def render(self, batch: StoredBatch, error: ServiceError) -> Mapping[str, Any]:
        """Return the body of the response with an error, in the form of the batch's endpoint."""
        return error_body(error, self._error_form(batch.endpoint))

    async def close(self) -> None:
        """Disconnect from the broker."""
        if self._is_open:
            await self._submitter.close()

    async def _reply(self, envelope: Envelope) -> Reply:
        while True:
            opens = self._opens
            try:
                opens = await self._open()
                async with asyncio.timeout(self._resend_seconds):
                    async with aclosing(await self._submitter.submit(envelope, wait=True)) as replies:
                        async for reply in replies:
                            return reply
            except TimeoutError:
                _log.warning("%s has no answer and is sent again", envelope.id)
            except (BrokerUnavailable, SettingsError) as error:
                if opens == self._opens:  # otherwise another row has connected again already
                    if self._is_open or not self._failures:
                        _log.warning("rows of batches cannot be sent to the queue, trying again: %s", error)
                    self._is_open = False
                    self._failures += 1
                await asyncio.sleep(full_jitter(self._failures, _FIRST_PAUSE, _MAX_PAUSE, random.random))

    async def _open(self) -> int:
        """Connect, or connect again after a failure, which ends what waits on the old connection.

        Of several rows that failed together, one connects.

        Returns:
            The number of connections so far.
        """
        async with self._opening:
            if not self._is_open:
                await self._submitter.open()
                self._is_open, self._failures = True, 0
                self._opens += 1
            return self._opens


def usage_of(answer: Mapping[str, Any]) -> TokenUsage:
    """Return the usage that an operation's answer reports, in any of the APIs' forms."""
    usage = answer.get("usage")
    if not isinstance(usage, Mapping):  # a comparison's answers have one each
        return sum(map(usage_of, answer.get("answers", ())), TokenUsage())
    if "completion_tokens" in usage:  # OpenAI's completions
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return TokenUsage(usage["prompt_tokens"], usage["completion_tokens"], cached)
    if "prompt_tokens" in usage:  # OpenAI's embeddings and what is like them
        return TokenUsage(usage["prompt_tokens"])
    if "input_tokens_details" in usage:  # OpenAI's responses
        return TokenUsage(usage["input_tokens"], usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"])
    cached = usage["cache_read_input_tokens"]  # Anthropic's messages count cached tokens separately
    return TokenUsage(usage["input_tokens"] + cached, usage["output_tokens"], cached)
