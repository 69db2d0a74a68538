"""middleware.client_ip: a truth table for resolve, properties of it over generated input, and the middleware itself."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import ClientSession, UnixConnector, web
from aiohttp.test_utils import TestClient, make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from middleware.client_ip import client_ip_middleware, peer_of, resolve
from middleware.forwarded_header import Source
from middleware.request_keys import CLIENT_IP, PEER_TRUSTED
from runtime.errors import ClientAddressDenied
from runtime.networks import NetworkSet, parse_networks, unmap
from tests.support.soak import soak

TRUSTED = parse_networks(["10.0.0.0/8", "2001:db8:aaaa::/48", "fe80::/10"], strict=True, name="TRUSTED_PROXIES")
PROXY = "10.0.0.1"
DENIED = None

XFF: Source = "x-forwarded-for"
REAL: Source = "x-real-ip"
FWD: Source = "forwarded"

# (id, peer, header lines, source, the client or DENIED); a line is of the source's header unless written (name, value)
Line = str | tuple[str, str]
Case = tuple[str, str | None, list[Line], Source, str | None]
CASES: list[Case] = [
    # Rule 1: a peer outside the trusted proxies is the client, whatever it sends.
    ("direct", "9.9.9.9", [], XFF, "9.9.9.9"),
    ("direct v6", "2001:db8::9", [], XFF, "2001:db8::9"),
    ("direct spoofs", "9.9.9.9", ["1.1.1.1"], XFF, "9.9.9.9"),
    ("direct spoofs loopback", "9.9.9.9", ["127.0.0.1"], XFF, "9.9.9.9"),
    ("direct spoofs a proxy", "9.9.9.9", ["1.1.1.1, 10.0.0.2"], XFF, "9.9.9.9"),
    ("direct spoofs x-real-ip twice", "9.9.9.9", ["1.1.1.1", "2.2.2.2"], REAL, "9.9.9.9"),
    ("direct sends garbage", "9.9.9.9", ['for="'], FWD, "9.9.9.9"),
    ("direct mapped peer", "::ffff:9.9.9.9", ["1.1.1.1"], XFF, "9.9.9.9"),
    ("direct peer with zone", "fd00::1%eth0", [], XFF, "fd00::1"),
    # A peer that is no definite address is nobody.
    ("peer is a name", "localhost", [], XFF, DENIED),
    ("peer is a path", "/run/x.sock", [], XFF, DENIED),
    ("peer unspecified", "0.0.0.0", [], XFF, DENIED),
    ("peer with odd zone", "fe80::1%a b", [], XFF, DENIED),
    # Rule 2: from the right, the first that is not a proxy.
    ("one entry", PROXY, ["1.1.1.1"], XFF, "1.1.1.1"),
    ("one v6 entry", PROXY, ["2001:db8::1"], XFF, "2001:db8::1"),
    ("v6 proxy", "2001:db8:aaaa::1", ["1.1.1.1"], XFF, "1.1.1.1"),
    ("mapped proxy", "::ffff:10.0.0.1", ["1.1.1.1"], XFF, "1.1.1.1"),
    ("proxy with zone", "fe80::1%eth0", ["1.1.1.1"], XFF, "1.1.1.1"),
    ("spoofed left", PROXY, ["6.6.6.6, 1.1.1.1"], XFF, "1.1.1.1"),
    ("spoofed loopback left", PROXY, ["127.0.0.1, 1.1.1.1"], XFF, "1.1.1.1"),
    ("spoofed proxy left", PROXY, ["10.0.0.9, 1.1.1.1"], XFF, "1.1.1.1"),
    ("two proxies", PROXY, ["6.6.6.6, 1.1.1.1, 10.0.0.2"], XFF, "1.1.1.1"),
    ("proxies of both families", PROXY, ["1.1.1.1, 2001:db8:aaaa::5, 10.9.9.9"], XFF, "1.1.1.1"),
    ("untrusted between proxies", PROXY, ["10.0.0.3, 1.1.1.1, 10.0.0.2"], XFF, "1.1.1.1"),
    ("all trusted, leftmost", PROXY, ["10.0.0.3, 10.0.0.2"], XFF, "10.0.0.3"),
    ("all trusted, one", PROXY, ["10.0.0.3"], XFF, "10.0.0.3"),
    ("no blanks", PROXY, ["6.6.6.6,1.1.1.1,10.0.0.2"], XFF, "1.1.1.1"),
    ("tabs and blanks", PROXY, [" 6.6.6.6 ,\t1.1.1.1\t,  10.0.0.2 "], XFF, "1.1.1.1"),
    # Rule 2: the lines are one list, in order (RFC 9110 section 5.3).
    ("two lines", PROXY, ["6.6.6.6", "1.1.1.1"], XFF, "1.1.1.1"),
    ("two lines, proxy last", PROXY, ["6.6.6.6, 1.1.1.1", "10.0.0.2"], XFF, "1.1.1.1"),
    ("name in any case", PROXY, [("X-FORWARDED-FOR", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")], XFF, "1.1.1.1"),
    ("blank line first", PROXY, ["", "1.1.1.1"], XFF, "1.1.1.1"),
    ("blank line last", PROXY, ["1.1.1.1", ""], XFF, DENIED),
    ("only blank lines are empty entries", PROXY, ["", ""], XFF, DENIED),
    # Rule 2: absent or blank is the peer.
    ("absent", PROXY, [], XFF, PROXY),
    ("blank", PROXY, [""], XFF, PROXY),
    ("blank with blanks", PROXY, [" \t "], XFF, PROXY),
    ("absent x-real-ip", PROXY, [], REAL, PROXY),
    ("blank x-real-ip", PROXY, [" "], REAL, PROXY),
    ("absent forwarded", PROXY, [], FWD, PROXY),
    ("blank forwarded", PROXY, [""], FWD, PROXY),
    ("absent, mapped peer", "::ffff:10.0.0.1", [], XFF, PROXY),
    # Rule 2: no fallback from one header to another, nor to a look-alike.
    ("other header", PROXY, [("x-real-ip", "1.1.1.1"), ("forwarded", "for=1.1.1.1")], XFF, PROXY),
    ("other header beside", PROXY, [("x-real-ip", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")], XFF, "1.1.1.1"),
    ("other header, denied one", PROXY, [("x-real-ip", "1.1.1.1"), ("x-forwarded-for", "unknown")], XFF, DENIED),
    ("underscores", PROXY, [("x_forwarded_for", "6.6.6.6")], XFF, PROXY),
    # Rule 2: x-real-ip is exactly one address.
    ("x-real-ip", PROXY, ["1.1.1.1"], REAL, "1.1.1.1"),
    ("x-real-ip v6 and port", PROXY, ["[2001:db8::1]:443"], REAL, "2001:db8::1"),
    ("x-real-ip mapped", PROXY, ["::ffff:1.1.1.1"], REAL, "1.1.1.1"),
    ("x-real-ip is a proxy", PROXY, ["10.0.0.9"], REAL, "10.0.0.9"),
    ("x-real-ip twice", PROXY, ["1.1.1.1", "1.1.1.1"], REAL, DENIED),
    ("x-real-ip twice, one blank", PROXY, ["1.1.1.1", ""], REAL, DENIED),
    ("x-real-ip list", PROXY, ["1.1.1.1, 2.2.2.2"], REAL, DENIED),
    ("x-real-ip unknown", PROXY, ["unknown"], REAL, DENIED),
    # Rule 3: what must be read must be definite.
    ("unknown", PROXY, ["unknown"], XFF, DENIED),
    ("unknown behind a client", PROXY, ["1.1.1.1, unknown"], XFF, DENIED),
    ("unknown behind a proxy", PROXY, ["1.1.1.1, unknown, 10.0.0.2"], XFF, DENIED),
    ("obfuscated", PROXY, ["_hidden"], XFF, DENIED),
    ("empty entry right", PROXY, ["1.1.1.1,"], XFF, DENIED),
    ("empty entry between", PROXY, ["1.1.1.1,,10.0.0.2"], XFF, DENIED),
    ("empty entry before a proxy at left", PROXY, [", 10.0.0.2"], XFF, DENIED),
    ("only commas", PROXY, [",,,"], XFF, DENIED),
    ("unspecified", PROXY, ["0.0.0.0"], XFF, DENIED),
    ("unspecified v6", PROXY, ["::"], XFF, DENIED),
    ("unspecified mapped", PROXY, ["::ffff:0.0.0.0"], XFF, DENIED),
    ("unspecified with port", PROXY, ["[::]:80"], XFF, DENIED),
    ("name", PROXY, ["localhost"], XFF, DENIED),
    ("network", PROXY, ["1.1.1.0/24"], XFF, DENIED),
    ("url", PROXY, ["http://1.1.1.1"], XFF, DENIED),
    ("two addresses, no comma", PROXY, ["6.6.6.6 1.1.1.1"], XFF, DENIED),
    ("semicolons", PROXY, ["6.6.6.6;1.1.1.1"], XFF, DENIED),
    ("quotes in x-forwarded-for", PROXY, ['"1.1.1.1"'], XFF, DENIED),
    ("forwarded syntax in x-forwarded-for", PROXY, ["for=1.1.1.1"], XFF, DENIED),
    # Rule 3, the other side: what need not be read is not.
    ("garbage left of the client", PROXY, ['\x00"<script>, _x,,unknown, 1.1.1.1'], XFF, "1.1.1.1"),
    ("empty entry left of the client", PROXY, ["6.6.6.6,,1.1.1.1"], XFF, "1.1.1.1"),
    ("huge left", PROXY, ["6.6.6.6," * 200_000 + "1.1.1.1"], XFF, "1.1.1.1"),
    ("huge left of commas", PROXY, ["," * 1_000_000 + "1.1.1.1"], XFF, "1.1.1.1"),
    # A chain of proxies far longer than any real one is refused rather than read to its end.
    ("long chain of proxies", PROXY, ["1.1.1.1" + ",10.0.0.2" * 500], XFF, "1.1.1.1"),
    ("endless chain of proxies", PROXY, ["1.1.1.1" + ",10.0.0.2" * 5_000], XFF, DENIED),
    # Rule 4: mapped addresses, ports, zones.
    ("mapped client", PROXY, ["::ffff:1.1.1.1"], XFF, "1.1.1.1"),
    ("mapped client in hex", PROXY, ["::ffff:101:101"], XFF, "1.1.1.1"),
    ("mapped client written out", PROXY, ["0:0:0:0:0:FFFF:1.1.1.1"], XFF, "1.1.1.1"),
    ("mapped proxy in the list", PROXY, ["1.1.1.1, ::ffff:10.0.0.2"], XFF, "1.1.1.1"),
    ("mapped, brackets and port", PROXY, ["[::ffff:1.1.1.1]:80"], XFF, "1.1.1.1"),
    ("compatible is not mapped", PROXY, ["::1.1.1.1"], XFF, "::1.1.1.1"),
    ("compatible is no proxy", PROXY, ["1.1.1.1, ::10.0.0.2"], XFF, "::10.0.0.2"),
    ("v4 port", PROXY, ["1.1.1.1:8080"], XFF, "1.1.1.1"),
    ("v4 port, behind a proxy's", PROXY, ["1.1.1.1:8080, 10.0.0.2:9"], XFF, "1.1.1.1"),
    ("v6 brackets", PROXY, ["[2001:db8::1]"], XFF, "2001:db8::1"),
    ("v6 port", PROXY, ["[2001:db8::1]:65535"], XFF, "2001:db8::1"),
    ("v4 port empty", PROXY, ["1.1.1.1:"], XFF, DENIED),
    ("v4 port too large", PROXY, ["1.1.1.1:99999"], XFF, DENIED),
    ("v4 port too long", PROXY, ["1.1.1.1:000080"], XFF, DENIED),
    ("v4 port signed", PROXY, ["1.1.1.1:+80"], XFF, DENIED),
    ("v4 port of letters", PROXY, ["1.1.1.1:http"], XFF, DENIED),
    ("v4 port twice", PROXY, ["1.1.1.1:80:80"], XFF, DENIED),
    ("v4 port not ASCII", PROXY, ["1.1.1.1:\u0668\u0660"], XFF, DENIED),
    ("v4 in brackets", PROXY, ["[1.1.1.1]"], XFF, DENIED),
    ("v6 junk behind brackets", PROXY, ["[::1]junk"], XFF, DENIED),
    ("v6 port empty", PROXY, ["[2001:db8::1]:"], XFF, DENIED),
    ("v6 bracket open", PROXY, ["[2001:db8::1"], XFF, DENIED),
    ("v6 bracket closed only", PROXY, ["2001:db8::1]"], XFF, DENIED),
    ("v6 brackets twice", PROXY, ["[[2001:db8::1]]"], XFF, DENIED),
    ("v6 brackets around nothing", PROXY, ["[]:80"], XFF, DENIED),
    ("v6 too long", PROXY, ["1:2:3:4:5:6:7:8:9"], XFF, DENIED),
    ("v6 two gaps", PROXY, ["1::2::3"], XFF, DENIED),
    ("zone", PROXY, ["fd00::1%eth0"], XFF, "fd00::1"),
    ("zone as a URI has it", PROXY, ["fd00::1%25eth0"], XFF, "fd00::1"),
    ("zone in brackets", PROXY, ["[fd00::1%eth0.100]:80"], XFF, "fd00::1"),
    ("zone on a proxy", PROXY, ["1.1.1.1, fe80::2%eth0"], XFF, "1.1.1.1"),
    ("zone on a mapped address", PROXY, ["::ffff:1.1.1.1%eth0"], XFF, "1.1.1.1"),
    ("zone empty", PROXY, ["fd00::1%"], XFF, DENIED),
    ("zone twice", PROXY, ["fd00::1%a%b"], XFF, DENIED),
    ("zone with a blank", PROXY, ["fd00::1%et h0"], XFF, DENIED),
    ("zone with a quote", PROXY, ['fd00::1%e"h0'], XFF, DENIED),
    ("zone with line breaks", PROXY, ["fd00::1%eth0\r\nX: y"], XFF, DENIED),
    ("zone with a final line break", PROXY, ["fd00::1%eth0\n"], XFF, DENIED),
    ("zone with NUL", PROXY, ["fd00::1%\x00"], XFF, DENIED),
    ("zone not ASCII", PROXY, ["fd00::1%\xe9th0"], XFF, DENIED),
    ("zone with a comma is cut there", PROXY, ["fd00::1%a,b"], XFF, DENIED),
    ("zone without end", PROXY, ["fd00::1%" + "a" * 65], XFF, DENIED),
    ("zone on v4", PROXY, ["1.1.1.1%eth0"], XFF, DENIED),
    # Rule 4: no second reading of a number.
    ("octal-looking", PROXY, ["0177.0.0.1"], XFF, DENIED),
    ("octal-looking octet", PROXY, ["1.1.1.01"], XFF, DENIED),
    ("octal-looking mapped", PROXY, ["::ffff:010.0.0.2"], XFF, DENIED),
    ("integer", PROXY, ["2130706433"], XFF, DENIED),
    ("hexadecimal", PROXY, ["0x7f.1"], XFF, DENIED),
    ("short form", PROXY, ["127.1"], XFF, DENIED),
    ("octet too large", PROXY, ["1.1.1.256"], XFF, DENIED),
    ("five octets", PROXY, ["1.1.1.1.1"], XFF, DENIED),
    ("final dot", PROXY, ["1.1.1.1."], XFF, DENIED),
    ("digits not ASCII", PROXY, ["\u0661.1.1.1"], XFF, DENIED),
    ("digits full width", PROXY, ["\uff11.1.1.1"], XFF, DENIED),
    ("final line break", PROXY, ["1.1.1.1\n"], XFF, DENIED),
    ("vertical tab", PROXY, ["\x0b1.1.1.1"], XFF, DENIED),
    ("no-break space", PROXY, ["\xa01.1.1.1"], XFF, DENIED),
    ("surrogate from a bad byte", PROXY, ["1.1.1.1\udcff"], XFF, DENIED),
    # Rule 4: RFC 7239 nodes.
    ("forwarded", PROXY, ["for=1.1.1.1"], FWD, "1.1.1.1"),
    ("forwarded as in the RFC", PROXY, ["for=192.0.2.43, for=198.51.100.17;by=203.0.113.60"], FWD, "198.51.100.17"),
    ("forwarded v6 as in the RFC", PROXY, ['For="[2001:db8:cafe::17]:4711"'], FWD, "2001:db8:cafe::17"),
    ("forwarded name in capitals", PROXY, ["FOR=1.1.1.1"], FWD, "1.1.1.1"),
    ("forwarded walk", PROXY, ["for=6.6.6.6, for=1.1.1.1, for=10.0.0.2"], FWD, "1.1.1.1"),
    ("forwarded all trusted", PROXY, ["for=10.0.0.3,for=10.0.0.2"], FWD, "10.0.0.3"),
    ("forwarded lines", PROXY, ["for=6.6.6.6", "for=1.1.1.1", "for=10.0.0.2"], FWD, "1.1.1.1"),
    ("forwarded port", PROXY, ['for="1.1.1.1:80"'], FWD, "1.1.1.1"),
    ("forwarded port unquoted", PROXY, ["for=1.1.1.1:80"], FWD, "1.1.1.1"),
    ("forwarded v6 unquoted", PROXY, ["for=[2001:db8::1]:80"], FWD, "2001:db8::1"),
    ("forwarded port obfuscated", PROXY, ['for="[2001:db8::1]:_p.0-x"'], FWD, "2001:db8::1"),
    ("forwarded escapes", PROXY, [r'for="\1.1.1\.1"'], FWD, "1.1.1.1"),
    ("forwarded for last", PROXY, ["proto=https;by=10.0.0.9;for=1.1.1.1"], FWD, "1.1.1.1"),
    ("forwarded empty parameters", PROXY, [";;for=1.1.1.1;;"], FWD, "1.1.1.1"),
    ("forwarded blanks", PROXY, [" for=1.1.1.1 ; proto=http\t,  for=10.0.0.2 "], FWD, "1.1.1.1"),
    ("forwarded comma in quotes", PROXY, ['for=1.1.1.1;host="a,for=6.6.6.6"'], FWD, "1.1.1.1"),
    ("forwarded semicolon in quotes", PROXY, ['host="a;for=6.6.6.6";for=1.1.1.1'], FWD, "1.1.1.1"),
    ("forwarded escaped quote", PROXY, [r'for=1.1.1.1;host="a\",for=6.6.6.6"'], FWD, "1.1.1.1"),
    ("forwarded extension", PROXY, ["for=1.1.1.1;secret=x;fort=6.6.6.6"], FWD, "1.1.1.1"),
    ("forwarded unknown", PROXY, ["for=unknown"], FWD, DENIED),
    ("forwarded obfuscated", PROXY, ["for=_gazonk"], FWD, DENIED),
    ("forwarded obfuscated and port", PROXY, ['for="_gazonk:80"'], FWD, DENIED),
    ("forwarded unknown left", PROXY, ["for=unknown, for=1.1.1.1"], FWD, "1.1.1.1"),
    ("forwarded without for", PROXY, ["proto=https"], FWD, DENIED),
    ("forwarded without for, right", PROXY, ["for=1.1.1.1, by=10.0.0.2"], FWD, DENIED),
    ("forwarded empty element", PROXY, ["for=1.1.1.1,,for=10.0.0.2"], FWD, DENIED),
    ("forwarded empty element left", PROXY, [",for=1.1.1.1"], FWD, "1.1.1.1"),
    ("forwarded final comma", PROXY, ["for=1.1.1.1,"], FWD, DENIED),
    ("forwarded empty value", PROXY, ['for=""'], FWD, DENIED),
    ("forwarded no value", PROXY, ["for="], FWD, DENIED),
    ("forwarded bare address", PROXY, ["1.1.1.1"], FWD, DENIED),
    ("forwarded two for", PROXY, ["for=6.6.6.6;for=1.1.1.1"], FWD, DENIED),
    ("forwarded two for in capitals", PROXY, ["for=6.6.6.6;FOR=1.1.1.1"], FWD, DENIED),
    ("forwarded blank before =", PROXY, ["for =1.1.1.1"], FWD, DENIED),
    ("forwarded blank after =", PROXY, ["for= 1.1.1.1"], FWD, DENIED),
    ("forwarded no separator", PROXY, ["for=1.1.1.1 for=2.2.2.2"], FWD, DENIED),
    ("forwarded junk behind quotes", PROXY, ['for="1.1.1.1"junk'], FWD, DENIED),
    ("forwarded single quotes", PROXY, ["for='1.1.1.1'"], FWD, DENIED),
    ("forwarded blanks in quotes", PROXY, ['for="1.1.1.1, 10.0.0.2"'], FWD, DENIED),
    # A stray quote must not swallow what the proxy appended, in one line or over two.
    ("forwarded open quote swallows", PROXY, ['for=6.6.6.6;host=", for=1.1.1.1'], FWD, DENIED),
    ("forwarded open quote meets the proxy's", PROXY, ['for=6.6.6.6;host=", for="[2001:db8::1]"'], FWD, DENIED),
    ("forwarded quote over two lines", PROXY, ['for=6.6.6.6;host="', 'for=1.1.1.1;host="x"'], FWD, DENIED),
    ("forwarded escape at the end", PROXY, ['for="1.1.1.1\\'], FWD, DENIED),
    ("forwarded line break", PROXY, ["for=1.1.1.1\r\n"], FWD, DENIED),
    ("forwarded malformed left", PROXY, ["<>, for=1.1.1.1"], FWD, DENIED),
    ("forwarded huge", PROXY, ["for=6.6.6.6," * 100_000 + "for=1.1.1.1"], FWD, DENIED),
    # Rule 4: unix sockets.
    ("unix", None, [], XFF, "127.0.0.1"),
    ("unix, empty name", "", [], XFF, "127.0.0.1"),
    ("unix with the header", None, ["1.1.1.1"], XFF, DENIED),
    ("unix with a blank header", None, [""], XFF, DENIED),
    ("unix with another forwarding header", None, [("x-real-ip", "1.1.1.1")], XFF, DENIED),
    ("unix, empty name, with the header", "", ["for=1.1.1.1"], FWD, DENIED),
]  # fmt: skip

UNIX_CASES: list[Case] = [
    ("one entry", None, ["1.1.1.1"], XFF, "1.1.1.1"),
    ("empty name", "", ["1.1.1.1"], XFF, "1.1.1.1"),
    ("spoofed left", None, ["6.6.6.6, 1.1.1.1, 10.0.0.2"], XFF, "1.1.1.1"),
    ("all trusted", None, ["10.0.0.3, 10.0.0.2"], XFF, "10.0.0.3"),
    ("absent", None, [], XFF, "127.0.0.1"),
    ("blank", None, [" "], XFF, "127.0.0.1"),
    ("unknown", None, ["unknown"], XFF, DENIED),
    ("x-real-ip", None, ["1.1.1.1"], REAL, "1.1.1.1"),
    ("x-real-ip twice", None, ["1.1.1.1", "2.2.2.2"], REAL, DENIED),
    ("forwarded", None, ["for=6.6.6.6, for=1.1.1.1"], FWD, "1.1.1.1"),
    ("another forwarding header", None, [("x-real-ip", "1.1.1.1")], XFF, "127.0.0.1"),
    ("a TCP peer is still not trusted", "9.9.9.9", ["1.1.1.1"], XFF, "9.9.9.9"),
]


def header_of(lines: list[Line], source: Source) -> CIMultiDict[str]:
    return CIMultiDict([(source, line) if isinstance(line, str) else line for line in lines])


def check(case: Case, trust_unix: bool) -> None:
    _, peer, lines, source, expected = case
    headers = header_of(lines, source)
    if expected is DENIED:
        with pytest.raises(ClientAddressDenied) as caught:
            resolve(peer, headers, TRUSTED, source, trust_unix=trust_unix)
        assert caught.value.message == "The client's address could not be determined."
        assert all(note.isascii() and note.isprintable() and len(note) < 600 for note in caught.value.__notes__)
    else:
        assert resolve(peer, headers, TRUSTED, source, trust_unix=trust_unix) == ip_address(expected)
        assert resolve(
            peer, CIMultiDictProxy(headers), NetworkSet(TRUSTED), source, trust_unix=trust_unix
        ) == ip_address(expected)


@pytest.mark.parametrize("case", [pytest.param(case, id=case[0]) for case in CASES])
def test_resolve(case: Case) -> None:
    """The truth table: each row is one rule of the design at work."""
    check(case, trust_unix=False)


@pytest.mark.parametrize("case", [pytest.param(case, id=case[0]) for case in UNIX_CASES])
def test_resolve_behind_a_trusted_unix_peer(case: Case) -> None:
    """A unix peer that is configured as trusted is a proxy like another, and without a header it is local."""
    check(case, trust_unix=True)


def test_trusting_nobody_and_everybody() -> None:
    """With no trusted proxies no header is read; with all of IPv4 trusted the leftmost entry is the client."""
    headers = header_of(["6.6.6.6, 1.1.1.1"], XFF)
    assert resolve("10.0.0.1", headers, (), XFF) == ip_address("10.0.0.1")
    assert resolve("10.0.0.1", headers, [IPv4Network("0.0.0.0/0")], XFF) == ip_address("6.6.6.6")


# Properties, over input that is nearly valid more often than random text would be.

_KNOWN = NetworkSet(TRUSTED)


def _outside(text: str) -> bool:
    address = unmap(ip_address(text))
    return address not in _KNOWN and not address.is_unspecified


_V4 = st.integers(1, 2**32 - 1).map(lambda value: str(IPv4Address(value)))
_TRUSTED_TEXT = st.sampled_from(["10.0.0.2", "10.255.255.255", "::ffff:10.1.2.3", "2001:db8:aaaa::7", "fe80::3%eth0"])
_EDGES = ["1.1.1.1", "127.0.0.1", "11.0.0.0", "9.255.255.255", "2001:db8:aaab::", "::1", "::10.0.0.2", "fec0::%z"]
_UNTRUSTED_TEXT = st.one_of(
    st.sampled_from(_EDGES),
    _V4.filter(_outside),
    _V4.filter(_outside).map("::ffff:{}".format),
    st.integers(2**120, 2**128 - 1).map(lambda value: str(IPv6Address(value))).filter(_outside),
)
_PORTS = st.sampled_from([None, None, 0, 80, 65_535])
_DECORATED = st.builds(
    lambda text, port: text if port is None else f"[{text}]:{port}" if ":" in text else f"{text}:{port}",
    st.one_of(_TRUSTED_TEXT, _UNTRUSTED_TEXT),
    _PORTS,
)
_SLIPS = [
    "",
    " ",
    "unknown",
    "_hidden",
    "0.0.0.0",
    "::",
    "1.2.3.4:",
    "[::1]x",
    "01.1.1.1",
    "127.1",
    '"',
    "\\",
    "%",
    ";",
]
_JUNK = st.one_of(
    st.sampled_from(_SLIPS),
    st.text(st.sampled_from('0123456789abcdef.:[]%,;="\\ \t_xfor\r\n\x00é\u0663\udcff'), max_size=10),
)
_ENTRY = st.one_of(_DECORATED, _DECORATED, _JUNK)
_SHAPES = [
    'for="{}"',
    'by=_x;FOR="{}"',
    'host="a,b;c\\"";for="{}"',
    'for={};proto="',
    ";for={}",
    "{}",
    'for="{}";for=_x',
]
_ELEMENT = st.builds(str.format, st.sampled_from(_SHAPES), _ENTRY)
_GOOD_ELEMENT = st.builds(str.format, st.sampled_from(_SHAPES[:3]), _DECORATED)
_SOURCE: st.SearchStrategy[Source] = st.sampled_from([XFF, REAL, FWD])
_PEER = st.one_of(_TRUSTED_TEXT, _TRUSTED_TEXT, _UNTRUSTED_TEXT, st.none(), st.just(""), _JUNK)


@st.composite
def _requests(draw: st.DrawFn) -> tuple[str | None, CIMultiDict[str], Source, bool]:
    source, good = draw(_SOURCE), draw(st.booleans())  # half of all headers are good, or little would ever be walked
    part = (_GOOD_ELEMENT if good else _ELEMENT) if source == FWD else (_DECORATED if good else _ENTRY)
    peer = draw(_TRUSTED_TEXT if draw(st.integers(0, 2)) else _PEER)
    lines = ", ".join(draw(st.lists(part, max_size=5))).split(", , ")  # an empty entry starts a new line
    other = [(draw(_SOURCE), draw(_ENTRY))] if draw(st.booleans()) else []
    return peer, header_of([*lines, *other], source), source, draw(st.booleans())


def outcome(peer: str | None, headers: CIMultiDict[str], source: Source, trust_unix: bool = False) -> str | None:
    """The client as text, None for denied. Anything else that resolve raises fails the test."""
    try:
        return str(resolve(peer, headers, _KNOWN, source, trust_unix=trust_unix))
    except ClientAddressDenied:
        return None


@settings(max_examples=soak(4_000))
@given(_requests())
def test_resolve_only_denies_and_is_idempotent(request: tuple[str | None, CIMultiDict[str], Source, bool]) -> None:
    """Whatever comes in: an answer or ClientAddressDenied, the same each time; the answer is definite and, as a peer
    nobody trusts, resolves to itself."""
    peer, headers, source, trust_unix = request
    first = outcome(peer, headers, source, trust_unix)
    assert outcome(peer, headers, source, trust_unix) == first
    if first is not None:
        assert "%" not in first
        assert not ip_address(first).is_unspecified
        assert getattr(ip_address(first), "ipv4_mapped", None) is None
        assert resolve(first, headers, (), source) == ip_address(first)


@settings(max_examples=soak(3_000))
@given(chain=st.lists(_DECORATED, min_size=1, max_size=6), split=st.integers(0, 6), forwarded=st.booleans())
def test_a_proxy_is_the_client_only_if_all_are_proxies(chain: list[str], split: int, forwarded: bool) -> None:
    """A well-formed chain always has an answer, and it is a trusted proxy only if every address in it is one."""
    alone = [resolve(PROXY, header_of([entry], XFF), TRUSTED, XFF) for entry in chain]
    parts = [f'for="{entry}"' for entry in chain] if forwarded else chain
    lines = [", ".join(part) for part in (parts[:split], parts[split:]) if part]
    client = resolve(PROXY, header_of([*lines], FWD if forwarded else XFF), TRUSTED, FWD if forwarded else XFF)
    outside = [address for address in alone if address not in _KNOWN]
    assert client == (outside[-1] if outside else alone[0])


@settings(max_examples=soak(3_000))
@given(
    forged=st.lists(_ENTRY, max_size=4),
    own_line=st.booleans(),
    client=_UNTRUSTED_TEXT,
    proxies=st.lists(_TRUSTED_TEXT, max_size=3),
    forwarded=st.booleans(),
)
def test_what_an_attacker_writes_at_the_left_changes_nothing(
    forged: list[str], own_line: bool, client: str, proxies: list[str], forwarded: bool
) -> None:
    """Where the proxies appended an untrusted address, anything left of it leaves the answer alone; for Forwarded,
    whose left side is parsed too, it can at most get the attacker denied."""
    source: Source = FWD if forwarded else XFF
    honest = ", ".join(f'for="{entry}"' if forwarded else entry for entry in (client, *proxies))
    left = ", ".join(forged)
    lines: list[Line] = [left, honest] if own_line else [f"{left}, {honest}"]
    answer = outcome(PROXY, header_of([honest], source), source)
    assert answer is not None
    assert outcome(PROXY, header_of(lines, source), source) in ({answer, None} if forwarded else {answer})


# The middleware.

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]


async def _show(request: web.Request) -> web.Response:
    return web.Response(text=str(request[CLIENT_IP]))


@web.middleware
async def _render(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        return await handler(request)  # type: ignore[no-any-return]
    except ClientAddressDenied as error:
        return web.json_response(error.problem(), status=error.status)


def _app(trusted: list[str], source: Source = XFF, trust_unix: bool = False) -> web.Application:
    networks = parse_networks(trusted, strict=True, name="TRUSTED_PROXIES")
    app = web.Application(middlewares=[_render, client_ip_middleware(networks, source, trust_unix)])
    app.router.add_get("/", _show)
    return app


async def test_middleware_stores_the_peer(aiohttp_client: Client) -> None:
    """Without trusted proxies the socket's peer is the client, whatever the headers say."""
    client = await aiohttp_client(_app([]))
    response = await client.get("/", headers={"X-Forwarded-For": "1.1.1.1"})
    assert await response.text() == "127.0.0.1"


@pytest.mark.parametrize(("trusted", "expected"), [([], "False"), (["127.0.0.0/8"], "True"), (["10.0.0.0/8"], "False")])
@pytest.mark.parametrize("header", ["1.1.1.1", "1.1.1.1," * 20 + "1.1.1.1"], ids=["short", "long"])
async def test_middleware_stores_whether_the_peer_is_trusted(
    aiohttp_client: Client, trusted: list[str], expected: str, header: str
) -> None:
    """The later middlewares use the decision about the peer, with and without the cache of short headers."""

    async def show(request: web.Request) -> web.Response:
        return web.Response(text=str(request[PEER_TRUSTED]))

    app = _app(trusted)
    app.router.add_get("/trusted", show)
    client = await aiohttp_client(app)
    assert await (await client.get("/trusted", headers={"X-Forwarded-For": header})).text() == expected


async def test_middleware_reads_all_lines(aiohttp_client: Client) -> None:
    """Behind a trusted peer the configured header is read, over all of its lines."""
    client = await aiohttp_client(_app(["127.0.0.0/8"]))
    headers = CIMultiDict([("X-Forwarded-For", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")])
    assert await (await client.get("/", headers=headers)).text() == "1.1.1.1"


async def test_middleware_denies_and_logs(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """A denial reaches the error middleware, shows the client nothing, and logs peer and entry on one safe line."""
    client = await aiohttp_client(_app(["127.0.0.1"]))
    with caplog.at_level(logging.WARNING, logger="warmstart.edge"):
        response = await client.get("/", headers={"X-Forwarded-For": "evil'\u2028é" + "x" * 5000})
    assert response.status == 403
    assert "evil" not in await response.text()
    (record,) = [record for record in caplog.records if record.name == "warmstart.edge"]
    message = record.getMessage()
    assert "127.0.0.1" in message
    assert r"evil'\u2028\xe9" in message
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 400


async def test_middleware_over_a_unix_socket(tmp_path: Path) -> None:
    """A unix peer is local without a forwarding header, denied with one, and a proxy where it is trusted."""
    for trust_unix, with_header in ((False, 403), (True, 200)):
        runner = web.AppRunner(_app([], trust_unix=trust_unix))
        await runner.setup()
        path = str(tmp_path / f"{trust_unix}.sock")
        await web.UnixSite(runner, path).start()
        try:
            async with ClientSession(connector=UnixConnector(path=path)) as session:
                async with session.get("http://x/") as response:
                    assert await response.text() == "127.0.0.1"
                async with session.get("http://x/", headers={"X-Forwarded-For": "1.1.1.1"}) as response:
                    assert response.status == with_header
                    assert trust_unix is (await response.text() == "1.1.1.1")
        finally:
            await runner.cleanup()


@pytest.mark.parametrize(
    ("peername", "family", "expected"),
    [
        (("1.2.3.4", 5), socket.AF_INET, "1.2.3.4"),
        (("::1", 5, 0, 0), socket.AF_INET6, "::1"),
        ("", socket.AF_UNIX, None),
        ("/run/client.sock", socket.AF_UNIX, None),
        (b"\0abstract", socket.AF_UNIX, None),
        (None, socket.AF_UNIX, None),
        (None, socket.AF_INET, DENIED),
        (("", 5), socket.AF_INET, DENIED),
        ((), socket.AF_INET6, DENIED),
        (None, None, DENIED),
    ],
)
def test_peer_of(peername: object, family: int | None, expected: str | None) -> None:
    """Only a unix socket counts as one: a TCP connection without a peername must not pass for local."""
    connection = None if family is None else Mock(family=family)
    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info.side_effect = {"peername": peername, "socket": connection}.get
    request = make_mocked_request("GET", "/", transport=transport)
    if family == socket.AF_UNIX or expected is not DENIED:
        assert peer_of(request) == expected
    else:
        with pytest.raises(ClientAddressDenied):
            peer_of(request)


def test_a_connection_that_is_gone_has_no_peer() -> None:
    """No transport, no peer: denied rather than local."""
    request = Mock(spec=web.Request, transport=None, get={}.get)
    with pytest.raises(ClientAddressDenied):
        peer_of(request)


def test_middleware_refuses_an_unknown_source() -> None:
    """A source that is none of the three stops the service at start."""
    with pytest.raises(ValueError, match="cf-connecting-ip"):
        client_ip_middleware((), "cf-connecting-ip")  # type: ignore[arg-type]


def test_the_key_holds_addresses() -> None:
    """CLIENT_IP is a typed request key, and what resolve returns are ipaddress objects."""
    assert isinstance(CLIENT_IP, web.RequestKey)
    assert isinstance(resolve("1.2.3.4", CIMultiDict(), (), XFF), IPv4Address)
