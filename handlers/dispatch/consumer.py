"""Builds the consumer of a queue that dispatches messages to operations."""

from __future__ import annotations

import asyncio
import logging

from handlers.context import Context
from runtime.errors import ServiceError
from runtime.events.consumer import Consumer
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.processor import Processor
from runtime.events.queues.base import Source
from runtime.settings import Settings

_log = logging.getLogger("warmstart.events")


_MODEL_SECONDS = 5.0  # before a model that could not be had is asked for again


_DELIVERIES_FACTOR = 4  # of deliveries that may fail: busy times count too where nothing else tells a crash


def consumer_of(
    settings: Settings, source: Source, ctx: Context, processor: Processor, reporter: DeliveryReporter
) -> Consumer:
    """A worker; it has not begun.

    Args:
        settings: see ``worker_settings``.
        source: of the messages, not open yet.
        ctx: whose model is waited for.
        processor: does the work.
        reporter: told of everything.
    """
    remembers = settings.idempotency in ("sqlite", "redis")  # who took up what, beyond the end of the process
    return Consumer(
        source,
        processor,
        reporter,
        concurrency=settings.events_concurrency,
        ready=lambda: model_ready(ctx),
        most=None if remembers else _DELIVERIES_FACTOR * settings.events_max_deliveries,
        drain_seconds=settings.drain_seconds,
    )


async def model_ready(ctx: Context) -> None:
    """Return once the default model can be asked; load it if nobody has. Trouble is logged when it begins."""
    told = False
    while not ctx.models.ready:
        try:
            async with ctx.models.lease(None):
                pass
        except ServiceError as error:
            if not told:
                _log.warning("no messages are taken until there is a model: %s", error.message)
            told = True
        if not ctx.models.ready:
            await asyncio.sleep(_MODEL_SECONDS)
