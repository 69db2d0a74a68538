"""The consumer: fetches messages from a queue up to its concurrency limit, processes them and settles each one."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal

from runtime.backoff import full_jitter
from runtime.cancellation import cancel_and_wait
from runtime.errors import DeliveryLimit, Draining, InternalError, ServiceError
from runtime.events.delivery_report import DeliveryReport, DeliveryReporter, not_recordable
from runtime.events.envelope import Envelope
from runtime.events.outcome import Outcome, Retry
from runtime.events.processor import Processor
from runtime.events.queues.base import BrokerUnavailable, Delivery, Source

_log = logging.getLogger("warmstart.events")

_FETCH_SECONDS = 1.0  # a shutdown waits for it: a fetch is not cancelled, because it may have received messages
_LAG_SECONDS = 5.0
_RETURN_SECONDS = 5.0
# Backoff in seconds: before settling a delivery again, and before reconnecting to an unavailable broker.
_SETTLE_RETRIES, _FIRST_SETTLE_PAUSE, _MAX_SETTLE_PAUSE = 3, 0.5, 2.0
_FIRST_RECONNECT_PAUSE, _MAX_RECONNECT_PAUSE = 0.2, 10.0


class Consumer:
    """Consumes messages from one source, with one task per delivery, so that a failing message does not block others.

    Args:
        source: the source of the messages, not opened yet.
        processor: processes the messages.
        reporter: reports deliveries to log, metrics and audit log.
        concurrency: the maximum number of deliveries in progress.
        ready: returns once messages can be processed. It is awaited before each fetch, so that the consumer takes no
            message that it cannot start.
        max_deliveries: the maximum number of deliveries of a message. None if the processor's idempotency records count
            the crashes that a message causes, so that retries while the service is busy are not limited.
        drain_seconds: how long running deliveries may take after ``stop``.
        draw: returns a uniformly distributed random number from 0 to 1.
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        reporter: DeliveryReporter,
        *,
        concurrency: int,
        ready: Callable[[], Awaitable[None]],
        max_deliveries: int | None = None,
        drain_seconds: float = 30.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._source = source
        self._processor = processor
        self._reporter = reporter
        self._concurrency = concurrency
        self._ready = ready
        self._max_deliveries = max_deliveries
        self._drain_seconds = drain_seconds
        self._draw = draw
        self._stopping = asyncio.Event()
        self._running = set[asyncio.Task[None]]()
        self._timeouts = set[asyncio.Timeout]()
        self._slot_free = asyncio.Event()
        self._connected = self._fetching = self._outage_logged = False
        self._failures = 0

    @property
    def state(self) -> Literal["ready", "connecting", "draining"]:
        """``ready`` when connected, ``connecting`` while the broker is unavailable, ``draining`` after ``stop``."""
        if self._stopping.is_set():
            return "draining"
        return "ready" if self._connected else "connecting"

    def stop(self) -> None:
        """Fetch no more messages; ``run`` returns once the deliveries in progress are settled."""
        self._stopping.set()

    async def run(self) -> None:
        """Consume messages until ``stop``; work that is not done by the drain timeout goes back to the queue at once.

        Raises:
            SettingsError: the broker refuses the source's options.
        """
        fetching = asyncio.create_task(self._fetch_loop())
        watchers = [asyncio.create_task(self._stopping.wait()), asyncio.create_task(self._watch_lag())]
        try:
            await asyncio.wait([fetching, watchers[0]], return_when=asyncio.FIRST_COMPLETED)
            self.stop()
            if self._fetching:
                await asyncio.wait([fetching], timeout=max(self._drain_seconds, 2 * _FETCH_SECONDS))
            await cancel_and_wait(fetching)
            if fetching.done() and not fetching.cancelled():
                fetching.result()
        finally:
            for task in (fetching, *watchers):
                task.cancel()
            await self._drain()
            await self._source.close()

    async def _fetch_loop(self) -> None:
        while not self._stopping.is_set():
            await self._ready()
            while (free_slots := self._concurrency - len(self._running)) <= 0:
                self._slot_free.clear()
                await self._slot_free.wait()
            try:
                deliveries = await self._fetch(free_slots)
            except BrokerUnavailable as error:
                await self._wait_for_broker(error)
                continue
            if self._outage_logged:
                _log.info("the broker is available again: %s", self._source.name)
            self._failures, self._outage_logged = 0, False
            for delivery in deliveries:
                task = asyncio.create_task(self._handle(delivery))
                self._running.add(task)
                task.add_done_callback(self._done)

    async def _fetch(self, free_slots: int) -> list[Delivery]:
        if not self._connected:
            await self._source.open()
            self._connected = True
            _log.info("consuming messages from %s", self._source.name)
        self._fetching = True
        try:
            return list(await self._source.fetch(free_slots, _FETCH_SECONDS))
        finally:
            self._fetching = False

    async def _wait_for_broker(self, error: BrokerUnavailable) -> None:
        """Log an unavailable broker once, and wait with exponential backoff."""
        self._reporter.count_broker_error()
        self._connected = False
        if not self._outage_logged:
            self._outage_logged = True
            _log.warning("the broker is unavailable; reconnecting until it answers: %s: %s", self._source.name, error)
        self._failures += 1
        if not self._stopping.is_set():
            pause = full_jitter(self._failures, _FIRST_RECONNECT_PAUSE, _MAX_RECONNECT_PAUSE, self._draw)
            await asyncio.sleep(pause)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slot_free.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a delivery was not settled", exc_info=error)

    async def _handle(self, delivery: Delivery) -> None:
        report = self._reporter.begin(delivery.attempt)
        envelope, outcome = await self._outcome(delivery, report)
        outcome = report.write_audit_record(outcome, self._processor.policy)
        settled = False
        try:
            settled = await self._settle(delivery, envelope, outcome)
        finally:
            report.end(outcome, settled=settled)

    async def _outcome(self, delivery: Delivery, report: DeliveryReport) -> tuple[Envelope | None, Outcome]:
        policy = self._processor.policy
        envelope = None
        try:
            envelope = delivery.envelope()
            report.identify(envelope)
            if self._max_deliveries is not None and delivery.attempt > self._max_deliveries:
                raise DeliveryLimit(f"the message was delivered {delivery.attempt} times")
        except ServiceError as error:
            return envelope, policy.outcome(error, delivery.attempt)
        except Exception:
            _log.exception("a message cannot be read")
            return envelope, policy.outcome(InternalError("the message cannot be read"), delivery.attempt)
        if self._reporter.audit is not None and self._reporter.audit.blocks_work:
            return envelope, not_recordable(policy, delivery.attempt)
        if self._stopping.is_set():
            return envelope, _draining()
        try:
            async with asyncio.timeout(None) as timeout:
                self._timeouts.add(timeout)
                try:
                    send_chunk = partial(delivery.send_chunk, envelope)
                    return envelope, await self._processor(envelope, send_chunk=send_chunk, extend=delivery.extend)
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            return envelope, _draining()

    async def _settle(self, delivery: Delivery, envelope: Envelope | None, outcome: Outcome) -> bool:
        """Settle the delivery with retries, and return whether the broker confirmed it.

        If it did not, the message is redelivered, and the idempotency record prevents it from being processed twice.
        """
        failures = 0
        while True:
            try:
                await delivery.settle(envelope, outcome)
                return True
            except BrokerUnavailable as error:
                self._reporter.count_broker_error()
                failures += 1
                if failures > _SETTLE_RETRIES:
                    _log.warning("cannot settle a delivery, which will be redelivered: %s", error)
                    return False
            await asyncio.sleep(full_jitter(failures, _FIRST_SETTLE_PAUSE, _MAX_SETTLE_PAUSE, self._draw))

    async def _drain(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=self._drain_seconds)
        for timeout in list(self._timeouts):
            timeout.reschedule(0)
        if self._running:
            await asyncio.wait(self._running, timeout=_RETURN_SECONDS)
        await cancel_and_wait(*self._running)

    async def _watch_lag(self) -> None:
        while True:
            try:
                self._reporter.lag(await self._source.lag() if self._connected else None)
            except BrokerUnavailable:  # the fetch loop handles it
                self._reporter.lag(None)
            await asyncio.sleep(_LAG_SECONDS)


def _draining() -> Retry:
    return Retry(0.0, Draining("the worker is shutting down"))
