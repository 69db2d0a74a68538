"""Bodies made to cost: billion laughs, depth, width, endless numbers, odd encodings, bombs. Each is a plain refusal."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable

import pytest

from loadtests.service import Service
from tests.attacks.conftest import Start
from tests.attacks.raw import Answer, exchange

MEGABYTE = 1_048_576
_MOST_GROWTH = 20  # MB, where the same was taken before; half of it kept would be more


@pytest.fixture(scope="module")
def service(start: Start) -> Service:
    """With all defaults."""
    return start()


def _post(service: Service, body: bytes, *fields: bytes, path: bytes = b"/generate") -> Answer:
    """The answer to one POST of JSON."""
    head = [b"POST " + path + b" HTTP/1.1", b"Host: x", b"Connection: close", b"Content-Length: %d" % len(body)]
    if not any(field.lower().startswith(b"content-type") for field in fields):
        head.append(b"Content-Type: application/json")
    (answer,) = exchange(service.port, b"\r\n".join([*head, *fields, b"", body])).answers
    return answer


def _fill(start: bytes, unit: bytes, end: bytes) -> bytes:
    """As often as fits MAX_BODY_BYTES."""
    return start + unit * ((MEGABYTE - len(start) - len(end)) // len(unit)) + end


def _colliding_keys() -> bytes:
    """Token ids that CPython would hash alike: an integer's hash is its remainder by 2**61 - 1, and knows no seed."""
    ids = b",".join(b'"%d":1' % (number * (2**61 - 1)) for number in range(1, 30_000))
    return b'{"prompt":"x","logit_bias":{' + ids + b"}}"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "arrays, deep": lambda: _fill(b'{"prompt":', b"[", b""),
    "arrays, deep and closed": lambda: b'{"prompt":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "objects, deep": lambda: b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "deep, behind a string full of brackets": lambda: (
        b'{"x":"' + b"]}" * 1000 + b'","prompt":' + b"[" * 1000 + b"]" * 1000 + b"}"
    ),
    "as deep as Python recurses": lambda: b'{"prompt":' + b"[" * 990 + b"]" * 990 + b"}",
    "wide array": lambda: _fill(b'{"prompt":[', b"[],", b"[]]}"),
    "wide object": lambda: b"{" + b",".join(b'"%d":0' % number for number in range(80_000)) + b"}",
    "wide stop": lambda: _fill(b'{"prompt":"x","stop":["a"', b',"a"', b"]}"),
    "wide logit_bias": lambda: (
        b'{"prompt":"x","logit_bias":{' + b",".join(b'"%d":1' % n for n in range(70_000)) + b"}}"
    ),
    "ids that hash alike": _colliding_keys,
    "one long key": lambda: _fill(b'{"', b"k", b'":1}'),
    "one key very often": lambda: _fill(b"{", b'"prompt":1,', b'"prompt":2}'),
    "integer without end": lambda: _fill(b'{"prompt":"x","seed":', b"9", b"}"),
    "float without end": lambda: _fill(b'{"prompt":"x","temperature":0.', b"9", b"x}"),
    "exponent without end": lambda: b'{"prompt":"x","temperature":1e' + b"9" * 1000 + b"}",
    "minus without number": lambda: b'{"prompt":"x","seed":-}',
    "NaN": lambda: b'{"prompt":"x","temperature":NaN}',
    "Infinity": lambda: b'{"prompt":"x","temperature":-Infinity}',
    "escapes": lambda: _fill(b'{"prompt":"', b"\\u0041", b'","n":0}'),
    "backslashes": lambda: _fill(b'{"prompt":"', b"\\", b'"}'),
    "lone surrogate in a name": lambda: b'{"\\ud800":1}',
    "lone surrogate in a model": lambda: b'{"prompt":"x","model":"\\udfff"}',
    "raw surrogate": lambda: b'{"prompt":"\xed\xa0\x80"}',
    "overlong UTF-8": lambda: b'{"prompt":"\xc0\xaf"}',
    "NUL": lambda: b'{"prompt":"\0"}',
    "byte order mark": lambda: b'\xef\xbb\xbf{"prompt":1}',
    "UTF-16": lambda: '{"prompt":"x"}'.encode("utf-16"),
    "UTF-32": lambda: '{"prompt":"x"}'.encode("utf-32"),
    "UTF-7": lambda: b'+AHs-"prompt":"x"+AH0-',
    "not JSON at all": lambda: random.Random(2).randbytes(MEGABYTE),
    "two documents": lambda: b'{"prompt":"x"}{"prompt":"y"}',
    "blanks only": lambda: b" " * MEGABYTE,
    "nothing": lambda: b"",
    "not an object": lambda: b"[]",
    "XML with entities": lambda: b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>',
    "messages, many": lambda: _fill(b'{"messages":[', b'{"role":"x"},', b'{"role":"x"}]}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused(service: Service, name: str) -> None:
    """A 4xx that is short, whatever was sent, in both shapes of errors."""
    for path in (b"/generate", b"/v1/chat/completions"):
        answer = _post(service, HOSTILE[name](), path=path)
        assert 400 <= answer.status < 500
        assert len(answer.body) < 2000


def test_hostile_json_leaves_nothing_behind(service: Service) -> None:
    """All of it once more: the peak of memory stays where the first megabytes have put it, and a probe is answered."""
    before = service.memory()["peak"]
    for make in HOSTILE.values():
        _post(service, make())
    assert service.memory()["peak"] - before < _MOST_GROWTH
    assert exchange(service.port, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").statuses == [200]


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    """100 MB of nothing in a hundred thousand bytes."""
    nothing = bytes(100 * MEGABYTE)
    return {"gzip": gzip.compress(nothing, 9), "deflate": zlib.compress(nothing, 9)}


@pytest.mark.parametrize(
    "coding", ["gzip", "x-gzip", "deflate", "br", "zstd", "compress", "gzip, gzip", "GZIP", "unknown"]
)
def test_compressed_bodies_are_not_opened(service: Service, bombs: dict[str, bytes], coding: str) -> None:
    """Whatever the coding, 415, and memory has not grown by what was packed."""
    before = service.memory()["peak"]
    answer = _post(service, bombs.get(coding, bombs["gzip"]), b"Content-Encoding: " + coding.encode())
    assert answer.status == 415
    assert json.loads(answer.body)["code"] == "unsupported_media_type"
    assert service.memory()["peak"] - before < 50


def test_identity_is_no_compression(service: Service) -> None:
    """``Content-Encoding: identity`` says that nothing was done; this body is wrong for another reason."""
    assert _post(service, b'{"prompt":1}', b"Content-Encoding: identity").status == 400


@pytest.mark.parametrize(
    "field",
    [
        b"Content-Type: text/plain",
        b"Content-Type: application/x-www-form-urlencoded",
        b"Content-Type: multipart/form-data; boundary=x",
        b"Content-Type: application/json; charset=utf-16",
        b"Content-Type: application/json; charset=" + b"x" * 1000,
        b"Content-Type: text/json, application/json",
        b"Content-Type: \xff\xfe",
        b"Content-Type:",
    ],
)
def test_other_media_types_are_refused(service: Service, field: bytes) -> None:
    """Only JSON in UTF-8 is read: a form that a foreign page posts without asking is not."""
    assert _post(service, b'{"prompt":"x"}', field).status == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_beyond_the_limit(service: Service, chunked: bool) -> None:
    """413, and the rest is not waited for, whether the length was told or not."""
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    if chunked:
        raw = head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 20
    else:
        raw = head + b"Content-Length: 1048577\r\n\r\n" + b"x" * 1_048_577
    answered = exchange(service.port, raw)
    assert answered.statuses == [413]
    assert answered.closed
