"""A request of the fast engine, as its stream and the engine thread share it, and the output of one step for it."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from dataclasses import dataclass, field

from runtime.engine.sequence import Sampled, Sequence
from runtime.errors import ServiceError
from runtime.types import FinishReason


@dataclass(slots=True)
class StepOutput:
    """The tokens that one step produced for one request.

    Args:
        time: monotonic time at which the step finished.
        tokens: (index of the sequence within the request, token, finish reason or None), in order.
    """

    time: float
    tokens: list[tuple[int, Sampled, FinishReason | None]]


@dataclass(slots=True, eq=False)
class Request:
    """The sequences of one request and the queue that receives their tokens.

    Args:
        sequences: the sequences in the caller's order; all are background (see ``Job``) or none is.
        loop: the caller's event loop.
        outbox: queue of step outputs, read on that loop; an error ends the stream.
        started: monotonic time at which the first step began; 0 before that.
        unfinished: number of unfinished sequences.
        backlog: sequences not yet added to the scheduler, in order.
        context: the caller's context variables, for the request id in log lines.
    """

    sequences: list[Sequence]
    loop: asyncio.AbstractEventLoop
    outbox: asyncio.Queue[StepOutput | ServiceError] = field(default_factory=asyncio.Queue)
    started: float = 0.0
    unfinished: int = 0
    backlog: deque[Sequence] = field(default_factory=deque)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)

    def __post_init__(self) -> None:
        self.unfinished = len(self.sequences)
        self.backlog.extend(self.sequences)

    @property
    def background(self) -> bool:
        """Whether this is a background request, see ``Job``."""
        return any(sequence.background for sequence in self.sequences)

    def fail(self, error: ServiceError) -> None:
        """End the request with an error. Any thread may call this; a closed event loop is ignored."""
        try:
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, error)
        except RuntimeError:
            return
