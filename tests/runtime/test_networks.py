"""runtime.networks: what a setting may say, and what an address is looked up in."""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import networks
from runtime.networks import Address, Network, NetworkSet, client_group, parse_networks, unmap, unmap_network


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("10.0.0.0/8", "10.0.0.0/8", id="plain"),
        pytest.param("10.1.2.3", "10.1.2.3/32", id="an address is a network of one"),
        pytest.param("2001:db8::1", "2001:db8::1/128", id="a v6 address is a network of one"),
        pytest.param("2001:DB8::/32", "2001:db8::/32", id="case of hex digits"),
        pytest.param(" 10.0.0.0/8\t", "10.0.0.0/8", id="blanks around"),
        pytest.param("10.0.0.0/255.0.0.0", "10.0.0.0/8", id="netmask as Python reads it"),
        pytest.param("0.0.0.0/0", "0.0.0.0/0", id="all of v4"),
        pytest.param("::/0", "::/0", id="all of v6"),
        pytest.param("::/64", "::/64", id="v6 that covers the mapped block but says so of v6"),
        pytest.param("::ffff:188.0.0.0/104", "188.0.0.0/8", id="mapped network"),
        pytest.param("::ffff:bc00:0/104", "188.0.0.0/8", id="mapped network in hex"),
        pytest.param("::ffff:0:0/96", "0.0.0.0/0", id="the whole mapped block"),
        pytest.param("::ffff:1.2.3.4", "1.2.3.4/32", id="mapped address"),
        pytest.param("::1.2.3.4/128", "::102:304/128", id="v4-compatible is not mapped"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_parse_accepts(text: str, expected: str, strict: bool) -> None:
    """A network without host bits parses the same under both settings, mapped ones to IPv4."""
    assert parse_networks([text], strict=strict, name="X") == (ip_network(expected),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::1/64", "::/64"),
        ("::ffff:188.1.2.3/104", "188.0.0.0/8"),
    ],
)
def test_host_bits(text: str, expected: str) -> None:
    """Host bits are cut off where the setting allows them and stop the start where it does not."""
    assert parse_networks([text], strict=False, name="ALLOWED_IPS") == (ip_network(expected),)
    with pytest.raises(ValueError, match=r"TRUSTED_PROXIES.*host bits"):
        parse_networks([text], strict=True, name="TRUSTED_PROXIES")


@pytest.mark.parametrize(
    "text",
    [
        "localhost",
        "*",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/8/8",
        "10.0.0.0/ 8",
        "10.0.0.0/08",
        "10.0.0/8",
        "010.0.0.0/8",
        "0x0a.0.0.0/8",
        "2130706433",
        "\u0661\u0660.0.0.0/8",
        "10.0.0.0/\u0668",
        "10.0.0.0-10.0.0.255",
        "10.0.0.1:80",
        "[2001:db8::]/32",
        "2001:db8::/129",
        "fe80::1%eth0",
        "fe80::%eth0/64",
        "fe80::%25eth0/64",
        "::ffff:0:0/95",
        "::ffff:10.0.0.0/80",
        "::ffff:10.0.0.0/0",
        "::fffe:0:0/95",
        "::ffff:010.0.0.0/104",
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_parse_refuses(text: str, strict: bool) -> None:
    """What is no network, has a zone, looks octal or is wider than the mapped block: named and shown."""
    with pytest.raises(ValueError, match="ALLOWED_IPS") as caught:
        parse_networks(["10.0.0.0/8", text], strict=strict, name="ALLOWED_IPS")
    assert str(caught.value).startswith("ALLOWED_IPS: ")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_parse_refuses_an_empty_entry(text: str) -> None:
    """No entries are no networks; an empty entry among them is a slip."""
    assert parse_networks([], strict=True, name="X") == ()
    with pytest.raises(ValueError, match=r"X: .* the entry is empty"):
        parse_networks([text], strict=True, name="X")


def test_parse_error_is_one_short_line() -> None:
    """Whatever the entry holds, the message stays short and on one line."""
    with pytest.raises(ValueError, match="evil") as caught:
        parse_networks(["\r\nevil: " + "x" * 100_000], strict=True, name="X")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::ffff:1.2.3.4%eth0", "1.2.3.4"),
        ("::ffff:0:0", "0.0.0.0"),
        ("1.2.3.4", "1.2.3.4"),
        ("::1.2.3.4", "::1.2.3.4"),
        ("64:ff9b::1.2.3.4", "64:ff9b::1.2.3.4"),
    ],
)
def test_unmap(text: str, expected: str) -> None:
    """Only ::ffff:0:0/96 is unmapped; compatible and translated addresses are IPv6."""
    assert unmap(ip_address(text)) == ip_address(expected)


def test_set_is_a_collapsed_sequence() -> None:
    """Overlaps vanish, neighbours merge, order is IPv4 then IPv6, ascending; the set cannot be written to."""
    found = NetworkSet(
        parse_networks(
            ["::1", "10.128.0.0/9", "10.0.0.0/9", "10.1.0.0/16", "::ffff:9.0.0.0/104"], strict=True, name="X"
        )
    )
    assert list(found) == [ip_network("9.0.0.0/8"), ip_network("10.0.0.0/8"), ip_network("::1")]
    assert len(found) == 3
    assert found[0] == ip_network("9.0.0.0/8")
    assert found[1:] == (ip_network("10.0.0.0/8"), ip_network("::1"))
    assert found[0] in found
    assert "10.0.0.1" not in found
    with pytest.raises((AttributeError, TypeError)):
        found[0] = ip_network("0.0.0.0/0")  # type: ignore[index]


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("9.255.255.255", False),
        ("11.0.0.0", False),
        ("0.0.0.0", False),
        ("255.255.255.255", False),
        ("::ffff:10.1.1.1", True),
        ("::ffff:11.1.1.1", False),
        ("::10.1.1.1", False),
        ("2001:db8::", True),
        ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", True),
        ("2001:db9::", False),
        ("2001:db8::1%eth0", True),
    ],
)
def test_lookup(address: str, inside: bool) -> None:
    """Both ends of a range are inside, mapped addresses are looked up as IPv4, a zone plays no part."""
    found = NetworkSet([IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/32")])
    assert (ip_address(address) in found) is inside


def test_families_do_not_mix() -> None:
    """::/0 is all of IPv6 and none of IPv4, in either notation; 0.0.0.0/0 the reverse. An empty set holds none."""
    v6, v4 = NetworkSet([IPv6Network("::/0")]), NetworkSet([IPv4Network("0.0.0.0/0")])
    for text, places in (("1.2.3.4", [v4]), ("::ffff:1.2.3.4", [v4]), ("::1", [v6])):
        assert [found for found in (v4, v6, NetworkSet()) if ip_address(text) in found] == places


def test_a_set_of_raw_mapped_networks() -> None:
    """Networks that did not come through parse_networks are normalised too."""
    assert ip_address("188.1.2.3") in NetworkSet([IPv6Network("::ffff:188.0.0.0/104")])


_V4 = st.builds(lambda value, prefix: IPv4Network((value >> (32 - prefix) << (32 - prefix), prefix)),
                st.integers(0, 2**32 - 1), st.integers(0, 32))  # fmt: skip
_V6 = st.builds(lambda value, prefix: IPv6Network((value >> (128 - prefix) << (128 - prefix), prefix)),
                st.integers(0, 2**128 - 1), st.integers(0, 128))  # fmt: skip


@settings(max_examples=300)
@given(networks=st.lists(st.one_of(_V4, _V6), max_size=12), data=st.data())
def test_lookup_equals_a_linear_scan(networks: list[Network], data: st.DataObject) -> None:
    """The bisection answers as a scan does, right at and beside every edge."""
    addresses: list[Address] = []
    for network in networks:
        first, last = int(network.network_address), int(network.broadcast_address)
        kind = type(network.network_address)
        addresses += [kind(v) for v in (first - 1, first, last, last + 1) if 0 <= v < 2**network.max_prefixlen]
    addresses.append(data.draw(st.ip_addresses()))
    found = NetworkSet(networks)
    for address in addresses:
        assert (unmap(address) in found) == any(unmap(address) in network for network in map(unmap_network, networks))


def test_lookup_is_one_bisection_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 networks cost one bisection, as one network does."""
    calls = 0

    def counted(*args: Any) -> int:
        nonlocal calls
        calls += 1
        return bisect_right(*args)

    found = NetworkSet(IPv4Network((index << 12, 24)) for index in range(100_000))
    assert len(found) == 100_000
    monkeypatch.setattr(networks, "bisect_right", counted)
    assert ip_address(99_999 << 12) in found
    assert ip_address((99_999 << 12) + 256) not in found
    assert calls == 2


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_client_group(address: str, group: str) -> None:
    """Who has one IPv6 address has its whole /64; an IPv4 address, mapped or not, is one client."""
    assert client_group(ip_address(address)) == group
