"""middleware.connection.limits: counting connections."""

from __future__ import annotations

import resource
from ipaddress import ip_address, ip_network

import pytest

from middleware.connection.limits import ConnectionLimiter, raise_fd_limit


def test_slots() -> None:
    """In all, and per address, IPv6 by /64; trusted proxies and unix sockets in all only; given back, free again."""
    limiter = ConnectionLimiter(4, 2, [ip_network("10.0.0.1/32")])
    assert [limiter.acquire() for _ in range(5)] == [True] * 4 + [False]
    first, second = (limiter.assign(ip_address(f"2001:db8::{n}")) for n in (1, 2))
    assert first == second == "2001:db8::/64"
    assert limiter.assign(ip_address("2001:db8::3")) is None
    assert limiter.assign(ip_address("2001:db8:0:1::1")) is not None
    assert [limiter.assign(address) for address in (ip_address("10.0.0.1"), None)] == ["", ""]
    limiter.release(first or "")
    assert limiter.assign(ip_address("2001:db8::3")) == first
    assert limiter.acquire()


def test_addresses_without_connections_are_forgotten() -> None:
    """An address whose connections have all ended is forgotten."""
    limiter = ConnectionLimiter(1, 1, [])
    for number in range(1000):
        assert limiter.acquire()
        group = limiter.assign(ip_address(number + 1))
        assert group is not None
        limiter.release(group)
    assert (limiter.open, len(limiter.by_address)) == (0, 0)


def test_refusals_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """A flood costs one line a second, which counts what came since the last."""
    now = [100.0]
    limiter = ConnectionLimiter(0, 1, [], clock=lambda: now[0])
    for _ in range(1000):
        assert not limiter.acquire()
    now[0] += 1
    limiter.acquire()
    assert [record.getMessage() for record in caplog.records] == [
        "connections refused: 1 (MAX_CONNECTIONS)",
        "connections refused: 1000 (MAX_CONNECTIONS)",
    ]


def test_open_files() -> None:
    """The process may open as many files as the connections need, and a lower limit is not an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 400), hard))
        raise_fd_limit(200)
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised == 456
        raise_fd_limit(10)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == raised
        raise_fd_limit(2**40)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
