"""What a request carries along: its caller, its usage, its rate limit and the facts of its log lines."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
"""A caller's own id for its request that is harmless in logs and headers."""


# Facts about the request being served, copied into every record logged on its behalf: request_id, trace_id.
request_facts: ContextVar[dict[str, Any] | None] = ContextVar("request_facts", default=None)


# What the request has cost so far, for its access line; filled in by whoever generates.
request_usage: ContextVar[dict[str, Any] | None] = ContextVar("request_usage", default=None)


# Tells the request's caller from others; "" where callers need not be told apart.
request_caller: ContextVar[str] = ContextVar("request_caller", default="")


def note_usage(usage: Mapping[str, Any]) -> None:
    """Add to what the request being served has cost, if one is."""
    if (facts := request_usage.get()) is not None:
        facts.update(usage)


Charge = Callable[[int], Awaitable[Callable[[int], Awaitable[None]]]]
"""The most tokens that a generation can cost -> what is to be told, once, how many it did cost."""


# Charges the request's caller for tokens before they are computed; None where nobody is charged.
request_charge: ContextVar[Charge | None] = ContextVar("request_charge", default=None)
