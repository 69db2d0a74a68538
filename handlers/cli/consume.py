"""The options of ``warmstart consume``: a queue worker with the models in its own process; ``server`` runs it."""

from __future__ import annotations

import argparse
from typing import Any

from handlers.cli.options import settings_of
from handlers.cli.queue_options import add_queue
from handlers.operations import OPERATIONS
from runtime.settings import Settings

_SIDE_PORT = 8001


def add(commands: Any, run: Any) -> None:
    """Add ``consume`` to the command line's subparsers.

    Args:
        commands: the subparsers.
        run: the function that runs the command.
    """
    text = "Process the messages of a queue of NATS, Redis Streams, RabbitMQ or Kafka."
    sub: argparse.ArgumentParser = commands.add_parser("consume", help=text, description=text)
    sub.set_defaults(run=run)
    sub.add_argument("url", nargs="?", metavar="URL", help="the broker's URL, instead of EVENTS_URL")
    add_queue(sub, "--stream", "--stream-name")
    sub.add_argument(
        "--operation", metavar="OPERATION", choices=OPERATIONS, help="the operation of messages that name none"
    )
    sub.add_argument(
        "--concurrency", type=int, help="how many messages are processed at once, instead of EVENTS_CONCURRENCY"
    )
    sub.add_argument(
        "--max-deliveries", type=int, help="how often a message is delivered, instead of EVENTS_MAX_DELIVERIES"
    )
    sub.add_argument(
        "--ack-seconds", type=float, help="the visibility timeout of a message, instead of EVENTS_ACK_SECONDS"
    )
    sub.add_argument(
        "--serve", action="store_true", help="also serve HTTP, whose requests take precedence over the queue"
    )
    text = f"the port of probes and metrics, by default {_SIDE_PORT}, 0 for any free port; with --serve instead of PORT"
    sub.add_argument("--port", type=int, help=text)
    sub.add_argument("--host", help="the address to listen on, instead of HOST")
    sub.add_argument("--model", help="the model, instead of MODEL_NAME")


def worker_settings(options: argparse.Namespace) -> Settings:
    """Return the environment's settings, overridden by the command's options.

    Raises:
        SettingsError: a setting or an option is wrong.
    """
    return settings_of(
        options,
        host=options.host,
        port=_SIDE_PORT if options.port is None and not options.serve else options.port,
        events_concurrency=options.concurrency,
        events_max_deliveries=options.max_deliveries,
        events_ack_seconds=options.ack_seconds,
    )
