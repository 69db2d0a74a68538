"""``warmstart consume``: a worker with the models in its own process. What it serves beside that is in ``server``."""

from __future__ import annotations

import argparse
import asyncio
import logging
from typing import Any

from handlers.cli.options import settings_of
from handlers.cli.queue_options import add_queue
from handlers.context import Context
from handlers.operations import OPERATIONS
from runtime.errors import ServiceError
from runtime.events.consumer import Consumer
from runtime.events.delivery_report import DeliveryReporter
from runtime.events.processor import Processor
from runtime.events.queues.base import Source
from runtime.settings import Settings

_log = logging.getLogger("warmstart.events")

_SIDE_PORT = 8001
_MODEL_SECONDS = 5.0  # before a model that could not be had is asked for again
_DELIVERIES_FACTOR = 4  # of deliveries that may fail: busy times count too where nothing else tells a crash


def add(commands: Any, run: Any) -> None:
    """Add the command to a command line's subparsers.

    Args:
        commands: they.
        run: what it does.
    """
    text = "Work on messages of a queue: NATS, Redis Streams, RabbitMQ or Kafka."
    sub: argparse.ArgumentParser = commands.add_parser("consume", help=text, description=text)
    sub.set_defaults(run=run)
    sub.add_argument("url", nargs="?", metavar="URL", help="of the broker, instead of EVENTS_URL")
    add_queue(sub, "--stream", "--stream-name")
    sub.add_argument("--operation", metavar="OPERATION", choices=OPERATIONS, help="of messages that name none")
    sub.add_argument("--concurrency", type=int, help="instead of EVENTS_CONCURRENCY")
    sub.add_argument("--max-deliveries", type=int, help="instead of EVENTS_MAX_DELIVERIES")
    sub.add_argument("--ack-seconds", type=float, help="instead of EVENTS_ACK_SECONDS")
    sub.add_argument("--serve", action="store_true", help="serve HTTP too, which goes before the queue's work")
    text = f"of probes and metrics, {_SIDE_PORT} by default, 0 for any; with --serve instead of PORT"
    sub.add_argument("--port", type=int, help=text)
    sub.add_argument("--host", help="instead of HOST")
    sub.add_argument("--model", help="instead of MODEL_NAME")


def worker_settings(options: argparse.Namespace) -> Settings:
    """The environment's, with what the options say instead.

    Raises:
        SettingsError: one is wrong.
    """
    return settings_of(
        options,
        host=options.host,
        port=_SIDE_PORT if options.port is None and not options.serve else options.port,
        events_concurrency=options.concurrency,
        events_max_deliveries=options.max_deliveries,
        events_ack_seconds=options.ack_seconds,
    )


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
