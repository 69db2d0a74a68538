"""What a request carries along while it is served: its log fields, its caller, its usage and its token reservation."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from runtime.types import TokenUsage

SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
"""Matches a request id from a caller that is safe in logs and headers."""

Reserve = Callable[[int], Awaitable[Callable[[int], Awaitable[None]]]]
"""Reserves the maximum number of tokens that a generation can use; returns the function that commits, once, those it
did use."""


class UsageCounter:
    """Adds up the usage of a request's generations, on whichever tasks they run."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total: TokenUsage | None = None
        """The sum so far; None before the first generation reports its usage."""

    def add(self, usage: TokenUsage) -> None:
        """Add a generation's usage."""
        self.total = usage if self.total is None else self.total + usage

    @property
    def tokens(self) -> dict[str, int | None]:
        """The fields ``tokens_in`` and ``tokens_out`` of log and audit lines; None if nothing was generated."""
        total = self.total
        return {
            "tokens_in": None if total is None else total.prompt_tokens,
            "tokens_out": None if total is None else total.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class RequestScope:
    """What operations need to know of the request that they work for. Adapters set a new one for each request.

    Args:
        caller: identifies the caller; "" where callers need not be distinguished.
        usage: adds up the usage of the request's generations; None if nothing reports it.
        reserve: reserves tokens of the caller's rate limit before they are generated; None where there is no limit.
        may_call: returns whether the caller may call an operation; None where all may be called.
    """

    caller: str = ""
    usage: UsageCounter | None = None
    reserve: Reserve | None = None
    may_call: Callable[[str], bool] | None = None


# The scope of the request being served.
request_scope: ContextVar[RequestScope] = ContextVar("request_scope", default=RequestScope())  # noqa: B039 - frozen

# Facts about the request being served, copied into every log record that belongs to it: request_id, trace_id. Separate
# from the scope, because logs need them before and after it.
request_facts: ContextVar[dict[str, Any] | None] = ContextVar("request_facts", default=None)


def current_caller() -> str:
    """Return the caller of the request being served."""
    return request_scope.get().caller


def may_call(operation: str) -> bool:
    """Return whether the caller of the request being served may call an operation."""
    allows = request_scope.get().may_call
    return allows is None or allows(operation)


def has_token_limit() -> bool:
    """Return whether the tokens of the request being served are limited."""
    return request_scope.get().reserve is not None


def observe_usage(usage: TokenUsage) -> None:
    """Add a generation's usage to that of the request being served, if it is counted."""
    if (counter := request_scope.get().usage) is not None:
        counter.add(usage)
