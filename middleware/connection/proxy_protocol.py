"""Parses the PROXY protocol, versions 1 and 2, with which a TCP proxy sends the client's address.

Source: haproxy's ``doc/proxy-protocol.txt``, sections 2.1, 2.2 and 2.3. Free of I/O. Where that text leaves a choice,
the stricter one is taken: datagram families, unknown families, malformed TLVs and wrong checksums are refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from runtime.networks import Address, unmap

MAX_BYTES = 4096
"""The longest version 2 header in bytes: a few hundred for addresses, the rest for TLVs such as certificate names."""

_LINE_BYTES = 107  # section 2.1: the longest version 1 line, with its CRLF
_TEXT = b"PROXY "
_BINARY = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED = 16  # signature, version and command, family, length
_LINE = re.compile(rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|TCP(?P<version>[46]) (\S+) (\S+) (\S+) (\S+))\r\n")
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")
_FAMILIES = {0x00: 0, 0x11: 4, 0x21: 16, 0x31: 108}  # unspecified, TCP over IPv4, over IPv6, unix stream: address bytes
_CRC32C = 0x03


class NotProxied(ValueError):
    """The received bytes are not a valid PROXY header. The message is fixed text, safe for a log."""


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed PROXY header.

    Args:
        length: the header's length in bytes; the bytes after it are the client's.
        source: the address of the client that connected to the proxy; None if the header has none.
        local: whether the proxy opened this connection on its own behalf, as for a health check.
    """

    length: int
    source: Address | None = None
    local: bool = False


def parse(data: bytes) -> Header | None:
    """Parse the header at the start of a connection.

    Args:
        data: all bytes received so far.

    Returns:
        None while the header is incomplete.

    Raises:
        NotProxied: the bytes are not the start of a valid header.
    """
    if data.startswith(_BINARY):
        return _binary(data)
    if data.startswith(_TEXT):
        return _text(data)
    if not data or _BINARY.startswith(data) or _TEXT.startswith(data):
        return None
    raise NotProxied("no PROXY header")


def _text(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, _LINE_BYTES)
    if end < 0:
        if len(data) >= _LINE_BYTES:
            raise NotProxied("a version 1 line that is too long")
        return None
    line = _LINE.fullmatch(data[: end + 2])
    if line is None:
        raise NotProxied("a malformed version 1 line")
    if line["version"] is None:
        return Header(end + 2)
    version, *addresses, source_port, port = line.groups()
    source, _ = (_address(field, version) for field in addresses)
    if not all(_PORT.fullmatch(number) and int(number) <= 65_535 for number in (source_port, port)):
        raise NotProxied("a malformed port")
    return Header(end + 2, source)


def _address(text: bytes, version: bytes) -> Address:
    try:
        address = ip_address(text.decode("ascii"))
    except ValueError:  # includes UnicodeDecodeError
        raise NotProxied("a malformed address") from None
    if address.version != int(version) or getattr(address, "scope_id", None):
        raise NotProxied("an address of another family, or with a zone")
    return unmap(address)


def _binary(data: bytes) -> Header | None:
    if len(data) < _FIXED:
        return None
    command, family, length = data[12], data[13], int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21):
        raise NotProxied("an unknown version or command")
    if length > MAX_BYTES - _FIXED:
        raise NotProxied("a version 2 header that is too long")
    end = _FIXED + length
    if len(data) < end:
        return None
    if command == 0x20:  # LOCAL: the address block must be skipped
        return Header(end, local=True)
    size = _FAMILIES.get(family)
    if size is None or length < 2 * size + (4 if size in (4, 16) else 0):
        raise NotProxied("an unknown family, or a block too short for it")
    if family == 0x00:  # UNSPEC: the address block must be skipped
        return Header(end)
    _check_tlvs(data[:end], _FIXED + 2 * size + (4 if size < 108 else 0))
    raw = data[_FIXED : _FIXED + size]
    if size == 4:
        return Header(end, IPv4Address(raw))
    return Header(end, unmap(IPv6Address(raw)) if size == 16 else None)


def _check_tlvs(header: bytes, position: int) -> None:
    """Walk the TLVs, and verify the CRC32c if there is one (section 2.2.3)."""
    while position < len(header):
        if position + 3 > len(header):
            raise NotProxied("a TLV that is cut off")
        kind, size = header[position], int.from_bytes(header[position + 1 : position + 3], "big")
        value, position = position + 3, position + 3 + size
        if position > len(header):
            raise NotProxied("a TLV that is cut off")
        if kind == _CRC32C:
            expected = header[value:position]
            actual = crc32c(header[:value] + bytes(size) + header[position:])
            if size != 4 or int.from_bytes(expected, "big") != actual:
                raise NotProxied("a wrong checksum")


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli; RFC 9260 appendix A), byte by byte: headers are few and a few hundred bytes."""
    table, value = _table(), 0xFFFF_FFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFF_FFFF


@functools.cache
def _table() -> Sequence[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F6_3B78 if value & 1 else value >> 1
        table.append(value)
    return tuple(table)
