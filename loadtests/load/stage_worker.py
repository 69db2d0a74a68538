"""Carries out one worker's share of a stage: sends the requests when they are due, and reports their records.

It uses threads. Under Locust these are greenlets, because gevent replaces the threads of the standard library.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from threading import Condition, Semaphore, Thread

from loadtests.load.arrivals import LoadStage
from loadtests.load.http_client import ConnectionPool
from loadtests.load.prompts import Prompts
from loadtests.load.record import LoadRecord
from loadtests.load.report import GeneratorUsage
from loadtests.load.scenario import Scenario
from loadtests.load.sending import EventSender, send
from loadtests.load.trace import TraceRow
from loadtests.load.work import choose, requests

_PUBLISH_SECONDS = 1.0
_PAUSE_SECONDS = 0.2  # of a user after a failure, so that a dead server is not flooded with requests


@dataclass(frozen=True)
class StageOrder:
    """One worker's share of one repetition of a stage.

    The share is every ``workers``-th arrival or user from ``worker`` on, so that all workers together send the same
    requests at the same moments, however many they are.
    """

    scenario: Scenario
    stage: LoadStage
    repetition: int
    prompts: Prompts
    model: str | None
    worker: int = 0
    workers: int = 1


class StageWorker:
    """Sends the requests of a share.

    Args:
        order: the share.
        pool: the server's connections.
        events: sends events; None if the scenario has none.
        publish: takes the records that have ended, about once a second.
    """

    def __init__(
        self,
        order: StageOrder,
        pool: ConnectionPool,
        events: EventSender | None,
        publish: Callable[[list[LoadRecord]], None],
    ) -> None:
        self._order, self._pool, self._events, self._publish = order, pool, events, publish
        self._ended: list[LoadRecord] = []
        self._active = 0
        self._idle = Condition()
        self._slots = Semaphore(max(1, order.scenario.max_in_flight // order.workers))
        self._origin = 0.0
        self._stopped = False

    def run(self) -> GeneratorUsage:
        """Send all requests, wait for their ends, and return what this process has used."""
        order = self._order
        self._origin, used = time.perf_counter(), time.process_time()
        publisher = Thread(target=self._publishing, daemon=True)
        publisher.start()
        delayed = self._users() if order.stage.users else self._arrivals()
        self._sleep_until(order.stage.seconds)
        cores = (time.process_time() - used) / max(time.perf_counter() - self._origin, 1e-9)
        with self._idle:
            self._idle.wait_for(lambda: not self._active)
        self._stopped = True
        publisher.join()
        return GeneratorUsage(cpu_cores=[round(cores, 4)], delayed=delayed)

    def _arrivals(self) -> int:
        """Start each request of an open loop when it is due; return how many had to wait for another's end."""
        order, delayed = self._order, 0
        moments = order.stage.moments(Random(f"{order.scenario.seed}/{order.repetition}/{order.stage.name}"))
        for number in range(order.worker, len(moments), order.workers):
            self._sleep_until(moments[number])
            if not self._slots.acquire(blocking=False):
                delayed += 1
                self._slots.acquire()
            self._start(self._arrival, number, moments[number])
        return delayed

    def _users(self) -> int:
        """Start the users of a closed loop; none has to wait."""
        order = self._order
        for user in range(order.worker, order.stage.users or 0, order.workers):
            self._start(self._user, user)
        return 0

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        with self._idle:
            self._active += 1

        def work() -> None:
            try:
                run(*arguments)
            finally:
                with self._idle:
                    self._active -= 1
                    self._idle.notify_all()

        Thread(target=work, daemon=True).start()

    def _arrival(self, number: int, due: float) -> None:
        trace = self._order.stage.trace
        try:
            self._session(number, str(number), due, trace[number] if trace else None)
        finally:
            self._slots.release()

    def _user(self, user: int) -> None:
        count = 0
        while self._now() < self._order.stage.seconds:
            if not self._session(user + count * (self._order.stage.users or 1), f"{user}.{count}", None):
                time.sleep(_PAUSE_SECONDS)
            count += 1

    def _session(self, number: int, name: str, due: float | None, row: TraceRow | None = None) -> bool:
        """Send the requests of one arrival; return whether none failed."""
        scenario, order = self._order.scenario, self._order
        key = f"{order.repetition}/{order.stage.name}/{name}"
        if scenario.repeat_prompts:
            key = str(number % scenario.repeat_prompts)
        random = Random(f"{scenario.seed}/{key}")
        session = requests(choose(scenario.work, random), order.prompts, random, key, order.model, row)
        last = order.stage.seconds + scenario.drain_seconds
        try:
            request = next(session)
            while True:
                if request.wait:
                    time.sleep(request.wait)
                if due is None and self._now() >= order.stage.seconds:
                    return True  # no more turns after the stage's end
                seconds = min(scenario.timeout_seconds, last - self._now())
                record, text = send(request, self._pool, self._events, origin=self._origin, due=due, seconds=seconds)
                self._ended.append(record)
                if record.failed:
                    return False
                request, due = session.send(text), None
        except StopIteration:
            return True

    def _publishing(self) -> None:
        while not self._stopped:
            time.sleep(_PUBLISH_SECONDS if self._now() < self._order.stage.seconds - _PUBLISH_SECONDS else 0.05)
            self._flush()
        self._flush()

    def _flush(self) -> None:
        ended, self._ended = self._ended, []
        if ended:
            self._publish(ended)

    def _now(self) -> float:
        return time.perf_counter() - self._origin

    def _sleep_until(self, moment: float) -> None:
        if (delay := moment - self._now()) > 0:
            time.sleep(delay)
