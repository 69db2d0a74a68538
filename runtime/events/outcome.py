"""Outcomes of event processing (ack, retry or reject), and the table that says which errors are retried."""

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
    """The event was processed successfully.

    Args:
        result: the operation's answer.
        repeated: whether the answer is the cached response of an earlier delivery.
    """

    result: Mapping[str, Any]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """The message is to be redelivered.

    Args:
        delay: the delay before the redelivery in seconds.
        error: the error that caused the retry.
    """

    delay: float
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Reject:
    """The message is not redelivered: its sender receives the error, and the message becomes a dead letter.

    Args:
        error: the error that caused the rejection.
    """

    error: ServiceError

    @property
    def reason(self) -> str:
        """The reason for logs and the dead letter's header: one line of at most 1000 printable ASCII characters."""
        text = f"{self.error.code}: {self.error.message}".encode("ascii", "backslashreplace").decode()
        return "".join(c if c.isprintable() else " " for c in text)[:1000]


Outcome = Ack | Retry | Reject

Fate = Literal["busy", "fault", "reject"]
"""How an error is handled: ``busy`` is always retried, ``fault`` up to ``Policy.most`` deliveries, ``reject`` never."""

FATES: Mapping[type[ServiceError], Fate] = MappingProxyType(
    {
        DeadlineExceeded: "fault",  # the engine's own limit: it may have been busy, or the request never ends
        DeliveryLimit: "reject",
        EngineRestarting: "fault",  # the message itself may have crashed the engine
        ModelUnavailable: "fault",
        ModelTooLarge: "reject",
    }
)
"""Errors that the general rule does not fit.

By that rule, retryable errors are busy, other 5xx errors are faults, and 4xx errors are rejected.
"""


def fate(error: ServiceError) -> Fate:
    """Return how an error is handled, from ``FATES`` or else from its ``retryable`` and ``status`` attributes."""
    for kind in type(error).__mro__:
        if kind in FATES:
            return FATES[kind]
    return "busy" if error.retryable else "fault" if error.status >= 500 else "reject"


@dataclass(frozen=True, slots=True)
class Policy:
    """The retry policy: the maximum number of deliveries, and exponential backoff with full jitter.

    Args:
        most: the maximum number of deliveries; a fault in the last one makes the message a dead letter.
        busy_seconds: the maximum delay after the first delivery if the service was busy; it doubles with each delivery.
        fault_seconds: the same after a fault.
        longest_seconds: the upper bound of the delay, without the error's own ``retry_after``.
        draw: returns a uniformly distributed random number from 0 to 1.
    """

    most: int = 5
    busy_seconds: float = 1.0
    fault_seconds: float = 2.0
    longest_seconds: float = 60.0
    draw: Callable[[], float] = random.random

    def outcome(self, error: ServiceError, attempt: int) -> Retry | Reject:
        """Return the outcome of a delivery that ended with an error.

        Args:
            error: the error that ended the delivery.
            attempt: the number of deliveries so far, including this one.
        """
        kind = fate(error)
        if kind == "reject" or (kind == "fault" and attempt >= self.most):
            return Reject(error)
        # "Full jitter" (Brooker, Exponential Backoff And Jitter, AWS 2015), added to the error's own ``retry_after``.
        ceiling = self.busy_seconds if kind == "busy" else self.fault_seconds
        ceiling = min(self.longest_seconds, ceiling * 2.0 ** min(attempt - 1, 30))
        return Retry((error.retry_after or 0.0) + self.draw() * ceiling, error)
