"""Hundreds of clients that send or read as slowly as they may, while an honest one goes on asking."""

from __future__ import annotations

import os
import select
import time

import pytest

from loadtests.service import Service
from loadtests.slowloris_bench import ADDRESSES, KINDS, Healthy, under_attack
from tests.attacks.conftest import Start
from tests.attacks.raw import PATIENCE, connect, exchange
from tests.support.soak import soak

CONNECTIONS = 500
# A refused body is closed two seconds after its answer.
SECONDS = {"headers": soak(8, 4), "bodies": soak(8, 7), "readers": soak(8, 4)}
_MOST_GROWTH = 150  # MB, for 500 connections; what hoards answers or connections needs far more
_ASK = b"GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """Deadlines so short that a test sees them pass several times."""
    return start(HEADER_TIMEOUT_SECONDS="1", BODY_TIMEOUT_SECONDS="1", KEEPALIVE_SECONDS="2")


def _sockets(service: Service) -> int:
    """Connections that the service holds."""
    folder = f"/proc/{service.process.pid}/fd"
    count = 0
    for descriptor in os.listdir(folder):
        try:
            count += os.readlink(f"{folder}/{descriptor}").startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            continue
    return count


def _settled(service: Service, sockets: int) -> bool:
    end = time.monotonic() + PATIENCE
    while _sockets(service) > sockets and time.monotonic() < end:
        time.sleep(0.05)
    return _sockets(service) <= sockets


@pytest.mark.parametrize("kind", KINDS)
def test_slow_clients_harm_nobody(service: Service, kind: str) -> None:
    """Every honest request is answered; the attackers' memory is bounded; afterwards nothing of them is left.

    Who drips headers or bodies is put out, though no single byte of theirs is late.
    """
    assert exchange(service.port, _ASK).statuses == [200]
    assert _settled(service, 8)
    sockets, memory = _sockets(service), service.memory()["rss"]
    healthy = Healthy(service.port)
    outcome = under_attack(service, kind, CONNECTIONS, SECONDS[kind], healthy.ask)
    healthy.close()
    assert set(healthy.statuses) == {200}
    assert len(healthy.seconds) > 10  # how many depends on the machine
    assert outcome.opened >= CONNECTIONS
    if kind != "readers":
        assert outcome.ended >= CONNECTIONS
    assert service.memory()["peak"] - memory < _MOST_GROWTH
    assert _settled(service, sockets)
    assert exchange(service.port, _ASK).statuses == [200]


def test_one_address_cannot_take_all_connections(start: Start) -> None:
    """Beyond MAX_CONNECTIONS_PER_ADDRESS they are closed at once; other addresses go on, and so does this one later."""
    service = start(MAX_CONNECTIONS_PER_ADDRESS="20", HEADER_TIMEOUT_SECONDS="60")
    greedy = [connect(service.port, ADDRESSES[0]) for _ in range(60)]
    try:
        end = time.monotonic() + PATIENCE
        while len(closed := select.select(greedy, [], [], 0.1)[0]) < 40 and time.monotonic() < end:
            time.sleep(0.05)
        assert len(closed) == 40
        assert exchange(service.port, _ASK, source=ADDRESSES[1]).statuses == [200]
        greedy[0].sendall(_ASK)  # who was let in is served
        assert greedy[0].recv(12) == b"HTTP/1.1 200"
    finally:
        for client in greedy:
            client.close()
    assert _settled(service, 8)
    assert exchange(service.port, _ASK, source=ADDRESSES[0]).statuses == [200]
