"""The handlers of the probes, of the service's version and load, and of the Prometheus metrics."""

from __future__ import annotations

from aiohttp import web

from runtime.status import CacheStats
from runtime.telemetry.exposition import ServiceStats, service_families
from views.app_keys import CONTEXT, METRICS, STATE


async def livez(request: web.Request) -> web.Response:
    """``/livez``: 200, or 503 when only a restart of the process would help."""
    alive = request.app[CONTEXT].models.alive
    return web.json_response({"status": "alive" if alive else "dead"}, status=200 if alive else 503)


async def readyz(request: web.Request) -> web.Response:
    """``/readyz``: 200 if the service can answer requests, else 503; the body names the state."""
    state = request.app[STATE]()
    return web.json_response({"status": state}, status=200 if state == "ready" else 503)


async def version(request: web.Request) -> web.Response:
    """``/version``: the service's version, in vLLM's form."""
    return web.json_response({"version": request.app[CONTEXT].version})


async def load(request: web.Request) -> web.Response:
    """``/load``: the number of requests that use a model now, in vLLM's form."""
    return web.json_response({"server_load": sum(model.running for model in request.app[CONTEXT].models.status())})


async def exposition(request: web.Request) -> web.Response:
    """``/metrics``: the metrics in Prometheus' text format, or in OpenMetrics if ``Accept`` prefers it."""
    ctx = request.app[CONTEXT]
    cache = CacheStats() if ctx.cache is None else await ctx.cache.stats()
    service = ServiceStats(ctx.models.status(), ctx.models.ready, ctx.memory(), cache)
    accept = ",".join(request.headers.getall("Accept", []))
    body, content_type = request.app[METRICS].render(accept, service_families(service))
    return web.Response(body=body, headers={"Content-Type": content_type})
