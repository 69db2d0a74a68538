"""The tests' Kafka: the one at KAFKA_URL, or librdkafka's mock cluster, which comes with the package confluent-kafka.

The mock is a broker on a TCP port in its own process, with all data in memory. It has topics, consumer groups with
rebalancing, committed offsets and headers. It creates topics when they are asked about, not on request, and has no
TLS, no users and no limit on message size. It rejects a follower that asks for its assignment after the leader has
distributed them, where Kafka answers it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

KAFKA_URL = os.environ.get("KAFKA_URL")


class MockKafka:
    """A process that runs a mock cluster of one broker."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.url = f"kafka://{self._answer()}"

    def topic(self, name: str, partitions: int) -> None:
        """Create a topic."""
        self._tell(f"topic {name} {partitions}")

    def down(self) -> None:
        """Close every connection and accept no new ones."""
        self._tell("down")

    def up(self) -> None:
        """Accept connections again, with all data kept."""
        self._tell("up")

    def _tell(self, command: str) -> None:
        commands = cast(IO[str], self._process.stdin)
        commands.write(f"{command}\n")
        commands.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        return cast(IO[str], self._process.stdout).readline().strip()


@contextmanager
def mock_kafka() -> Iterator[MockKafka]:
    """Run a mock cluster during the block."""
    command = [sys.executable, str(Path(__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield MockKafka(process)
        finally:
            process.kill()


def _serve() -> None:
    """Run the mock cluster and obey commands on standard input.

    The functions are those of librdkafka's rdkafka_mock.h, for which the Python package has no names.
    """
    import confluent_kafka

    folder = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs")
    library = ctypes.CDLL(str(next(folder.glob("librdkafka*"))))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    settings = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(settings, b"log_level", b"0", None, 0)
    client = library.rd_kafka_new(0, settings, None, 0)
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(ctypes.c_void_p(client), 1))
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 50)
    _say(library.rd_kafka_mock_cluster_bootstraps(cluster).decode())
    for line in sys.stdin:
        match line.split():
            case ["topic", name, partitions]:
                library.rd_kafka_mock_topic_create(cluster, name.encode(), int(partitions), 1)
            case ["down"]:
                library.rd_kafka_mock_broker_set_down(cluster, 1)
            case ["up"]:
                library.rd_kafka_mock_broker_set_up(cluster, 1)
        _say("done")


def _say(answer: str) -> None:
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()
