"""middleware.auth: which credentials are taken, and what is answered and logged otherwise."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from middleware.access import Access
from middleware.auth import Signing, api_key_of, auth_middleware
from middleware.auth_failures import Failures
from middleware.client_ip import client_ip_middleware
from middleware.errors import errors_middleware
from middleware.request_keys import CALLER
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.keys.ring import KeyRing
from runtime.types import Caller
from tests.support.soak import soak

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

KEY, OTHER, EXPIRED = new_key(), new_key(), new_key()
RECORDS = "".join(
    KeyRecord(Caller(id_, id_, frozenset(scopes)), 1, expires, digest(key)).line()
    for id_, key, scopes, expires in (
        ("k_all", KEY, {"*"}, None),
        ("k_chat", OTHER, {"chat"}, None),
        ("k_old", EXPIRED, {"*"}, 2),
    )
)
CHALLENGE = 'Bearer realm="warmstart"'


async def _say_who(request: web.Request) -> web.Response:
    caller = request.get(CALLER)
    return web.Response(text="nobody" if caller is None else caller.id)


async def _open(request: web.Request) -> web.Response:
    return await _say_who(request)


async def _stats(request: web.Request) -> web.Response:
    return await _say_who(request)


async def _clear(request: web.Request) -> web.Response:
    return await _say_who(request)


def _app(*, per_minute: int = 1000, signing: Signing = "off") -> web.Application:
    access = Access({_stats: "stats", _clear: "clear"}, {_open}, frozenset({"clear"}))
    auth = auth_middleware(KeyRing(RECORDS, None), access, Failures(per_minute), signing=signing)
    who = client_ip_middleware((), "x-forwarded-for", False)
    app = web.Application(middlewares=[errors_middleware, who, auth])
    for path, handler in (("/", _say_who), ("/open", _open), ("/stats", _stats), ("/clear", _clear)):
        app.router.add_get(path, handler)
    return app


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {KEY}"},
        {"AUTHORIZATION": f"BEARER   {KEY}"},
        {"X-API-Key": KEY},
        {"x-api-key": f"\t {KEY} \t"},
        {"X-API-Key": KEY, "Authorization": f"Bearer {KEY}"},
    ],
)
async def test_a_good_key(aiohttp_client: Client, headers: dict[str, str]) -> None:
    """Either header; scheme and field names in any case (RFC 9110 sections 5.1 and 11.1)."""
    response = await (await aiohttp_client(_app())).get("/", headers=headers)
    assert (response.status, await response.text()) == (200, "k_all")
    assert "WWW-Authenticate" not in response.headers


WRONG: dict[str, list[tuple[str, str]]] = {
    "unknown": [("Authorization", f"Bearer {new_key()}")],
    "unknown in the other header": [("X-API-Key", new_key())],
    "expired": [("Authorization", f"Bearer {EXPIRED}")],
    "mistyped": [("Authorization", f"Bearer {KEY[:-1]}")],
    "in another case": [("Authorization", f"Bearer {KEY.swapcase()}")],
    "quoted": [("Authorization", f'Bearer "{KEY}"')],
    "two in one": [("Authorization", f"Bearer {KEY} {KEY}")],
    "a list": [("Authorization", f"Bearer {KEY}, Bearer {KEY}")],
    "a parameter": [("Authorization", f"Bearer token={KEY}")],
    "no scheme": [("Authorization", KEY)],
    "no key": [("Authorization", "Bearer")],
    "a blank key": [("Authorization", "Bearer   ")],
    "nothing": [("Authorization", "")],
    "nothing in the other header": [("X-API-Key", "")],
    "a tab for a blank": [("Authorization", f"Bearer\t{KEY}")],
    "Basic": [("Authorization", "Basic dXNlcjpwYXNz")],
    "Basic with the key": [("Authorization", f"Basic {KEY}")],
    "Basic beside a good key": [("Authorization", "Basic dXNlcjpwYXNz"), ("X-API-Key", KEY)],
    "the other header's scheme": [("X-API-Key", f"Bearer {KEY}")],
    "two keys, both good": [("Authorization", f"Bearer {KEY}"), ("X-API-Key", OTHER)],
    "one good, one empty": [("Authorization", f"Bearer {KEY}"), ("X-API-Key", "")],
    "two lines": [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
    "two lines of the other header": [("X-API-Key", KEY), ("X-API-Key", KEY)],
    "bytes that are no text": [("X-API-Key", "\udcff\udcfe")],
    "what is kept of a key": [("X-API-Key", digest(KEY).hex())],
    "an id": [("X-API-Key", "k_all")],
    "long": [("X-API-Key", "x" * 8000)],
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
async def test_a_wrong_credential(
    aiohttp_client: Client, caplog: pytest.LogCaptureFixture, headers: list[tuple[str, str]]
) -> None:
    """401 invalid_token, the same words for each; one line in the log with the client, and none with a key."""
    http = await aiohttp_client(_app())
    response = await http.get("/", headers=CIMultiDict(headers))
    assert response.status == 401
    assert response.headers.getall("WWW-Authenticate") == [f'{CHALLENGE}, error="invalid_token"']
    problem = await response.json()
    assert (problem["code"], problem["status"]) == ("invalid_api_key", 401)
    assert problem["detail"].startswith("the credentials are not valid; ")
    (line,) = [record for record in caplog.records if record.name == "warmstart.edge"]
    assert "client 127.0.0.1" in line.getMessage()
    for key in (KEY, OTHER, EXPIRED, *(value for _, value in headers if len(value) > 10)):
        assert key not in caplog.text
        assert key not in str(problem)


async def test_every_wrong_key_gets_the_same_answer(aiohttp_client: Client) -> None:
    """Whether a key never was or has ended cannot be told from the answer, to the byte."""
    http = await aiohttp_client(_app())
    answers = []
    for key in (new_key(), EXPIRED, "x"):
        response = await http.get("/", headers={"X-API-Key": key})
        answers.append((response.status, await response.read(), sorted(set(response.headers.items()))))
    known = [(status, body, [field for field in fields if field[0] != "Date"]) for status, body, fields in answers]
    assert known[0] == known[1] == known[2]


async def test_the_log_tells_why(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Expired with the key's id, unknown, malformed, or what else was sent."""
    http = await aiohttp_client(_app())
    for headers in (
        {"X-API-Key": EXPIRED},
        {"X-API-Key": new_key()},
        {"X-API-Key": "x"},
        {"Authorization": "Basic x"},
        {"X-API-Key": OTHER, "Authorization": f"Bearer {KEY}"},
    ):
        await http.get("/", headers=headers)
    reasons = [record.getMessage().rpartition(": ")[2] for record in caplog.records if record.name == "warmstart.edge"]
    assert reasons == [
        "expired key k_old",
        "unknown key",
        "malformed key",
        "a scheme other than Bearer",
        "more than one credential",
    ]


@pytest.mark.parametrize("query", ["access_token", "api_key", "key", ""])
@pytest.mark.parametrize("path", ["/", "/stats", "/nowhere"])
async def test_no_credential(aiohttp_client: Client, caplog: pytest.LogCaptureFixture, path: str, query: str) -> None:
    """401 with a challenge that names no error (RFC 6750 section 3), what to send, and no line in the log.

    A query string ends up in logs and histories: it is no place for a key.
    """
    response = await (await aiohttp_client(_app())).get(f"{path}?{query}={KEY}" if query else path)
    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == CHALLENGE
    assert "X-API-Key" in (await response.json())["detail"]
    assert [record for record in caplog.records if record.name == "warmstart.edge"] == []


async def test_open_routes(aiohttp_client: Client) -> None:
    """Answer whatever is sent, and believe none of it."""
    http = await aiohttp_client(_app(per_minute=2))
    for headers in ({}, *(CIMultiDict(wrong) for wrong in WRONG.values()), {"X-API-Key": KEY}):
        response = await http.get("/open", headers=headers)
        assert (response.status, await response.text()) == (200, "nobody")


async def test_scopes(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """403 names what is missing (RFC 6750 section 3.1), the log the key's id too; * is not the scope admin."""
    http = await aiohttp_client(_app())
    for path, key, missing in (
        ("/stats", KEY, None),
        ("/clear", KEY, "admin"),
        ("/stats", OTHER, "stats"),
        ("/clear", OTHER, "admin"),
        ("/", OTHER, None),
    ):
        caplog.clear()
        response = await http.get(path, headers={"X-API-Key": key})
        logged = [record.getMessage() for record in caplog.records if record.name == "warmstart.edge"]
        if missing is None:
            assert (response.status, logged) == (200, [])
            continue
        assert response.status == 403
        assert response.headers["WWW-Authenticate"] == f'{CHALLENGE}, error="insufficient_scope", scope="{missing}"'
        assert (await response.json())["code"] == "insufficient_scope"
        assert logged == [f"scope missing: client 127.0.0.1, key {'k_all' if key == KEY else 'k_chat'}"]


@pytest.mark.parametrize(
    ("signing", "signed", "bare"), [("off", 401, 401), ("accepted", 200, 401), ("required", 200, 200)]
)
async def test_signatures_go_on(aiohttp_client: Client, signing: Signing, signed: int, bare: int) -> None:
    """Who has no key goes on to where signatures are checked, if that may help; else 401 says what would do."""
    http = await aiohttp_client(_app(signing=signing))
    response = await http.get("/stats", headers={"Signature-Input": "sig=()"})
    assert response.status == signed
    response = await http.get("/stats", headers={"Signature-Input": "sig=()", "X-API-Key": new_key()})
    assert response.status == 401  # a wrong key stays wrong
    response = await http.get("/stats")
    assert response.status == bare
    if bare == 401:
        also = "" if signing == "off" else ', Signature realm="warmstart"'
        assert response.headers["WWW-Authenticate"] == CHALLENGE + also


async def test_failures_are_limited(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """After half a minute's failures a wrong key gets 429 with when to come back, and the log is not flooded."""
    http = await aiohttp_client(_app(per_minute=10))
    statuses = [(await http.get("/", headers={"X-API-Key": new_key()})).status for _ in range(20)]
    assert statuses == [401] * 5 + [429] * 15
    response = await http.get("/", headers={"Authorization": "Basic x"})
    assert response.status == 429
    assert 1 <= int(response.headers["Retry-After"]) <= 12
    assert "WWW-Authenticate" not in response.headers
    assert (await response.json())["code"] == "rate_limited"
    assert len([record for record in caplog.records if record.name == "warmstart.edge"]) == 5


async def test_a_good_key_works_all_the_same(aiohttp_client: Client) -> None:
    """Nobody behind the same address is locked out by who guesses there; nor is who has sent no key told to wait."""
    http = await aiohttp_client(_app(per_minute=2))
    for _ in range(5):
        await http.get("/", headers={"X-API-Key": new_key()})
    assert (await http.get("/", headers={"X-API-Key": new_key()})).status == 429
    assert (await http.get("/", headers={"X-API-Key": KEY})).status == 200
    assert (await http.get("/clear", headers={"X-API-Key": KEY})).status == 403
    assert (await http.get("/")).status == 401


async def test_what_is_no_failure(aiohttp_client: Client) -> None:
    """Neither a good key, nor none, nor one without the scope counts as a guess."""
    http = await aiohttp_client(_app(per_minute=2))
    for _ in range(5):
        for headers in ({"X-API-Key": KEY}, {}):
            await http.get("/clear", headers=headers)
    assert (await http.get("/", headers={"X-API-Key": new_key()})).status == 401


_PIECES = [
    KEY,
    OTHER,
    "Bearer",
    "bearer ",
    "Basic ",
    " ",
    "\t",
    ",",
    "=",
    '"',
    "é",
    "\udcff",
    "\x00",
    "x",
    "; ",
    "\xa0",
]


@settings(max_examples=soak(10_000))
@given(st.binary(max_size=12))  # each byte begins a line or chooses a piece of it
def test_any_headers(chosen: bytes) -> None:
    """Whatever is sent: the one key that all lines show, bare; none; or a fault that repeats nothing."""
    lines: list[list[str]] = []
    for byte in chosen:
        if byte % 4 == 0 or not lines:
            lines.append(["Authorization" if byte % 8 == 0 else "X-API-Key", ""])
        else:
            lines[-1][1] += _PIECES[byte // 4 % len(_PIECES)]
    fault, key = "", None
    try:
        key = api_key_of(CIMultiDict((name, value) for name, value in lines))
    except ValueError as error:
        fault = str(error)
    assert fault in ("", "more than one credential", "a scheme other than Bearer", "an empty API key")
    assert (key is None) == (not lines or bool(fault))
    if key is not None:
        assert len(lines) == len({name for name, _ in lines})
        assert key == key.strip(" ") != ""
        for name, value in lines:
            assert re.fullmatch(r"[ \t]*" if name == "X-API-Key" else "(?i:bearer) +", value[: value.rindex(key)])
