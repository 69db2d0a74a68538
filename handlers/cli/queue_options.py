"""The options that ``warmstart consume`` and ``warmstart submit`` share: which broker, and which queue on it."""

from __future__ import annotations

import argparse

from runtime.errors import SettingsError
from runtime.events.queues.base import QueueOptions
from runtime.events.queues.factory import names, reply_prefixes
from runtime.settings import Settings


def add_queue(parser: argparse.ArgumentParser, *stream: str) -> None:
    """Add them.

    Args:
        parser: of a command.
        stream: what the option that names the queue is called.
    """
    text = "stream, queue or topic that work comes in on"
    parser.add_argument(*stream, dest="stream_name", metavar="NAME", help=f"{text}; each broker has a default")
    parser.add_argument("--group", metavar="NAME", default="warmstart", help="workers of one name share the work")
    parser.add_argument("--results", metavar="NAME", help="the same for answers")
    parser.add_argument("--dead", metavar="NAME", help="the same for messages that nothing could be done with")
    parser.add_argument(
        "--no-create", action="store_true", help="make no streams, queues and groups that are missing; say so"
    )


def queue_of(
    options: argparse.Namespace, settings: Settings, url: str | None, operation: str | None = None
) -> QueueOptions:
    """The queue that options and settings name.

    Args:
        options: see ``add_queue``.
        settings: of the environment.
        url: of the broker, instead of EVENTS_URL.
        operation: of messages that name none.

    Raises:
        SettingsError: no URL is given, or nothing here takes it.
    """
    url = url or settings.events_url.get_secret_value()
    if not url:
        raise SettingsError("EVENTS_URL: set it, or give the broker's URL, for example nats://127.0.0.1:4222")
    stream, results, dead = names(url)
    return QueueOptions(
        url=url,
        stream=options.stream_name or stream,
        group=options.group,
        results=options.results or results,
        dead=options.dead or dead,
        operation=operation,
        ack_seconds=settings.events_ack_seconds,
        most=settings.events_max_deliveries,
        results_seconds=settings.idempotency_ttl_seconds,
        reply_prefixes=settings.events_reply_prefixes or reply_prefixes(url),
        create=not options.no_create,
    )
