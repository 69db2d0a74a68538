"""Builds the queue consumer that runs messages as operations, and makes it wait for the default model."""

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


_MODEL_SECONDS = 5.0  # between attempts to get the default model


# Without records, a delivery that is refused because the service is busy counts like one that crashes the worker, so
# the limit is this many times EVENTS_MAX_DELIVERIES.
_DELIVERIES_FACTOR = 4


def consumer_of(
    settings: Settings, source: Source, ctx: Context, processor: Processor, reporter: DeliveryReporter
) -> Consumer:
    """Build a consumer without starting it.

    Args:
        settings: the settings, see ``worker_settings``.
        source: the queue's messages; not open yet.
        ctx: the context whose default model must be ready before messages are fetched.
        processor: runs each message.
        reporter: logs and counts each delivery.
    """
    remembers = settings.idempotency in ("sqlite", "redis")  # records of started work that outlive the process
    return Consumer(
        source,
        processor,
        reporter,
        concurrency=settings.events_concurrency,
        ready=lambda: model_ready(ctx),
        max_deliveries=None if remembers else _DELIVERIES_FACTOR * settings.events_max_deliveries,
        drain_seconds=settings.drain_seconds,
    )


async def model_ready(ctx: Context) -> None:
    """Wait until the default model is ready, and load it if necessary. Only the first error is logged."""
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
