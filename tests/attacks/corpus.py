"""Requests that two servers may read differently (RFC 9112 section 11.2), and what a server must make of each.

Every request carries ``X-Request-Id``, which the answer repeats: ``first`` is the one that is sent openly, ``smuggled``
the one that only a wrong reading of the first would see, or that follows a first that must be refused, ``after`` one
that follows openly.
"""

from __future__ import annotations

SMUGGLED = b"GET /models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: smuggled\r\n\r\n"
AFTER = SMUGGLED.replace(b"smuggled", b"after")
_NAMED = b"Host: x\r\nX-Request-Id: first\r\nContent-Type: application/json\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"


def _post(fields: bytes, body: bytes, line: bytes = b"POST /generate HTTP/1.1\r\n") -> bytes:
    return line + _NAMED + fields + b"\r\n" + body


def _get(fields: bytes = b"", line: bytes = b"GET /models HTTP/1.1\r\n", host: bytes = b"Host: x\r\n") -> bytes:
    return line + host + b"X-Request-Id: first\r\n" + fields + b"\r\n" + SMUGGLED


def _length(value: bytes) -> bytes:
    """A length that is not a plain number: whoever makes 4 of it finds another request behind four bytes."""
    return _post(b"Content-Length:" + value + b"\r\n", b"{}  " + SMUGGLED)


def _coding(field: bytes, *more: bytes) -> bytes:
    """Chunked to whoever understands the field so, else of the length that stands beside it."""
    body = b"0\r\n\r\n" + SMUGGLED
    return _post(field + b"".join(more) + b"\r\nContent-Length: %d\r\n" % len(body), body)


def _alone(field: bytes) -> bytes:
    """The same without a length: chunked, or no body at all, or refused."""
    return _post(field + b"\r\n", b"0\r\n\r\n" + SMUGGLED)


def _chunks(body: bytes) -> bytes:
    return _post(_CHUNKED, body)


REFUSED: dict[str, bytes] = {
    # Two framings at once (RFC 9112 section 6.1)
    "CL.TE": _coding(b"Transfer-Encoding: chunked"),
    "TE.CL": _post(_CHUNKED + b"Content-Length: 4\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)),
    "CL.TE in small letters": _coding(b"transfer-encoding: chunked"),
    "CL 0 and TE": _post(b"Content-Length: 0\r\n" + _CHUNKED, b"0\r\n\r\n" + SMUGGLED),
    # Transfer-Encoding that one reads and another does not
    "TE xchunked": _coding(b"Transfer-Encoding: xchunked"),
    "TE blank before colon": _coding(b"Transfer-Encoding : chunked"),
    "TE tab before colon": _coding(b"Transfer-Encoding\t: chunked"),
    "TE vertical tab": _coding(b"Transfer-Encoding:\x0bchunked"),
    "TE form feed": _coding(b"Transfer-Encoding: chunked\x0c"),
    "TE quoted": _coding(b'Transfer-Encoding: "chunked"'),
    "TE folded": _coding(b"Transfer-Encoding:\r\n chunked"),
    "TE folded, tab": _coding(b"Transfer-Encoding:\r\n\tchunked"),
    "TE behind a fold": _coding(b"X: y\r\n Transfer-Encoding: chunked"),
    "TE twice": _coding(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
    "TE twice, other order": _coding(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"),
    "TE identity": _coding(b"Transfer-Encoding: identity"),
    "TE list": _coding(b"Transfer-Encoding: identity, chunked"),
    "TE chunked not last": _coding(b"Transfer-Encoding: chunked, gzip"),
    "TE chunked twice": _coding(b"Transfer-Encoding: chunked, chunked"),
    "TE empty": _coding(b"Transfer-Encoding:"),
    "TE with parameter": _coding(b"Transfer-Encoding: chunked;q=1"),
    "TE NUL": _coding(b"Transfer-Encoding: chunked\0"),
    "TE bare CR": _coding(b"Transfer-Encoding: chunked\rX: y"),
    "TE bare LF": _coding(b"X: y\nTransfer-Encoding: chunked"),
    "TE high byte": _coding(b"Transfer-Encoding: chunked\xff"),
    "TE underscore": _coding(b"Transfer_Encoding: chunked", b"\r\nTransfer-Encoding: chunked"),
    "TE alone, xchunked": _alone(b"Transfer-Encoding: xchunked"),
    "TE alone, identity": _alone(b"Transfer-Encoding: identity"),
    "TE alone, gzip": _alone(b"Transfer-Encoding: gzip"),
    "TE alone, chunked not last": _alone(b"Transfer-Encoding: chunked, gzip"),
    "TE alone, twice": _alone(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    "TE alone, chunked twice": _alone(b"Transfer-Encoding: chunked, chunked"),
    "TE in HTTP/1.0": _post(_CHUNKED, b"0\r\n\r\n" + SMUGGLED, b"POST /generate HTTP/1.0\r\n"),
    # Content-Length that is no number of RFC 9110 section 8.6
    "CL twice, different": _post(b"Content-Length: 4\r\nContent-Length: 0\r\n", b"{}  " + SMUGGLED),
    "CL twice, equal": _post(b"Content-Length: 4\r\nContent-Length: 4\r\n", b"{}  " + SMUGGLED),
    "CL list, different": _length(b" 4, 0"),
    "CL list, equal": _length(b" 4, 4"),
    "CL plus": _length(b" +4"),
    "CL minus": _length(b" -4"),
    "CL hex": _length(b" 0x4"),
    "CL underscore": _length(b" 0_4"),
    "CL fraction": _length(b" 4.0"),
    "CL exponent": _length(b" 4e0"),
    "CL inner blank": _length(b" 0 4"),
    "CL empty": _length(b""),
    "CL vertical tab": _length(b"\x0b4"),
    "CL no-break space": _length(b"\xa04"),
    "CL other digits": _length(" ٤".encode()),
    "CL NUL": _length(b" 4\0"),
    "CL beyond 64 bits": _length(b" 18446744073709551620"),
    "CL blank before colon": _post(b"Content-Length : 4\r\n", b"{}  " + SMUGGLED),
    "CL folded": _length(b"\r\n 4"),
    # Chunks
    "chunk size plus": _chunks(b"+2\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size minus": _chunks(b"-2\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size 0x": _chunks(b"0x2\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size underscore": _chunks(b"0_2\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size empty": _chunks(b"\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size blank before": _chunks(b" 2\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size beyond 64 bits": _chunks(b"10000000000000002\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size no hex": _chunks(b"g\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size bare LF": _chunks(b"2\n{}\n0\n\n" + SMUGGLED),
    "chunk size bare CR": _chunks(b"2\r{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk data too long": _chunks(b"2\r\n{}}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk data without CRLF": _chunks(b"2\r\n{}0\r\n\r\n" + SMUGGLED),
    "chunk data bare LF": _chunks(b"2\r\n{}\n0\r\n\r\n" + SMUGGLED),
    "chunk extension bare LF": _chunks(b"2;x\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "chunk extension NUL": _chunks(b"2;\0\r\n{}\r\n0\r\n\r\n" + SMUGGLED),
    "trailer without colon": _chunks(b"2\r\n{}\r\n0\r\nx\r\n\r\n" + SMUGGLED),
    "trailer bare LF": _chunks(b"2\r\n{}\r\n0\r\nX: y\n\r\n\r\n" + SMUGGLED),
    "trailer that would reframe": _chunks(b"2\r\n{}\r\n0\r\nContent-Length: 50\r\n\r\n" + SMUGGLED),
    # Line ends and characters (RFC 9112 section 2.2, RFC 9110 section 5.5)
    "all bare LF": _get().replace(b"\r\n", b"\n"),
    "bare LF after the request line": b"GET /models HTTP/1.1\nHost: x\r\nX-Request-Id: first\r\n\r\n" + SMUGGLED,
    "bare LF ends a field": _get(b"X: y\nZ: z\r\n"),
    "bare LF ends the head": b"GET /models HTTP/1.1\r\nHost: x\r\nX-Request-Id: first\n\n" + SMUGGLED,
    "bare CR in a value": _get(b"X: y\rz\r\n"),
    "bare CR ends a field": _get(b"X: y\rZ: z\r\n"),
    "CR CR LF": _get(b"X: y\r\r\n"),
    "NUL in a value": _get(b"X: y\0z\r\n"),
    "NUL in a name": _get(b"X\0: y\r\n"),
    "control in a value": _get(b"X: y\x01z\r\n"),
    "DEL in a value": _get(b"X: y\x7fz\r\n"),
    "obsolete folding": _get(b"X: y\r\n z\r\n"),
    "folding of the first field": b"GET /models HTTP/1.1\r\n Host: x\r\nX-Request-Id: first\r\n\r\n" + SMUGGLED,
    "blank in a name": _get(b"X y: z\r\n"),
    "blank before colon": _get(b"X : y\r\n"),
    "no colon": _get(b"X\r\n"),
    "empty name": _get(b": y\r\n"),
    "odd character in a name": _get(b"X(y): z\r\n"),
    "byte beyond ASCII in a name": _get(b"X\xe4: z\r\n"),
    # The request line (RFC 9112 section 3)
    "HTTP/0.9": b"GET /models\r\n\r\n" + SMUGGLED,
    "HTTP/0.9, named": _get(line=b"GET /models HTTP/0.9\r\n"),
    "HTTP/1.2": _get(line=b"GET /models HTTP/1.2\r\n"),
    "HTTP/2.0": _get(line=b"GET /models HTTP/2.0\r\n"),
    "HTTP/1.10": _get(line=b"GET /models HTTP/1.10\r\n"),
    "HTTP/1.1x": _get(line=b"GET /models HTTP/1.1x\r\n"),
    "http/1.1": _get(line=b"GET /models http/1.1\r\n"),
    "HTTP/+1.1": _get(line=b"GET /models HTTP/+1.1\r\n"),
    "HTTP/01.1": _get(line=b"GET /models HTTP/01.1\r\n"),
    "HTTP 1.1": _get(line=b"GET /models HTTP 1.1\r\n"),
    "blank in the target": _get(line=b"GET /models /x HTTP/1.1\r\n"),
    "tabs for blanks": _get(line=b"GET\t/models\tHTTP/1.1\r\n"),
    "NUL in the target": _get(line=b"GET /models\0 HTTP/1.1\r\n"),
    "CR in the target": _get(line=b"GET /models\rx HTTP/1.1\r\n"),
    "byte beyond ASCII in the method": _get(line=b"G\xcbT /models HTTP/1.1\r\n"),
    "no method": _get(line=b" /models HTTP/1.1\r\n"),
    "connection preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
    "CONNECT": _get(line=b"CONNECT x:80 HTTP/1.1\r\n"),
    "fragment in the target": _get(line=b"GET /models#x HTTP/1.1\r\n"),
}
"""All of these: refused, the connection closed, and nothing answered after."""

HOSTS: dict[str, bytes] = {
    "no Host": _get(host=b""),
    "two Hosts": _get(host=b"Host: x\r\nHost: x\r\n"),
    "two Hosts, different": _get(host=b"Host: x\r\nHost: y\r\n"),
    "list of Hosts": _get(host=b"Host: x, y\r\n"),
    "user in Host": _get(host=b"Host: x@y\r\n"),
    "path in Host": _get(host=b"Host: x/y\r\n"),
    "blank in Host": _get(host=b"Host: x y\r\n"),
    "port that is none": _get(host=b"Host: x:y\r\n"),
    "no Host in HTTP/1.1, absolute target": _get(line=b"GET http://x/models HTTP/1.1\r\n", host=b""),
}
"""Plainly framed, but RFC 9112 section 3.2 demands 400; what follows may be answered."""

_BODY = b'{"prompt":1}'  # wrong, so that no model is asked

SERVED: dict[str, tuple[bytes, list[int]]] = {
    "two plain requests": (_get(), [200, 200]),
    "body with a length": (_post(b"Content-Length: %d\r\n" % len(_BODY), _BODY + SMUGGLED), [400, 200]),
    "leading zeros": (_post(b"Content-Length: 00%d\r\n" % len(_BODY), _BODY + SMUGGLED), [400, 200]),
    "blanks around the length": (_post(b"Content-Length: \t %d \t\r\n" % len(_BODY), _BODY + SMUGGLED), [400, 200]),
    "chunks": (_chunks(b"%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY) + SMUGGLED), [400, 200]),
    "chunked in capitals": (
        _post(b"Transfer-Encoding: CHUNKED\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY) + SMUGGLED),
        [400, 200],
    ),
    "chunk extension": (_chunks(b'%X;a="b"\r\n%s\r\n0;c\r\n\r\n' % (len(_BODY), _BODY) + SMUGGLED), [400, 200]),
    "trailer": (_chunks(b"%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(_BODY), _BODY) + SMUGGLED), [400, 200]),
    "two blanks in the request line": (_get(line=b"GET  /models HTTP/1.1\r\n"), [200, 200]),
    "empty line before": (b"\r\n" + _get(), [200, 200]),
}
"""Plainly valid, if unusual: two answers, the second to what follows."""

HIDDEN: dict[str, bytes] = {
    "GET with a body": b"GET /models HTTP/1.1\r\n" + _NAMED + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
    "DELETE with chunks": _post(
        _CHUNKED, b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED), b"DELETE /nothing HTTP/1.1\r\n"
    ),
    "POST": _post(b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
    "refused unread": _post(b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED, b"POST /nothing HTTP/1.1\r\n"),
    "length too large": _post(b"Content-Length: 99999999\r\n", SMUGGLED),
    "unfinished chunk": _chunks(b"ffff\r\n" + SMUGGLED),
    "upgrade": _post(b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
    "h2c": _post(
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: %d\r\n"
        % len(SMUGGLED),
        SMUGGLED,
    ),
    "connection drops the length": _post(
        b"Connection: keep-alive, Content-Length\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED
    ),
}
"""Valid, with a request in the body: it stays a body, also when it is never read or never ends."""
