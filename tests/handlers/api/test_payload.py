"""handlers.api.payload: which bodies and content types are read as a request, whatever the route."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.api.payload import body_payload
from handlers.api.routes import ROUTES
from handlers.operations import OPERATIONS
from handlers.schemas.parsing import parse
from runtime.errors import InvalidRequest, UnsupportedMediaType
from runtime.strict_json import DEFAULT_MAX_DEPTH

JSON = "application/json"
DEEP = 100_000
NOT_READ = {
    "empty": b"",
    "blank": b" ",
    "cut": b"{",
    "cut later": b'{"prompt": "x"',
    "too much": b'{"prompt": "x"}}',
    "two": b'{"prompt": "x"} {"prompt": "y"}',
    "single quotes": b"{'prompt': 'x'}",
    "comma at the end": b'{"prompt": "x",}',
    "bare name": b'{prompt: "x"}',
    "raw line break": b'{"prompt": "a\nb"}',
    "raw NUL": b'{"prompt": "\x00"}',
    "wrong escape": b'{"prompt": "\\x41"}',
    "comment": b'{"prompt": "x"} // comment',
    "two BOMs": b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "x"}',
    "BOM at the end": b'{"prompt": "x"}\xef\xbb\xbf',
    "not UTF-8": b'{"prompt": "\xff"}',
    "surrogate in UTF-8": b'{"prompt": "\xed\xa0\x80"}',
    "overlong UTF-8": b'{"prompt": "\xc0\xaf"}',
    "UTF-16": '{"prompt": "x"}'.encode("utf-16"),
    "UTF-32": '{"prompt": "x"}'.encode("utf-32"),
    "deep lists, open": b"[" * DEEP,
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep in a field": b'{"prompt": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "Infinity": b'{"prompt": "x", "temperature": Infinity}',
    "-Infinity": b'{"prompt": "x", "temperature": -Infinity}',
    "10,000 digits": b'{"prompt": "x", "temperature": ' + b"9" * 10_000 + b"}",
    "leading zero": b'{"prompt": "x", "temperature": 01}',
    "no zero": b'{"prompt": "x", "temperature": .5}',
    "50,000 fields": b"{" + b",".join(b'"%d":1' % i for i in range(50_000)) + b"}",
    "list": b"[]",
    "list of objects": b'[{"prompt": "x"}]',
    "string": b'"prompt"',
    "null": b"null",
    "number": b"5",
    "boolean": b"true",
}
# JSON objects, but not a request of any operation.
NO_REQUEST = {
    "1e999": b'{"prompt": "x", "temperature": 1e999}',
    "1e999 as an integer": b'{"prompt": "x", "top_k": 1e999}',
    "-1e999": b'{"prompt": "x", "seed": -1e999}',
    "4,000 digits": b'{"prompt": "x", "seed": ' + b"9" * 4000 + b"}",
    "4,000 digits as a float": b'{"prompt": "x", "temperature": ' + b"9" * 4000 + b"}",
    "100,000 decimals": b'{"prompt": "x", "temperature": 0.' + b"9" * 100_000 + b"e9}",
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "lone surrogate in a message": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "lone surrogate in a part": b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\udc00"}]}]}',
    "lone surrogate in a name": b'{"prompt": "x", "\\ud800": 1}',
    "magic names": b'{"__proto__": {}, "__class__": 1}',
    "endless name": b'{"' + b"x" * 500_000 + b'": 1}',
}
# Requests of operations whose path names all that they need.
NOTHING = {"nothing": b"{}", "nothing but stream": b'{"stream": true}'}
WITHOUT_PROMPT = ("load_model", "ollama_chat", "ollama_generate")  # each loads a model, and may have a stream
NEEDS_NOTHING = ("unload_model", "cancel_batch", "ollama_show", "ollama_embeddings")
BODY_ROUTES = {route.operation: route for route in ROUTES if route.method in ("POST", "PUT")}


def _read(named: dict[str, str], body: bytes | None, content_type: str = JSON, charset: str | None = None) -> Any:
    return body_payload(named, body, content_type, charset, DEFAULT_MAX_DEPTH)


def _check_message(message: str) -> None:
    assert 0 < len(message) < 2000
    assert message.isprintable()


@pytest.mark.parametrize("body", NOT_READ.values(), ids=NOT_READ)
def test_what_is_no_json_object(body: bytes) -> None:
    """A body that is not one JSON object in UTF-8 is refused with a short message that any client can read, also where
    the path has fields.
    """
    for named in ({}, {"model": "fake"}):
        with pytest.raises(InvalidRequest) as refused:
            _read(named, body)
        _check_message(refused.value.message)
        assert refused.value.param is None


@pytest.mark.parametrize("body", NO_REQUEST.values(), ids=NO_REQUEST)
def test_what_is_no_request(body: bytes) -> None:
    """An object that is read, but that no operation takes, is refused by every operation's model in the same way."""
    for operation, route in BODY_ROUTES.items():
        payload = _read(dict.fromkeys(route.fields, "fake"), body)
        with pytest.raises(InvalidRequest) as refused:
            parse(OPERATIONS[operation].request, payload)
        _check_message(refused.value.message)


@pytest.mark.parametrize("body", NOTHING.values(), ids=NOTHING)
def test_what_says_nothing(body: bytes) -> None:
    """An object without what an operation needs is refused; it is taken where the path names all of it, or where a
    request without a prompt loads the default model.
    """
    for operation, route in BODY_ROUTES.items():
        payload = _read(dict.fromkeys(route.fields, "fake"), body)
        if operation in WITHOUT_PROMPT or (operation in NEEDS_NOTHING and "stream" not in payload):
            parse(OPERATIONS[operation].request, payload)
        else:
            with pytest.raises(InvalidRequest) as refused:
                parse(OPERATIONS[operation].request, payload)
            _check_message(refused.value.message)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_constants_that_are_not_json(constant: str) -> None:
    """Numbers that only Python's JSON knows are refused for what they are, before any field is looked at."""
    with pytest.raises(InvalidRequest) as refused:
        _read({}, f'{{"x": {constant}}}'.encode())
    assert (refused.value.message, refused.value.param) == (f"the body contains {constant}, which is not JSON", None)


@pytest.mark.parametrize("charset", [None, "utf-8", "UTF-8", "utf8"])
def test_json_in_utf_8_is_read(charset: str | None) -> None:
    """UTF-8 is the default and may be named; fields of the path join those of the body."""
    assert _read({"model": "m"}, b'{"stream": true}', JSON, charset) == {"stream": True, "model": "m"}


@pytest.mark.parametrize(
    ("content_type", "charset"),
    [
        *(("application/octet-stream", None), ("text/plain", None), ("text/json", None), ("application/jsonp", None)),
        *(("application/json-patch+json", None), ("multipart/form-data", None), ("x" * 5000, None)),
        *((JSON, "utf-16"), (JSON, "latin-1"), (JSON, "nonsense")),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_content_types(content_type: str, charset: str | None) -> None:
    """What does not call itself JSON in UTF-8 is not read, with a short message, also where the path has fields."""
    for named in ({}, {"model": "fake"}):
        with pytest.raises(UnsupportedMediaType) as refused:
            _read(named, b"{}", content_type, charset)
        assert len(refused.value.message) < 300


def test_no_body() -> None:
    """Without a body a request is what its path says, whatever its content type; a path that says nothing needs one."""
    assert _read({"model": "fake"}, None, "application/octet-stream") == {"model": "fake"}
    with pytest.raises(InvalidRequest, match="not JSON"):
        _read({}, None)


@pytest.mark.parametrize("model", ["fake", "other", None, 5])
def test_a_field_that_the_path_names(model: object) -> None:
    """It may not be in the body too, whatever the body says of it."""
    with pytest.raises(InvalidRequest) as refused:
        _read({"model": "fake"}, json.dumps({"model": model}).encode())
    assert (refused.value.param, refused.value.message) == (
        "model",
        "model: remove this field, the path already has it",
    )
