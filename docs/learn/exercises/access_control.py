"""Exercise: whose request is this, and may they. See docs/learn/access_control.md."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Denied(Exception):
    """The request must be answered 403."""


def client_address(peer: str, forwarded_for: str | None, trusted: Sequence[Network]) -> Address:
    """Return the client's address.

    Args:
        peer: the address at the other end of the connection.
        forwarded_for: the header ``X-Forwarded-For``, if there is one; each proxy appends the address it saw.
        trusted: the networks of our own proxies.

    Raises:
        Denied: a trusted proxy sent a header in which the client's entry is not an address.
    """
    return ip_address(forwarded_for or peer)


def is_allowed(key: str, hashes: Collection[str]) -> bool:
    """Return whether a key is one of those whose SHA-256 (hexadecimal) is stored.

    The time it takes does not depend on how much of a wrong key is right.
    """
    return key in hashes
