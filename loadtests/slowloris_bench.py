"""Measures how slow clients affect a normal one: hundreds of connections send slowly or don't read their answers.

Run from the repository's root: ``python -m loadtests.slowloris_bench [--seconds 30] [--connections 500]``. It starts
the service, sends requests with one client before and during each attack, and prints a table; the goal is a p99 at
most twice the one before. The attackers run in their own process and use five addresses of the loopback network.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from loadtests.service import ROOT, Service, running_service

KINDS = {
    # The bytes sent at once, then those sent repeatedly.
    "headers": (b"GET /models HTTP/1.1\r\nHost: x\r\nX: ", b"a"),
    "bodies": (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n",
        b" ",
    ),
    # These never read, so the answers fill the sockets' buffers, then the server's.
    "readers": (b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 8, b""),
}
ADDRESSES = [f"127.0.0.{number}" for number in range(2, 7)]
HEALTHY = "127.0.0.1"
_DRIP_SECONDS = 0.5
_NEW_CONNECTION_EVERY = 20  # requests of the normal client, so that accepting is measured too


@dataclass
class Outcome:
    """The attackers' counts: connections opened, connections that the server closed, and failed attempts."""

    opened: int = 0
    ended: int = 0
    failed: int = 0


async def attack(port: int, kind: str, connections: int, seconds: float) -> Outcome:
    """Hold connections open for some seconds; one that the server closes is opened again."""
    outcome = Outcome()
    start, drip = KINDS[kind]

    async def hold(address: str) -> None:
        while True:
            # A small buffer, so that an unread answer soon fills the server's buffers.
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            client.bind((address, 0))
            try:
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            except OSError:
                outcome.failed += 1
                client.close()
                await asyncio.sleep(_DRIP_SECONDS)
                continue
            outcome.opened += 1
            reader, writer = await asyncio.open_connection(sock=client, limit=1024)
            try:
                writer.write(start)
                if not drip:
                    writer.transport.pause_reading()  # type: ignore[attr-defined]
                while not writer.is_closing() and not reader.at_eof():
                    writer.write(drip)
                    await asyncio.sleep(_DRIP_SECONDS)
                outcome.ended += 1
            except OSError:
                outcome.ended += 1
            finally:
                writer.close()

    tasks = [asyncio.create_task(hold(ADDRESSES[number % len(ADDRESSES)])) for number in range(connections)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return outcome


def under_attack(service: Service, kind: str, connections: int, seconds: float, call: Callable[[], None]) -> Outcome:
    """Call a function repeatedly while another process attacks.

    Raises:
        RuntimeError: the attacking process failed.
    """
    command = [sys.executable, "-m", "loadtests.slowloris_bench", "--attack", kind, "--port", str(service.port)]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as attackers:
        try:
            while attackers.poll() is None:
                call()
            output = attackers.communicate()[0]
        finally:
            attackers.kill()
    if attackers.returncode:
        raise RuntimeError(f"the attackers ended with status {attackers.returncode}")
    return Outcome(**json.loads(output))


class Healthy:
    """A normal client that sends a request, reads the answer, and sends the next one.

    Args:
        port: the service's port.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.seconds: list[float] = []
        self.statuses: dict[int, int] = {}
        self._connection: http.client.HTTPConnection | None = None

    def ask(self) -> None:
        """Send one request and record its duration; ``OSError`` or ``HTTPException`` if it is not answered."""
        started = time.perf_counter()
        if self._connection is None or len(self.seconds) % _NEW_CONNECTION_EVERY == 0:
            self.close()
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, 30, source_address=(HEALTHY, 0))
        self._connection.request("GET", "/models")
        response = self._connection.getresponse()
        response.read()
        self.seconds.append(time.perf_counter() - started)
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        time.sleep(0.002)  # so that this client is not a heavy load itself

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def descriptors(service: Service) -> int:
    """Return the number of files and sockets that the service has open. Linux only."""
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


def _figures(healthy: Healthy) -> tuple[float, float]:
    percentiles = statistics.quantiles(healthy.seconds, n=100)
    return 1e3 * percentiles[49], 1e3 * percentiles[98]


def main() -> None:
    """Measure each kind of attack and print the table."""
    parser = argparse.ArgumentParser(description="What slow clients do to a quick one.")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--attack", choices=KINDS, help="only attack; prints what came of it as JSON")
    parser.add_argument("--port", type=int, help="of the service to attack")
    options = parser.parse_args()
    if options.attack:
        print(
            json.dumps(asdict(asyncio.run(attack(options.port, options.attack, options.connections, options.seconds))))
        )
        return
    print(
        "| attack | p50 before | during | p99 before | during | ratio | opened | ended by the service | MB | growth |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for kind in KINDS:
        with running_service(
            PRELOAD="false", LOG_LEVEL="WARNING", HEADER_TIMEOUT_SECONDS="5", BODY_TIMEOUT_SECONDS="5"
        ) as service:
            service.wait("/livez")
            before, during = Healthy(service.port), Healthy(service.port)
            end = time.perf_counter() + min(10, options.seconds)
            while time.perf_counter() < end:
                before.ask()
            memory = service.memory()["rss"]
            outcome = under_attack(service, kind, options.connections, options.seconds, during.ask)
            (p50, p99), (p50_during, p99_during) = _figures(before), _figures(during)
            print(
                f"| {kind} | {p50:.2f} ms | {p50_during:.2f} ms | {p99:.2f} ms | {p99_during:.2f} ms |"
                f" {p99_during / p99:.2f} | {outcome.opened} | {outcome.ended} | {memory} |"
                f" {service.memory()['peak'] - memory} |",
                flush=True,
            )
            during.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
