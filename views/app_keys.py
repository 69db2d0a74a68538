"""The keys under which the application holds what its routes need (``aiohttp.web.AppKey``)."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from handlers.context import Context
from runtime.settings import Settings
from runtime.telemetry.metrics import Metrics

CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)


METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)


SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)


STATE = web.AppKey[Callable[[], str]]("state")
"""What ``/readyz`` says; all is well if that is ``ready``."""
