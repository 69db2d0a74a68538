"""The typed keys of the application data that route handlers use (``aiohttp.web.AppKey``)."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from handlers.context import Context
from runtime.batches.runner import BatchRunner
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics

CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)


METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)


BATCHES = web.AppKey[BatchRunner | None]("batches")
"""Runs batches; None if the service has none."""


STATE = web.AppKey[Callable[[], str]]("state")
"""Returns the state that ``/readyz`` reports; ``ready`` gives 200, any other state 503."""
