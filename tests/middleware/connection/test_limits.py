"""middleware.connection.limits: counting connections."""

from __future__ import annotations

import resource
from ipaddress import ip_address, ip_network

import pytest

from middleware.connection.limits import ConnectionLimiter, raise_fd_limit


def test_places() -> None:
    """In all, and per address, IPv6 by /64; trusted proxies and unix sockets in all only; given back, free again."""
    places = ConnectionLimiter(4, 2, [ip_network("10.0.0.1/32")])
    assert [places.take() for _ in range(5)] == [True] * 4 + [False]
    first, second = (places.assign(ip_address(f"2001:db8::{n}")) for n in (1, 2))
    assert first == second == "2001:db8::/64"
    assert places.assign(ip_address("2001:db8::3")) is None
    assert places.assign(ip_address("2001:db8:0:1::1")) is not None
    assert [places.assign(address) for address in (ip_address("10.0.0.1"), None)] == ["", ""]
    places.free(first or "")
    assert places.assign(ip_address("2001:db8::3")) == first
    assert places.take()


def test_places_leave_nothing_behind() -> None:
    """An address whose connections have all ended is forgotten."""
    places = ConnectionLimiter(1, 1, [])
    for number in range(1000):
        assert places.take()
        group = places.assign(ip_address(number + 1))
        assert group is not None
        places.free(group)
    assert (places.open, len(places.by_address)) == (0, 0)


def test_refusals_are_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """A flood costs one line a second, which counts what came since the last."""
    now = [100.0]
    places = ConnectionLimiter(0, 1, [], clock=lambda: now[0])
    for _ in range(1000):
        assert not places.take()
    now[0] += 1
    places.take()
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
