"""Parses IP networks from settings, and tests whether an address is in a set of them.

The functions are pure and do no I/O. An IPv4-mapped IPv6 address (``::ffff:a.b.c.d``, RFC 4291 section 2.5.5.2) is
treated as the IPv4 address that it contains: which of the two a socket or a header shows depends on how the listener
was opened, so mapped addresses are never compared as such.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network
from typing import overload

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_MAPPED = IPv6Network("::ffff:0:0/96")
_UNSPECIFIED = IPv6Address("::")
_MAX_SHOWN_CHARS = 80  # maximum characters of a wrong entry in an error message


def unmap(address: Address) -> Address:
    """Return the IPv4 address inside an IPv4-mapped IPv6 address, and any other address unchanged."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def unmap_network(network: Network) -> Network:
    """Return the IPv4 network of a mapped one (``::ffff:188.0.0.0/104`` is ``188.0.0.0/8``), and others unchanged."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network


@lru_cache(4096)
def address_text(address: Address) -> str:
    """Return an address as text. Recent ones are cached: formatting takes three times as long as a cache hit."""
    return str(address)


def client_group(address: Address) -> str:
    """Return the client that an address belongs to, as text: an IPv4 address itself, or an IPv6 address's /64 network.

    A /64 is the least that one subscriber gets (RFC 6177 section 2), so more addresses within it cost a client nothing.
    """
    address = unmap(address)
    if isinstance(address, IPv4Address):
        return address_text(address)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def parse_networks(entries: Iterable[str], *, strict: bool, name: str) -> tuple[Network, ...]:
    """Parse the entries of a setting into networks, in their order, with mapped ones normalised to IPv4.

    ``::/0`` and every other ``::/n`` is accepted and means IPv6 only: addresses are unmapped before they are looked up,
    so such a network never matches an IPv4 client. A network that was *written* inside the mapped block but extends
    beyond it (``::ffff:10.0.0.0/80``, ``::fffe:0:0/95``) is rejected: its author meant IPv4 and would get other
    addresses.

    Args:
        entries: one address or network each; surrounding blanks are ignored. An empty setting has no entries, so an
            empty entry is a mistake (``10.0.0.0/8,,``) and is rejected.
        strict: whether to reject host bits (``10.1.2.3/8``), as ``ipaddress.ip_network(strict=True)`` does, instead of
            clearing them.
        name: the setting's name, for the error message.

    Raises:
        ValueError: an entry is not a network; the message contains ``name`` and the entry.
    """
    networks = []
    for entry in entries:
        try:
            networks.append(_parse(entry.strip(), strict))
        except ValueError as error:
            reason = str(error)[: 2 * _MAX_SHOWN_CHARS]
            raise ValueError(f"{name}: {entry[:_MAX_SHOWN_CHARS]!r} is not a usable network: {reason}") from None
    return tuple(networks)


def _parse(text: str, strict: bool) -> Network:
    if not text:
        raise ValueError("the entry is empty")
    if "%" in text:
        raise ValueError("zones have no meaning in a network")
    if re.search(r"/0[0-9]", text):
        raise ValueError("the prefix length has a leading zero")
    # ip_network itself rejects octal-looking octets, non-ASCII digits and prefixes out of range.
    network = ip_network(text, strict=strict)
    if isinstance(network, IPv6Network) and network.prefixlen < 96 and _MAPPED.subnet_of(network):
        written = IPv6Address(text.partition("/")[0])
        if written in _MAPPED or network.network_address != _UNSPECIFIED:
            raise ValueError("it is wider than the IPv4-mapped block ::ffff:0:0/96; write the IPv4 network instead")
    return unmap_network(network)


class NetworkSet(Sequence[Network]):
    """An immutable set of networks with ``address in networks`` in logarithmic time.

    As a sequence it holds the collapsed networks (no overlaps, neighbours merged), IPv4 before IPv6, ascending. The
    lookup is one bisection over integer ranges, so 100,000 networks cost about as much as ten.

    Args:
        networks: networks in any order, which may overlap; mapped ones are normalised.
    """

    __slots__ = ("_networks", "_ranges")

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        v4: list[IPv4Network] = []
        v6: list[IPv6Network] = []
        for network in map(unmap_network, networks):
            if isinstance(network, IPv4Network):
                v4.append(network)
            else:
                v6.append(network)
        collapsed_v4, collapsed_v6 = tuple(collapse_addresses(v4)), tuple(collapse_addresses(v6))
        self._networks: tuple[Network, ...] = (*collapsed_v4, *collapsed_v6)
        self._ranges = {4: _bounds(collapsed_v4), 6: _bounds(collapsed_v6)}

    def __contains__(self, item: object) -> bool:
        """Return whether an address is in any network, or whether any other object is one of the collapsed networks."""
        if not isinstance(item, (IPv4Address, IPv6Address)):
            return item in self._networks
        address = unmap(item)
        starts, ends = self._ranges[address.version]
        value = int(address)
        index = bisect_right(starts, value) - 1
        return index >= 0 and value <= ends[index]

    def __len__(self) -> int:
        return len(self._networks)

    def __iter__(self) -> Iterator[Network]:
        return iter(self._networks)

    @overload
    def __getitem__(self, index: int) -> Network: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Network, ...]: ...
    def __getitem__(self, index: int | slice) -> Network | tuple[Network, ...]:
        return self._networks[index]

    def __repr__(self) -> str:
        return f"NetworkSet({len(self)} networks)"


def _bounds(networks: Sequence[Network]) -> tuple[Sequence[int], Sequence[int]]:
    """Return first and last addresses as integers; both ascend because collapsed networks are sorted and disjoint."""
    starts = [int(network.network_address) for network in networks]
    ends = [int(network.broadcast_address) for network in networks]
    if networks and networks[0].version == 4:  # contiguous: otherwise a long list misses the cache at every step
        return array("L", starts), array("L", ends)
    return starts, ends
