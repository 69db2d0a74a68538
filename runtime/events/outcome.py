"""Outcomes of event processing (ack, retry or reject), and the table that says which errors are retried."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from runtime.backoff import full_jitter
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

ErrorClass = Literal["transient", "failure", "reject"]
"""How an error is handled.

``transient`` is always retried, ``failure`` up to ``Policy.max_deliveries`` deliveries, ``reject`` never.
"""

ERROR_CLASSES: Mapping[type[ServiceError], ErrorClass] = MappingProxyType(
    {
        DeadlineExceeded: "failure",  # the engine's own limit: it may have been busy, or the request never ends
        DeliveryLimit: "reject",
        EngineRestarting: "failure",  # the message itself may have crashed the engine
        ModelUnavailable: "failure",
        ModelTooLarge: "reject",
    }
)
"""Errors that the general rule does not fit.

By that rule, retryable errors are transient, other 5xx errors are failures, and 4xx errors are rejected.
"""


def classify(error: ServiceError) -> ErrorClass:
    """Return how an error is handled, from ``ERROR_CLASSES`` or else from its ``retryable`` and ``status``."""
    for error_type in type(error).__mro__:
        if error_type in ERROR_CLASSES:
            return ERROR_CLASSES[error_type]
    return "transient" if error.retryable else "failure" if error.status >= 500 else "reject"


@dataclass(frozen=True, slots=True)
class Policy:
    """The retry policy: the maximum number of deliveries, and exponential backoff with full jitter.

    Args:
        max_deliveries: the maximum number of deliveries; a failure in the last one makes the message a dead letter.
        transient_seconds: the maximum delay after the first delivery if the error is transient; it doubles with each
            delivery.
        failure_seconds: the same after a failure.
        max_seconds: the upper bound of the delay, without the error's own ``retry_after``.
        draw: returns a uniformly distributed random number from 0 to 1.
    """

    max_deliveries: int = 5
    transient_seconds: float = 1.0
    failure_seconds: float = 2.0
    max_seconds: float = 60.0
    draw: Callable[[], float] = random.random

    def outcome(self, error: ServiceError, attempt: int) -> Retry | Reject:
        """Return the outcome of a delivery that ended with an error.

        Args:
            error: the error that ended the delivery.
            attempt: the number of deliveries so far, including this one.
        """
        error_class = classify(error)
        if error_class == "reject" or (error_class == "failure" and attempt >= self.max_deliveries):
            return Reject(error)
        first_seconds = self.transient_seconds if error_class == "transient" else self.failure_seconds
        # The pause is added to the error's own ``retry_after``, so that retries do not come all at once.
        pause = full_jitter(attempt, first_seconds, self.max_seconds, self.draw)
        return Retry((error.retry_after or 0.0) + pause, error)
