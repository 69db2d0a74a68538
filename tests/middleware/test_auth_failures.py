"""middleware.auth_failures: failed attempts by client address."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from middleware.auth_failures import Failures
from middleware.request_keys import CLIENT_IP
from runtime.errors import RateLimited


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _request(address: str) -> web.Request:
    request = make_mocked_request("GET", "/")
    request[CLIENT_IP] = ip_address(address)
    return request


def _refused(failures: Failures, request: web.Request) -> float | None:
    """Seconds to wait, None if the client may go on."""
    try:
        failures.check(request)
    except RateLimited as error:
        return error.retry_after
    return None


def test_half_a_minute_s_failures_at_once() -> None:
    """With 20 a minute the eleventh in a row is refused, and the wait told is the true one, to the moment."""
    clock = Clock()
    failures, client = Failures(20, clock=clock), _request("203.0.113.7")
    for _ in range(10):
        assert _refused(failures, client) is None
        failures.failed(client)
    wait = _refused(failures, client)
    assert wait == pytest.approx(6.0)
    clock.now += wait - 0.001
    assert _refused(failures, client) is not None
    clock.now += 0.002
    assert _refused(failures, client) is None


def test_never_more_than_the_limit_in_a_minute() -> None:
    """A client that tries all the time fails at most 20 times in any 60 seconds."""
    clock = Clock()
    failures, client, failed = Failures(20, clock=clock), _request("203.0.113.7"), list[float]()
    for _ in range(3000):
        clock.now += 0.1
        if _refused(failures, client) is None:
            failures.failed(client)
            failed.append(clock.now)
    assert len(failed) >= 50
    assert max(sum(start <= at < start + 60 for at in failed) for start in failed) <= 20


def test_trying_on_does_not_prolong_it() -> None:
    """Attempts while refused cost nothing more, so that nobody is kept out for ever by who tries in his name."""
    clock = Clock()
    failures, client = Failures(20, clock=clock), _request("203.0.113.7")
    for _ in range(1000):
        failures.failed(client)
    clock.now += 6.01
    assert _refused(failures, client) is None


def test_addresses_are_counted_apart() -> None:
    """One client's failures are not another's; the addresses of one IPv6 /64 are one client."""
    failures = Failures(2, clock=Clock())
    failures.failed(_request("203.0.113.7"))
    failures.failed(_request("2001:db8::1"))
    assert _refused(failures, _request("203.0.113.7")) is not None
    assert _refused(failures, _request("203.0.113.8")) is None
    assert _refused(failures, _request("2001:db8::ffff:0:1")) is not None
    assert _refused(failures, _request("2001:db8:0:1::1")) is None


def test_checking_is_not_failing() -> None:
    """Any number of good attempts leaves the count where it was."""
    failures, client = Failures(2, clock=Clock()), _request("203.0.113.7")
    for _ in range(100):
        failures.check(client)
    failures.failed(client)
    assert _refused(failures, client) is not None


def test_bounded() -> None:
    """A flood from many addresses makes the oldest forgotten, and the memory stay."""
    failures = Failures(2, clients=100, clock=Clock())
    first = _request("10.0.0.1")
    failures.failed(first)
    for number in range(100):
        failures.failed(_request(f"10.1.0.{number}"))
    assert _refused(failures, first) is None
    assert _refused(failures, _request("10.1.0.99")) is not None
