"""Context variables of the request being served: its caller, its usage, its token reservation and its log fields."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from hashlib import sha256
from typing import Any

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
"""Matches a request id from a caller that is safe in logs and headers."""


# Facts about the request being served, copied into every log record that belongs to it: request_id, trace_id.
request_facts: ContextVar[dict[str, Any] | None] = ContextVar("request_facts", default=None)


# The request's usage so far, for its access log line; generations add to it.
request_usage: ContextVar[dict[str, Any] | None] = ContextVar("request_usage", default=None)


# Identifies the request's caller; "" where callers need not be distinguished.
request_caller: ContextVar[str] = ContextVar("request_caller", default="")


def hash_credentials(credentials: Sequence[object]) -> str:
    """Return an id for the caller that sent these credentials where none are required: their hash; "" if all are empty.

    Args:
        credentials: the values of the headers that may hold credentials, in a fixed order.
    """
    return sha256(repr(credentials).encode()).hexdigest() if any(credentials) else ""


def note_usage(usage: Mapping[str, Any]) -> None:
    """Add to the usage of the request being served, if there is one."""
    if (facts := request_usage.get()) is not None:
        facts.update(usage)


Charge = Callable[[int], Awaitable[Callable[[int], Awaitable[None]]]]
"""Reserves the most tokens that a generation can use; returns the function that commits, once, those it did use."""


# Reserves tokens of the caller's rate limit before they are generated; None where there is no token limit.
request_charge: ContextVar[Charge | None] = ContextVar("request_charge", default=None)
