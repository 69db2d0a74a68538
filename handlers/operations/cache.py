"""The answers kept: what they are worth, and dropping them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from handlers.context import Context
from handlers.schemas.base import Empty
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ClearCacheRequest
from runtime.types import CacheStats


async def stats(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """See ``CacheStatsResponse``."""
    parse(Empty, payload)
    return await report(ctx)


async def clear(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Drop answers. See ``ClearCacheRequest`` and ``ClearCacheResponse``."""
    request = parse(ClearCacheRequest, payload)
    if ctx.cache is None:
        return {"removed": 0}
    return {"removed": await ctx.cache.clear(model=request.model, prefix=request.prefix)}


async def report(ctx: Context) -> dict[str, Any]:
    """The figures as ``CacheStatsResponse`` describes them."""
    found = CacheStats() if ctx.cache is None else await ctx.cache.stats()
    answered = found.hits + found.shared
    asked = answered + found.misses
    return asdict(found) | {"rate": answered / asked if asked else 0.0}
