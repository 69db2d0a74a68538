"""Sends events through a broker for the load generator, whose environment has no broker's client.

It runs in the service's environment: ``python -m loadtests.load.events_bridge URL`` reads JSON lines with ``id``,
``operation`` and ``data`` from standard input, and writes a JSON line with ``id``, ``kind`` (``chunk``, ``result`` or
``error``) and ``body`` for each reply as soon as it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
from contextlib import aclosing
from typing import Any

from handlers.cli.options import settings_of
from handlers.cli.queue_options import add_queue, queue_of
from runtime.errors import ServiceError, SettingsError
from runtime.events.envelope import TYPE_PREFIX, Envelope
from runtime.events.queues.base import BrokerUnavailable, Submitter
from runtime.events.queues.factory import open_submitter


async def bridge(submitter: Submitter) -> None:
    """Send the events of standard input until it ends, all at the same time, and write their replies."""
    loop = asyncio.get_running_loop()
    await submitter.open()
    try:
        async with asyncio.TaskGroup() as tasks:
            while line := await loop.run_in_executor(None, sys.stdin.readline):
                tasks.create_task(_send(submitter, json.loads(line)))
    finally:
        await submitter.close()


async def _send(submitter: Submitter, order: dict[str, Any]) -> None:
    event = Envelope(
        id=secrets.token_hex(16),
        source="",
        type=TYPE_PREFIX + order["operation"],
        operation=order["operation"],
        data=order["data"],
        deadline=None,
        stream=True,
    )
    try:
        async with aclosing(await submitter.submit(event, wait=True)) as replies:
            async for reply in replies:
                _write(order["id"], reply.kind, reply.body)
    except (BrokerUnavailable, ServiceError) as error:
        _write(order["id"], "error", {"error": {"message": str(error)}})


def _write(name: Any, kind: str, body: Any) -> None:
    sys.stdout.write(json.dumps({"id": name, "kind": kind, "body": body}) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Run the bridge; the exit status is 1 if the broker cannot be reached."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.load.events_bridge")
    parser.add_argument("url", help="the broker's URL")
    add_queue(parser, "--stream-name")
    options = parser.parse_args()
    try:
        asyncio.run(bridge(open_submitter(queue_of(options, settings_of(options), options.url))))
    except (BrokerUnavailable, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
