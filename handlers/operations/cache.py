"""``cache_stats`` and ``clear_cache``: statistics and removal of the response cache's entries."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from handlers.context import Context
from handlers.schemas.base import Empty
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ClearCacheRequest
from runtime.status import CacheStats


async def stats(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the response cache's statistics, see ``CacheStatsResponse``."""
    parse(Empty, payload)
    return await report(ctx)


async def clear(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Remove cached responses and return their number, see ``ClearCacheRequest`` and ``ClearCacheResponse``.

    Raises:
        CacheUnavailable: the store cannot be reached.
    """
    request = parse(ClearCacheRequest, payload)
    if ctx.cache is None:
        return {"removed": 0}
    return {"removed": await ctx.cache.clear(model=request.model, prefix=request.prefix)}


async def report(ctx: Context) -> dict[str, Any]:
    """Return the cache's statistics and its hit rate as a dict, see ``CacheStatsResponse``; zeros without a cache."""
    counts = CacheStats() if ctx.cache is None else await ctx.cache.stats()
    hits = counts.hits + counts.shared
    lookups = hits + counts.misses
    return asdict(counts) | {"rate": hits / lookups if lookups else 0.0}
