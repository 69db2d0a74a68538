"""The engine's thread: it takes requests, runs steps, and hands the tokens to the event loops that wait for them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from runtime.engine.scheduler import Scheduler, StepPlan
from runtime.engine.sequence import Row, Runner, Sampled, Sequence
from runtime.errors import Draining, EngineRestarting, InternalError, ServiceError, TooManyRequests
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import FinishReason

_log = logging.getLogger("warmstart.engine")

_TICK_SECONDS = 1.0  # an idle thread shows that often that it is there


@dataclass(slots=True)
class StepOutput:
    """What one step gave a request.

    Args:
        now: monotonic time at which the tokens were there.
        tokens: (the sequence's index within the request, its token, why it ended if it did), in order.
    """

    now: float
    tokens: list[tuple[int, Sampled, FinishReason | None]]


@dataclass(slots=True, eq=False)
class Request:
    """Sequences that were asked for together, and where their tokens go.

    Args:
        sequences: in the order in which the caller numbers them, all queued or none (see ``Job``).
        loop: the caller's event loop.
        outbox: read on that loop; an error ends it.
        started: monotonic time at which its first step began, 0 before that.
        backlog: of the sequences, those that the scheduler has not been given yet, in order.
    """

    sequences: list[Sequence]
    loop: asyncio.AbstractEventLoop
    outbox: asyncio.Queue[StepOutput | ServiceError] = field(default_factory=asyncio.Queue)
    started: float = 0.0
    left: int = 0  # sequences that have not ended
    backlog: deque[Sequence] = field(default_factory=deque)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # log lines know their request

    def __post_init__(self) -> None:
        self.left = len(self.sequences)
        self.backlog.extend(self.sequences)

    @property
    def queued(self) -> bool:
        """See ``Job``."""
        return any(sequence.queued for sequence in self.sequences)

    def fail(self, error: ServiceError) -> None:
        """End it, from any thread. A loop that is gone has nobody left to tell."""
        try:
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, error)
        except RuntimeError:
            return


class EngineThread:
    """One life of the engine's thread, with a scheduler of its own. Starts at once.

    Args:
        name: of the thread.
        runner: nobody else calls it while this lives.
        scheduler: it has no sequences.
        max_queue: requests of either kind that may wait for a place in the batch.
        metrics: of the model.
    """

    def __init__(
        self, name: str, runner: Runner, scheduler: Scheduler, *, max_queue: int, metrics: ModelMetrics
    ) -> None:
        self.beat = time.monotonic()
        self._runner = runner
        self._scheduler = scheduler
        self._max_queue = max_queue
        self._metrics = metrics
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._inbox: deque[Request | Sequence] = deque()  # new ones, and what nobody wants any more, in order
        self._live: set[Request] = set()
        self._online: set[Request] = set()  # those of the live that were in no step yet
        self._queued: set[Request] = set()  # likewise, and those that were put back
        self._owners: dict[Sequence, tuple[Request, int]] = {}
        self._feeding: list[Request] = []  # those that have a backlog
        self._share = max(1, scheduler.max_rows // 2)  # sequences of one request in the scheduler
        self._closing = self._aborting = self._ended = False
        self._told = self._counts()  # to the metrics
        self._interval = 1.0  # seconds between two requests that end, while there is work
        self._since = self.beat  # the last end, or the beginning of work after a rest
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()

    # For the event loops' threads

    def check(self, queued: bool) -> None:
        """Refuse what could not be admitted now.

        Args:
            queued: its kind; a backlog of one does not keep the other out.

        Raises:
            EngineRestarting: the thread died.
            Draining: it is closing.
            TooManyRequests: ``max_queue`` requests of its kind wait already.
        """
        if self._closing:
            raise Draining("the model is being unloaded", retry_after=1)
        if self._ended:
            raise EngineRestarting("the engine is restarting", retry_after=1)
        if len(self._places(queued)) >= self._max_queue:
            raise TooManyRequests(
                f"{self._max_queue} requests are waiting already (MAX_QUEUE)",
                retry_after=max(1.0, self._interval * self._max_queue),
            )

    def submit(self, request: Request) -> None:
        """Admit a request.

        Raises:
            ServiceError: see ``check``.
        """
        with self._lock:
            self.check(request.queued)
            self._live.add(request)
            self._places(request.queued).add(request)
            self._inbox.append(request)
        self._wake.set()

    def leave(self, request: Request) -> None:
        """Nobody reads this request any more: end what is left of it."""
        self._places(request.queued).discard(request)  # its place in the queue is free at once
        self.cancel(request.sequences)

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """End these; those that have ended are left alone."""
        self._inbox.extend(sequences)
        self._wake.set()

    def close(self, *, abort: bool = False) -> None:
        """Admit nothing more; end after what was admitted, or with the step under way if ``abort``."""
        with self._lock:
            self._closing = True
            self._aborting = self._aborting or abort
        self._wake.set()

    def bury(self, error: Callable[[], ServiceError]) -> None:
        """After the thread's end: refuse whatever comes, and end what was left over."""
        with self._lock:
            self._ended = True
            left, self._live = self._live, set()
            self._online.clear()
            self._queued.clear()
        for request in left:
            request.fail(error())
        self._metrics.figures.busy(0, 0, 0, 0)

    def _places(self, queued: bool) -> set[Request]:
        return self._queued if queued else self._online

    # The thread

    def _main(self) -> None:
        try:
            self._run()
        except BaseException:
            _log.critical("the engine's thread died", exc_info=True)

    def _run(self) -> None:
        while not self._aborting:
            self.beat = time.monotonic()
            self._wake.clear()
            self._take()
            self._feed()
            plan = self._scheduler.schedule()
            for sequence in plan.preempted:
                self._queued.add(self._owners[sequence][0])
            for sequence in plan.admitted:
                request, _ = self._owners[sequence]
                request.started = request.started or time.monotonic()
                self._places(request.queued).discard(request)
            self._gauge()
            if plan.rows:
                self._step(plan)
                continue
            with self._lock:
                if self._closing and not self._live:
                    return
            self._wake.wait(_TICK_SECONDS)

    def _take(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Request):
                if not self._owners:
                    self._since = self.beat
                for index, sequence in enumerate(item.sequences):
                    self._owners[sequence] = (item, index)
                self._feeding.append(item)
            elif item in self._owners:
                self._scheduler.cancel(item)
                self._forget(item)

    def _feed(self) -> None:
        """Give the scheduler sequences up to each request's share: a request with thousands of them takes turns with
        the others, whose sequences come between, and leaves them rows.
        """
        for request in [*self._feeding]:
            while request.backlog and request.left - len(request.backlog) < self._share:
                self._scheduler.add(request.backlog.popleft())
            if not request.backlog:
                self._feeding.remove(request)

    def _step(self, plan: StepPlan) -> None:
        for source, target in plan.copies:
            self._runner.copy_block(source, target)
        outcomes = self._scheduler.commit(plan.rows, self._run_rows(plan.rows))
        now = time.monotonic()
        deliveries: dict[Request, StepOutput] = {}
        for outcome in outcomes:
            owner = self._owners.get(outcome.sequence)
            if owner is None:  # its request has failed within this very step
                continue
            request, index = owner
            if outcome.error is not None:
                self._fail(request, outcome.error)
                continue
            *kept, last = outcome.kept
            tokens = deliveries.setdefault(request, StepOutput(now, [])).tokens
            tokens += [(index, sampled, None) for sampled in kept]
            tokens.append((index, last, outcome.reason))
            if outcome.reason is not None:
                self._forget(outcome.sequence)
        self._deliver(deliveries)

    def _run_rows(self, rows: list[Row]) -> list[list[Sampled] | ServiceError]:
        try:
            return self._runner.step(rows)
        except Exception:
            _log.exception("a step failed; each of its %d rows is run alone", len(rows))
            return [self._run_alone(row) for row in rows]

    def _run_alone(self, row: Row) -> list[Sampled] | ServiceError:
        try:
            return self._runner.step([row])[0]
        except Exception:
            request, _ = self._owners[row.sequence]
            request.context.run(_log.exception, "a generation failed")
            return InternalError("the generation failed; the log has the details")

    def _fail(self, request: Request, error: ServiceError) -> None:
        request.context.run(_log.error, "a generation ends: %s", error)
        for sequence in request.sequences:
            if sequence in self._owners:
                self._scheduler.cancel(sequence)
                self._forget(sequence)
        request.fail(error)

    def _forget(self, sequence: Sequence) -> None:
        request, _ = self._owners.pop(sequence)
        request.left -= 1
        if not request.left:
            request.backlog.clear()  # of one that was cancelled
            self._live.discard(request)
            self._places(request.queued).discard(request)
            now = time.monotonic()
            self._interval += 0.1 * (now - self._since - self._interval)
            self._since = now

    def _deliver(self, deliveries: dict[Request, StepOutput]) -> None:
        """One call per event loop: waking one costs more than all it is told."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Request, StepOutput]]] = {}
        for request, delivery in deliveries.items():
            by_loop.setdefault(request.loop, []).append((request, delivery))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_hand_out, items)
            except RuntimeError:  # the loop is closed, and nobody is left to close the streams that ran on it
                for request, _ in items:
                    self.leave(request)

    def _gauge(self) -> None:
        metrics, online, queued = self._metrics, len(self._online), len(self._queued)
        metrics.figures.busy(len(self._live) - online - queued, online, queued, self._scheduler.kv_usage)
        counts = self._counts()
        if counts != self._told:
            for counter, now, told in zip(
                (metrics.drafted, metrics.accepted, metrics.preemptions), counts, self._told, strict=True
            ):
                counter.inc(now - told)
            self._told = counts

    def _counts(self) -> tuple[int, int, int]:
        """Of the scheduler, whose counters outlive this thread: guessed, right, preempted."""
        speculation = self._scheduler.speculation
        return speculation.drafted, speculation.accepted, self._scheduler.preemptions


def _hand_out(items: list[tuple[Request, StepOutput]]) -> None:
    for request, delivery in items:
        request.outbox.put_nowait(delivery)
