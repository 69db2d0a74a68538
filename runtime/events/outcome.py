"""How an event's work ended, and the one table that says which errors are worth another delivery."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from runtime.errors import (
    DeadlineExceeded,
    DeliveryLimit,
    EngineRestarting,
    ModelTooLarge,
    ModelUnavailable,
    ServiceError,
)


@dataclass(frozen=True, slots=True)
class Ack:
    """It is done.

    Args:
        result: the operation's answer.
        repeated: whether that is the kept answer of an earlier delivery.
    """

    result: Mapping[str, Any]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """It is to be delivered once more.

    Args:
        delay: seconds to wait before that.
        error: what stood in the way.
    """

    delay: float
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Reject:
    """It is not to be delivered any more: its sender hears of the error, and it becomes a dead letter.

    Args:
        error: why.
    """

    error: ServiceError

    @property
    def reason(self) -> str:
        """For people and for the dead letter's header: one line of printable ASCII."""
        text = f"{self.error.code}: {self.error.message}".encode("ascii", "backslashreplace").decode()
        return "".join(c if c.isprintable() else " " for c in text)[:1000]


Outcome = Ack | Retry | Reject

Fate = Literal["busy", "fault", "reject"]
"""``busy`` passes by itself, ``fault`` may pass, ``reject`` never does."""

FATES: Mapping[type[ServiceError], Fate] = MappingProxyType(
    {
        DeadlineExceeded: "fault",  # the engine's own: it may have been busy, and may be hopeless
        DeliveryLimit: "reject",
        EngineRestarting: "fault",  # the message itself may have brought it down
        ModelUnavailable: "fault",
        ModelTooLarge: "reject",
    }
)
"""Of those errors that do not go by their class attributes: retryable ones are busy, other 5xx faults, 4xx rejected."""


def fate(error: ServiceError) -> Fate:
    """What an error means for its message."""
    for kind in type(error).__mro__:
        if kind in FATES:
            return FATES[kind]
    return "busy" if error.retryable else "fault" if error.status >= 500 else "reject"


@dataclass(frozen=True, slots=True)
class Policy:
    """When to try again.

    Args:
        most: deliveries of one message, after which a fault makes it a dead letter.
        busy_seconds: longest pause after the first delivery if the service was busy; it doubles with each one.
        fault_seconds: the same after a fault.
        longest_seconds: pause at most.
        draw: a number from 0 to 1, evenly.
    """

    most: int = 5
    busy_seconds: float = 1.0
    fault_seconds: float = 2.0
    longest_seconds: float = 60.0
    draw: Callable[[], float] = random.random

    def outcome(self, error: ServiceError, attempt: int) -> Retry | Reject:
        """Of a delivery that ended with an error.

        Args:
            error: it ended with.
            attempt: how often the message was delivered, this time included.
        """
        kind = fate(error)
        if kind == "reject" or (kind == "fault" and attempt >= self.most):
            return Reject(error)
        # "Full jitter" (Brooker, Exponential Backoff And Jitter, AWS 2015), above what the error asks for.
        ceiling = self.busy_seconds if kind == "busy" else self.fault_seconds
        ceiling = min(self.longest_seconds, ceiling * 2.0 ** min(attempt - 1, 30))
        return Retry((error.retry_after or 0.0) + self.draw() * ceiling, error)
