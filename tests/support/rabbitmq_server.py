"""The tests' real RabbitMQ: its URL, queues per test, a skip that says how to start one, and nodes to kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import aio_pika
import pytest

from runtime.events.queues.base import QueueOptions
from runtime.events.queues.rabbitmq.connection import RETRY_DELAYS, delay_queue
from runtime.events.queues.rabbitmq.source import REPLY_PREFIXES

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")


@asynccontextmanager
async def real_rabbitmq() -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    """Yield a connection to the server; skip the test if it does not answer."""
    try:
        connection = await aio_pika.connect(AMQP_URL, timeout=5)
    except (OSError, TimeoutError):
        pytest.skip("no RabbitMQ answers at AMQP_URL; start one: rabbitmq-server -detached")
    async with connection:
        yield connection


@asynccontextmanager
async def own_queues() -> AsyncIterator[QueueOptions]:
    """Yield options with queue names of this test only; the queues are deleted afterwards."""
    name = f"warmstart-test.{uuid4().hex}"
    options = QueueOptions(
        url=AMQP_URL,
        stream=name,
        group="warmstart",
        results=f"{name}.results",
        dead=f"{name}.dead",
        operation="generate",
        reply_prefixes=REPLY_PREFIXES,
    )
    async with real_rabbitmq() as connection:
        yield options
        channel = await connection.channel()
        for queue in (name, options.results, options.dead, *(delay_queue(name, seconds) for seconds in RETRY_DELAYS)):
            await channel.queue_delete(queue)


_PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # Debian's wrapper changes the user and the folders


class OwnRabbitmq:
    """A RabbitMQ node with its own folder.

    Args:
        folder: the folder for all its files.
        ports: the port for clients and the port for other nodes.
    """

    def __init__(self, folder: Path, ports: tuple[int, int]) -> None:
        self.url = f"amqp://guest:guest@127.0.0.1:{ports[0]}/"
        (folder / "plugins").write_text("[].")
        self._environment = os.environ | {
            "HOME": str(folder),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_DIST_PORT": str(ports[1]),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": f"test-{ports[0]}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(ports[0]),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the node, on the data of an earlier run if there is one; it takes some seconds until it answers."""
        self._process = subprocess.Popen(
            [_PROGRAM], env=self._environment, stdout=subprocess.DEVNULL, start_new_session=True
        )

    def kill(self) -> None:
        """Kill the node and all its processes with SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    async def answers(self) -> None:
        """Wait until the node accepts connections."""
        async with asyncio.timeout(60):
            while True:
                try:
                    connection = await aio_pika.connect(self.url, timeout=5)
                except (OSError, TimeoutError):
                    await asyncio.sleep(0.1)
                else:
                    await connection.close()
                    return


@contextmanager
def own_rabbitmq(folder: Path, ports: tuple[int, int]) -> Iterator[OwnRabbitmq]:
    """Run a node during the block; skip the test if RabbitMQ is not installed."""
    if not _PROGRAM.exists():
        pytest.skip("no RabbitMQ to start; install one: apt-get install rabbitmq-server")
    node = OwnRabbitmq(folder, ports)
    node.start()
    try:
        yield node
    finally:
        node.kill()
