"""The queue options of ``warmstart consume`` and ``warmstart submit``."""

from __future__ import annotations

import argparse

from runtime.errors import SettingsError
from runtime.events.queues.base import QueueOptions
from runtime.events.queues.factory import default_names, default_reply_prefixes
from runtime.settings import Settings


def add_queue(parser: argparse.ArgumentParser, *stream: str) -> None:
    """Add the queue options to a command.

    Args:
        parser: the command's parser.
        stream: the names of the option for the stream, queue or topic.
    """
    text = "the stream, queue or topic of requests"
    parser.add_argument(*stream, dest="stream_name", metavar="NAME", help=f"{text}; each broker has a default")
    parser.add_argument(
        "--group",
        metavar="NAME",
        default="warmstart",
        help="the consumer group; workers of the same group share the messages",
    )
    parser.add_argument("--results", metavar="NAME", help="the stream, queue or topic of answers")
    parser.add_argument("--dead", metavar="NAME", help="the stream, queue or topic of dead letters")
    parser.add_argument(
        "--no-create", action="store_true", help="fail if a stream, queue or group is missing, instead of creating it"
    )


def queue_of(
    options: argparse.Namespace, settings: Settings, url: str | None, operation: str | None = None
) -> QueueOptions:
    """Return the queue options from the command line and the settings.

    Args:
        options: the parsed options of ``add_queue``.
        settings: the environment's settings.
        url: the broker's URL; None for EVENTS_URL.
        operation: the operation of messages that name none.

    Raises:
        SettingsError: no URL is given, or no queue supports its scheme.
    """
    url = url or settings.events_url.get_secret_value()
    if not url:
        raise SettingsError("EVENTS_URL: set it, or give the broker's URL, for example nats://127.0.0.1:4222")
    stream, results, dead = default_names(url)
    return QueueOptions(
        url=url,
        stream=options.stream_name or stream,
        group=options.group,
        results=options.results or results,
        dead=options.dead or dead,
        operation=operation,
        ack_seconds=settings.events_ack_seconds,
        results_seconds=settings.idempotency_ttl_seconds,
        reply_prefixes=settings.events_reply_prefixes or default_reply_prefixes(url),
        create=not options.no_create,
    )
