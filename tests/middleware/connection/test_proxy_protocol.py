"""middleware.connection.proxy_protocol: truth tables after haproxy's text, and anything at all after them."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from middleware.connection.proxy_protocol import MAX_BYTES, Header, NotProxied, crc32c, parse
from runtime.networks import Address
from tests.support.soak import soak

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4 = bytes([198, 51, 100, 7, 192, 0, 2, 1]) + struct.pack("!HH", 50_000, 443)
V6 = IPv6Address("2001:db8::7").packed + IPv6Address("2001:db8::1").packed + struct.pack("!HH", 50_000, 443)
MAPPED = IPv6Address("::ffff:198.51.100.7").packed + IPv6Address("2001:db8::1").packed + bytes(4)
CLIENT = IPv4Address("198.51.100.7")


def binary(command: int, family: int, block: bytes, length: int | None = None) -> bytes:
    """A version 2 header."""
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(block) if length is None else length) + block


def tlv(kind: int, value: bytes) -> bytes:
    """One TLV."""
    return bytes([kind]) + struct.pack("!H", len(value)) + value


def summed(block: bytes, *, wrong: int = 0) -> bytes:
    """A header whose last TLV is its CRC32c."""
    empty = binary(0x21, 0x11, block + tlv(3, bytes(4)))
    return empty[:-4] + (crc32c(empty) ^ wrong).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("data", "source"),
    [
        (b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443\r\n", CLIENT),
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", IPv4Address("255.255.255.255")),
        (b"PROXY TCP4 198.51.100.7 192.0.2.1 0 0\r\n", CLIENT),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n", IPv6Address("2001:db8::7")),
        (b"PROXY TCP6 ::ffff:198.51.100.7 2001:db8::1 50000 443\r\n", CLIENT),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
        (binary(0x21, 0x11, V4), CLIENT),
        (binary(0x21, 0x21, V6), IPv6Address("2001:db8::7")),
        (binary(0x21, 0x21, MAPPED), CLIENT),
        (binary(0x21, 0x31, bytes(216)), None),
        (binary(0x21, 0x00, b""), None),
        (binary(0x21, 0x00, b"anything"), None),
        (binary(0x21, 0x11, V4 + tlv(1, b"h2") + tlv(4, bytes(9))), CLIENT),
        (summed(V4), CLIENT),
        (summed(V4 + tlv(2, b"example.com")), CLIENT),
    ],
)
def test_who(data: bytes, source: Address | None) -> None:
    """The source is read, the rest of the header skipped, and what follows is left alone."""
    assert parse(data + b"GET / HTTP/1.1\r\n") == Header(len(data), source)
    for end in range(len(data)):
        assert parse(data[:end]) is None


@pytest.mark.parametrize("data", [binary(0x20, 0x00, b""), binary(0x20, 0x11, V4), binary(0x20, 0xFF, b"anything")])
def test_local(data: bytes) -> None:
    """The proxy's own connection; the block behind it says nothing, whatever it says."""
    assert parse(data) == Header(len(data), None, local=True)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"proxy TCP4",
        b"PROXI",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443\n\r\n",
        b"PROXY  TCP4 198.51.100.7 192.0.2.1 50000 443\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 50000 443 \r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 50000\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 50000 443\r\n",
        b"PROXY TCP6 198.51.100.7 192.0.2.1 50000 443\r\n",
        b"PROXY TCP4 198.51.100.07 192.0.2.1 50000 443\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.256 50000 443\r\n",
        b"PROXY TCP6 fe80::1%lo 2001:db8::1 50000 443\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 65536 443\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 050 443\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 -1 443\r\n",
        b"PROXY TCP4 \xff 192.0.2.1 1 443\r\n",
        b"PROXY UDP4 198.51.100.7 192.0.2.1 50000 443\r\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY \r\n",
        b"PROXY UNKNOWN " + b"a" * 107,
        SIGNATURE[:-1] + b"\r",
        binary(0x11, 0x11, V4),
        binary(0x31, 0x11, V4),
        binary(0x22, 0x11, V4),
        binary(0x21, 0x12, V4),
        binary(0x21, 0x22, V6),
        binary(0x21, 0x41, V4),
        binary(0x21, 0x11, V4[:-1]),
        binary(0x21, 0x21, V4),
        binary(0x21, 0x31, bytes(215)),
        binary(0x21, 0x11, b"", MAX_BYTES),
        binary(0x21, 0x11, V4 + b"\x01\x00"),
        binary(0x21, 0x11, V4 + b"\x01\x00\x05abcd"),
        binary(0x21, 0x11, V4 + tlv(3, b"abc")),
        summed(V4, wrong=1),
    ],
)
def test_not_proxied(data: bytes) -> None:
    """What is no such header, or one that another reader might read otherwise, is refused; bytes are not repeated."""
    with pytest.raises(NotProxied) as caught:
        parse(data)
    assert str(caught.value).isascii()
    assert "198" not in str(caught.value)


def test_crc32c() -> None:
    """The check value of CRC-32C, and RFC 3720 appendix B.4's."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E


heads = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=120).map(b"PROXY ".__add__),
    st.binary(max_size=120).map(lambda rest: b"PROXY TCP4 " + rest + b"\r\n"),
    st.binary(max_size=260).map(SIGNATURE.__add__),
    st.builds(
        binary,
        st.sampled_from([0x20, 0x21]),
        st.sampled_from([0x00, 0x11, 0x21, 0x31]),
        st.binary(max_size=260),
        st.none() | st.integers(0, 65_535),
    ),
)


@settings(max_examples=soak(10_000))
@given(heads)
def test_anything(data: bytes) -> None:
    """Any bytes end in a header, a wish for more, or the one error; in whichever pieces they come, with one answer."""
    try:
        header = parse(data)
    except NotProxied:
        return
    if header is None:
        assert len(data) < MAX_BYTES
        return
    assert 0 < header.length <= len(data)
    assert parse(data[: header.length]) == header
    assert parse(data[: header.length - 1]) is parse(data[: header.length // 2]) is None


@settings(max_examples=soak(1_000))
@given(st.ip_addresses(v=4), st.ip_addresses(v=6), st.integers(0, 65_535))
def test_round_trip(v4: IPv4Address, v6: IPv6Address, port: int) -> None:
    """Every address that can be written is the address that is read, in both versions."""
    for address, name, family in ((v4, "TCP4", 0x11), (v6, "TCP6", 0x21)):
        line = parse(f"PROXY {name} {address} {address} {port} {port}\r\n".encode())
        block = parse(binary(0x21, family, address.packed * 2 + struct.pack("!HH", port, port)))
        assert line is not None
        assert block is not None
        expected = getattr(ip_address(address), "ipv4_mapped", None) or address
        assert line.source == block.source == expected
