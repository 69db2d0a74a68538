"""Rate limits per client: requests and tokens in any minute, and concurrent requests.

A client is identified by its key or, if no key is required, by its address (IPv6 addresses by their /64). A request is
counted on arrival. Tokens are counted by the operations: the maximum that a generation can cost is reserved before it
starts, and its actual cost is committed in place of the reservation when it ends, however it ends.

Responses carry the remaining quota (draft-ietf-httpapi-ratelimit-headers-10, sections 3 and 4). RFC 6585 section 4
defines 429, and RFC 9110 section 10.2.3 ``Retry-After``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import istr

from middleware.access import Access
from middleware.request_keys import CALLER, CLIENT_IP
from runtime.errors import ExceedsRateLimit, RateLimited, RateLimitUnavailable
from runtime.networks import client_group
from runtime.rate_limits.gcra import Decision, LimitsUnavailable, Quota, UsageLimiter
from runtime.settings import Settings
from runtime.telemetry.request_scope import Reserve, request_scope
from runtime.types import Caller

_log = logging.getLogger("warmstart.edge")

_SHOWN: Final = istr("RateLimit")
_SHOWN_POLICY: Final = istr("RateLimit-Policy")
_LEGACY_LIMIT: Final = istr("X-RateLimit-Limit")
_LEGACY_REMAINING: Final = istr("X-RateLimit-Remaining")
_LEGACY_RESET: Final = istr("X-RateLimit-Reset")

_KINDS = 1024  # cached combinations of per-key limits; others are computed on each request


class _Terms(NamedTuple):
    """A client's quotas (None for no limit) and their ``RateLimit-Policy`` value, which names units except requests."""

    requests: Quota | None
    tokens: Quota | None
    policy: str


@dataclass(slots=True)
class _Left:
    """A client's quotas and remaining units, as of the request's last rate limit decision; None for no limit."""

    terms: _Terms
    requests: Decision | None
    tokens: Decision | None


async def _free(used: int) -> None:
    """Do nothing: commits tokens that were not reserved because the rate limits were unavailable."""


_LEFT: Final = web.RequestKey[_Left]("rate_limit")


class RateLimit:
    """Holds the rate limit middleware (``rate_limit``), which comes after the middlewares that identify the client.

    Args:
        settings: the settings with the limits.
        access: the access rules; open handlers are not limited.
        limits: the store of used quotas.
        count_unavailable: called each time the store is unavailable.
    """

    def __init__(
        self, settings: Settings, access: Access, limits: UsageLimiter, count_unavailable: Callable[[], None]
    ) -> None:
        self._access = access
        self._limits = limits
        self._count_unavailable = count_unavailable
        self._closed = settings.rate_limit_fail == "closed"
        self._concurrency = settings.rate_limit_concurrency
        self._legacy = settings.rate_limit_legacy_headers
        self._requests = settings.rate_limit_requests_per_minute
        self._tokens = settings.rate_limit_tokens_per_minute
        self._burst = settings.rate_limit_burst
        self._terms = lru_cache(_KINDS)(self._put_together)
        self._running: dict[str, int] = {}
        self._unavailable = False

    @web.middleware
    async def rate_limit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Run the handler if the client is within its limits.

        Raises:
            RateLimited: the client is above a limit.
            RateLimitUnavailable: the store is unavailable, and RATE_LIMIT_FAIL is ``closed``.
        """
        if self._access.is_open(request):
            return await handler(request)
        caller: Caller | None = request.get(CALLER)
        if caller is None:
            client, terms = f"ip:{client_group(request[CLIENT_IP])}", self._terms(None, None)
        else:
            client = f"key:{caller.id}"
            terms = self._terms(caller.requests_per_minute, caller.tokens_per_minute)
        if not self._concurrency:
            return await self._admitted(request, handler, client, terms)
        running = self._running.get(client, 0)
        if running >= self._concurrency:
            raise RateLimited(
                f"{running} of your requests are running, as many as may at once (RATE_LIMIT_CONCURRENCY)",
                retry_after=1,
            )
        self._running[client] = running + 1
        try:
            response = await self._admitted(request, handler, client, terms)
            # aiohttp would send the response after all middlewares. It is sent here so that a request counts as running
            # until its client has received the response, however slowly.
            await response.prepare(request)
            await response.write_eof()
            return response
        finally:
            if self._running[client] > 1:
                self._running[client] -= 1
            else:
                del self._running[client]

    def set_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Set the ``RateLimit`` headers of the response to a counted request (for ``header_signal``)."""
        if (left := request.get(_LEFT)) is None:
            return
        terms, requests, tokens = left.terms, left.requests, left.tokens
        parts = []
        if requests is not None:
            parts.append(f'"requests";r={requests.remaining};t={math.ceil(requests.reset)}')
        if tokens is not None:
            parts.append(f'"tokens";r={tokens.remaining};t={math.ceil(tokens.reset)}')
        headers = response.headers
        headers[_SHOWN_POLICY] = terms.policy
        headers[_SHOWN] = ", ".join(parts)
        if self._legacy:
            shown, quota = (requests, terms.requests) if requests is not None else (tokens, terms.tokens)
            if shown is not None and quota is not None:
                headers[_LEGACY_LIMIT] = str(quota.limit)
                headers[_LEGACY_REMAINING] = str(shown.remaining)
                headers[_LEGACY_RESET] = str(math.ceil(shown.reset))

    async def _admitted(self, request: web.Request, handler: Handler, client: str, terms: _Terms) -> web.StreamResponse:
        if terms.policy:
            try:
                requests, tokens = await self._limits.admit(client, terms.requests, terms.tokens)
            except LimitsUnavailable as error:
                self._unknown(error)
            else:
                if self._unavailable:
                    self._back()
                left = request[_LEFT] = _Left(terms, requests, tokens)
                if requests is not None and terms.requests is not None and not requests.admitted:
                    raise RateLimited(
                        f"more than {terms.requests.limit} requests in a minute, or too many of them at once",
                        retry_after=requests.retry_after,
                    )
                if terms.tokens is not None:
                    reserve = self._reserve(client, terms.tokens, left)
                    request_scope.set(replace(request_scope.get(), reserve=reserve))
        return await handler(request)

    def _reserve(self, client: str, quota: Quota, left: _Left) -> Reserve:
        async def reserve(max_tokens: int) -> Callable[[int], Awaitable[None]]:
            if max_tokens > quota.burst:
                raise ExceedsRateLimit(
                    f"this may cost {max_tokens} tokens, prompt and answer, and you may use {quota.burst} at once: "
                    f"RATE_LIMIT_BURST's share of {quota.limit} in a minute (RATE_LIMIT_TOKENS_PER_MINUTE, or the "
                    "key's own limit); ask for fewer new tokens"
                )
            try:
                left.tokens, commit = await self._limits.reserve(client, quota, max_tokens)
            except LimitsUnavailable as error:
                self._unknown(error)
                return _free
            if commit is None:
                raise RateLimited(
                    f"this may cost {max_tokens} tokens, prompt and answer, and you have {left.tokens.remaining} left "
                    "now",
                    retry_after=left.tokens.retry_after,
                )

            async def commit_used(used: int) -> None:
                left.tokens = await commit(used) or left.tokens

            return commit_used

        return reserve

    def _unknown(self, error: LimitsUnavailable) -> None:
        self._count_unavailable()
        if not self._unavailable:
            self._unavailable = True
            told = "requests are answered 503" if self._closed else "nobody is limited"
            _log.warning("what clients used cannot be looked up, and so %s: %s", told, error)
        if self._closed:
            raise RateLimitUnavailable("how much you have used cannot be looked up now", retry_after=1)

    def _back(self) -> None:
        self._unavailable = False
        _log.warning("what clients used can be looked up again")

    def _put_together(self, requests: int | None, tokens: int | None) -> _Terms:
        """Return the quotas and policy for a key's own limits: None means the settings' limit, 0 means no limit."""
        requests = self._requests if requests is None else requests
        tokens = self._tokens if tokens is None else tokens
        quotas = [Quota.share(limit, self._burst) if limit else None for limit in (requests, tokens)]
        named = (('"requests"', ""), ('"tokens"', ';qu="tokens"'))
        policy = ", ".join(
            f"{name};q={quota.limit}{unit};w={quota.window:.0f}"
            for (name, unit), quota in zip(named, quotas, strict=True)
            if quota is not None
        )
        return _Terms(quotas[0], quotas[1], policy)
