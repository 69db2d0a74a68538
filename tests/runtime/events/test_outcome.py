"""Which errors are worth another delivery, and when."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import errors
from runtime.errors import DeadlineExceeded, InternalError, InvalidRequest, ModelLoading, ServiceError, TooManyRequests
from runtime.events.outcome import ErrorClass, Policy, Reject, Retry, classify
from tests.support.soak import soak

# Every error that there is, so that whoever adds one has to say what becomes of a message that meets it.
DECIDED: dict[str, ErrorClass] = {
    "ServiceError": "failure",
    "InternalError": "failure",
    "InvalidRequest": "reject",
    "ThreadUnsupported": "reject",
    "ContextLengthExceeded": "reject",
    "ModelCannotGenerate": "reject",
    "ModelCannotEncode": "reject",
    "NotFound": "reject",
    "ModelNotFound": "reject",
    "MethodNotAllowed": "reject",
    "RequestTimeout": "transient",
    "PayloadTooLarge": "reject",
    "UriTooLong": "reject",
    "UnsupportedMediaType": "reject",
    "RequestHeaderFieldsTooLarge": "reject",
    "ClientAddressDenied": "reject",
    "Unauthenticated": "reject",
    "InvalidSignature": "reject",
    "InsufficientScope": "reject",
    "TooManyRequests": "transient",
    "RateLimited": "transient",
    "ExceedsRateLimit": "reject",
    "RateLimitUnavailable": "transient",
    "NoncesUnavailable": "transient",
    "AuditUnavailable": "transient",
    "ModelLoading": "transient",
    "ModelUnavailable": "failure",
    "ModelTooLarge": "reject",
    "CacheUnavailable": "transient",
    "EngineRestarting": "failure",
    "IdempotencyConflict": "transient",
    "IdempotencyMismatch": "reject",
    "IdempotencyUnavailable": "transient",
    "FilesOff": "reject",
    "FileInUse": "reject",
    "StorageFull": "transient",
    "StorageUnavailable": "transient",
    "DeliveryLimit": "reject",
    "DeadlinePassed": "reject",
    "Draining": "transient",
    "DeadlineExceeded": "failure",
}


def kinds(kind: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    """The service's errors, all of them."""
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from kinds(below)


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.__name__)
def test_every_error_is_decided(kind: type[ServiceError]) -> None:
    """As the table has it."""
    assert classify(kind("")) == DECIDED[kind.__name__]


def test_no_error_is_decided_that_is_none() -> None:
    """The table is the tree."""
    assert set(DECIDED) == {kind.__name__ for kind in kinds()}


@pytest.mark.parametrize(
    ("error", "attempt", "delay"),
    [
        (TooManyRequests(""), 1, 0.5),
        (TooManyRequests(""), 2, 1.0),
        (TooManyRequests(""), 5, 8.0),
        (TooManyRequests("", retry_after=7), 5, 15.0),
        (TooManyRequests(""), 10_000, 30.0),
        (ModelLoading("", retry_after=5), 1, 5.5),
        (InternalError(""), 1, 1.0),
        (InternalError(""), 4, 8.0),
        (InternalError(""), 5, None),
        (InternalError(""), 6, None),
        (DeadlineExceeded(""), 5, None),
        (InvalidRequest(""), 1, None),
    ],
)
def test_delays(error: ServiceError, attempt: int, delay: float | None) -> None:
    """Twice as long each time, up to a minute, half of it in the middle, and on top of what the error asks for."""
    outcome = Policy(draw=lambda: 0.5).outcome(error, attempt)
    assert outcome == (Reject(error) if delay is None else Retry(delay, error))


@settings(max_examples=soak(1000))
@given(st.integers(1, 2**40), st.integers(0, 2**32), st.floats(0, 1000) | st.none())
def test_delays_stay_within_bounds(attempt: int, seed: int, retry_after: float | None) -> None:
    """Whatever is drawn, however often it was delivered."""
    policy = Policy(max_deliveries=2**62, draw=random.Random(seed).random)
    for error in (TooManyRequests("", retry_after=retry_after), InternalError("", retry_after=retry_after)):
        outcome = policy.outcome(error, attempt)
        assert isinstance(outcome, Retry)
        assert 0 <= outcome.delay - (retry_after or 0) <= policy.max_seconds


def test_delays_differ() -> None:
    """So that what failed together is not tried again together."""
    outcomes = [Policy().outcome(TooManyRequests(""), 5) for _ in range(10)]
    assert len({outcome.delay for outcome in outcomes if isinstance(outcome, Retry)}) > 5


@settings(max_examples=soak(1000))
@given(st.text())
def test_reasons_can_be_headers(message: str) -> None:
    """One line of printable ASCII, whatever the message holds, and not longer than a broker takes."""
    reason = Reject(InvalidRequest(message)).reason
    assert reason.startswith("invalid_request: ")
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) <= 1000
