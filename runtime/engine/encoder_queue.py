"""The queue of an encoder: which texts of which requests make up the next step. No threads, no model."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.encoder_types import EncoderInput
from runtime.engine.request_queue import TwoLevelQueue
from runtime.errors import ServiceError


@dataclass(slots=True, eq=False)
class EncodeRequest:
    """The texts of one request.

    Args:
        inputs: the texts.
        background: whether this is background work, see ``Job``.
        loop: the caller's event loop.
        done: completes on that loop with the results in order, or fails.
        started: monotonic time at which the first text's step began; 0 before that.
        taken: number of texts that were taken for a step.
        context: the caller's context variables, for the request id in log lines.
    """

    inputs: Sequence[EncoderInput]
    background: bool
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[list[Any]]
    started: float = 0.0
    taken: int = 0
    cancelled: bool = False
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    results: list[Any] = field(default_factory=list)

    def complete(self, error: ServiceError | None = None) -> None:
        """End the request, with its results or an error. Any thread may call this."""

        def end() -> None:
            if self.done.done():
                return
            if error is None:
                self.done.set_result(self.results)
            else:
                self.done.set_exception(error)

        try:
            self.loop.call_soon_threadsafe(end)
        except RuntimeError:  # the loop is closed
            self.cancelled = True


class EncoderQueue(TwoLevelQueue[EncodeRequest]):
    """Requests with texts that no step has taken yet. An admission is a step. The requests of a kind take turns text by
    text, so that one with thousands of texts does not hold up one with a single text.
    """

    def take(self, budget: int, cost: int = 0) -> list[tuple[EncodeRequest, int]]:
        """Remove the texts of the next step, each as (request, index).

        Args:
            budget: maximum tokens of the step; a single longer text has a step of its own.
            cost: tokens that each text counts in addition to its own.
        """
        kinds = [self.interactive, self.background]
        if self.overdue:
            kinds.reverse()
        taken: list[tuple[EncodeRequest, int]] = []
        tokens = 0
        for queue in kinds:
            while queue:
                request = queue[0]
                length = len(request.inputs[request.taken].ids) + cost
                if taken and tokens + length > budget:
                    break
                tokens += length
                taken.append((request, request.taken))
                request.taken += 1
                queue.popleft()
                if request.taken < len(request.inputs):
                    queue.append(request)
        served = any(request.background for request, _ in taken)
        self._bypasses = self._bypasses + 1 if self.background and not served else 0
        return taken
