"""Judges the client's address with a truth table, and the check of keys."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address, ip_network
from types import ModuleType

_TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def _is(exercise: ModuleType, peer: str, header: str | None, expected: str) -> None:
    found = exercise.client_address(peer, header, _TRUSTED)
    assert found == ip_address(expected), f"{peer}, {header!r}: {found} instead of {expected}"


def check_direct(exercise: ModuleType) -> None:
    """Without a proxy the peer is the client."""
    _is(exercise, "203.0.113.9", None, "203.0.113.9")


def check_forged(exercise: ModuleType) -> None:
    """The header of a peer that is no proxy of ours is ignored: anyone can send one."""
    _is(exercise, "203.0.113.9", "127.0.0.1", "203.0.113.9")


def check_proxy(exercise: ModuleType) -> None:
    """Behind a proxy the client is in the header."""
    _is(exercise, "10.0.0.1", "203.0.113.9", "203.0.113.9")


def check_walk(exercise: ModuleType) -> None:
    """Entries are read from the right, past our proxies: what stands further left was sent by the client itself."""
    _is(exercise, "10.0.0.1", "127.0.0.1, 203.0.113.9, 10.0.0.2", "203.0.113.9")
    _is(exercise, "fd00::1", "127.0.0.1,2001:db8::5", "2001:db8::5")


def check_all_trusted(exercise: ModuleType) -> None:
    """If all are proxies, the leftmost is the client; without a header it is the peer."""
    _is(exercise, "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3")
    _is(exercise, "10.0.0.1", None, "10.0.0.1")
    _is(exercise, "10.0.0.1", " ", "10.0.0.1")


def check_mapped(exercise: ModuleType) -> None:
    """An IPv4 address in IPv6 clothes is the IPv4 address, also of a proxy."""
    _is(exercise, "::ffff:10.0.0.1", "::ffff:203.0.113.9", "203.0.113.9")


def check_unreadable(exercise: ModuleType) -> None:
    """An entry that must be read and is no address is denied, and not replaced by the proxy's own address."""
    for header in ("unknown", "203.0.113.9, ", "203.0.113.9, 010.0.0.1"):
        try:
            found = exercise.client_address("10.0.0.1", header, _TRUSTED)
        except exercise.Denied:
            continue
        raise AssertionError(f"{header!r} is {found}")


def check_not_read(exercise: ModuleType) -> None:
    """What stands left of the client may be anything."""
    _is(exercise, "10.0.0.1", "nonsense, 203.0.113.9", "203.0.113.9")


def check_keys(exercise: ModuleType) -> None:
    """A key is recognized by its hash; a hash is no key."""
    stored = {hashlib.sha256(key.encode()).hexdigest() for key in ("one", "two")}
    assert exercise.is_allowed("one", stored)
    assert exercise.is_allowed("two", stored)
    assert not exercise.is_allowed("three", stored)
    assert not exercise.is_allowed(next(iter(stored)), stored)
    assert not exercise.is_allowed("\u00e9", stored)
