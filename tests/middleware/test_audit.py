"""middleware.audit: one record per request, with who and what and how it ended, and nothing that is secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from app import create_app
from runtime.audit.chain import AuditKeys, prompt_hash
from runtime.errors import SettingsError
from runtime.settings import Settings
from tests.support.fakes import FakeEngine, fake_context, serving, until
from tests.support.full_disk import full_disk

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

SECRET = "a secret of at least thirty-two characters"
PROMPT = "a prompt that is nobody's business"
KEY = "wsk_a-key-that-nobody-may-see"
RECORD = {
    "id": "k_1",
    "name": 'the "bätch" jobs, }',
    "scopes": ["*"],
    "created": 1,
    "expires": None,
    "sha256": sha256(KEY.encode()).hexdigest(),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log is."""
    return tmp_path / "audit.log"


def app(path: Path, engine: FakeEngine | None = None, **settings: Any) -> web.Application:
    """The application on a fake model."""
    loaded = Settings.load(audit_log=path, audit_key=SECRET, **settings)
    return create_app(loaded, fake_context(engine))


def records(path: Path) -> list[dict[str, Any]]:
    """All records."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def requests(path: Path) -> list[dict[str, Any]]:
    """The records of requests."""
    return [record for record in records(path) if record["event"] == "request"]


def content(path: Path) -> str:
    """The file as it is."""
    return path.read_bytes().decode("ascii")


async def test_record(aiohttp_client: Client, path: Path) -> None:
    """Who, from where, what, how it ended, what it cost; of the prompt a keyed hash, which can be told again."""
    http = await aiohttp_client(app(path, FakeEngine(token_length=7), api_keys=json.dumps(RECORD)))
    response = await http.post(
        "/generate?token=in-the-query",
        json={"prompt": PROMPT, "model": "fake"},
        headers={
            "Authorization": f"Bearer {KEY}",
            "X-Request-Id": "mine",
            "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
            "Cookie": "session=a-cookie",
        },
    )
    assert response.status == 200
    (record,) = requests(path)
    assert 0 < record.pop("duration_ms") < 10_000
    assert record.pop("time")
    assert len(record.pop("mac")) == 64
    assert record == {
        "seq": 2,
        "event": "request",
        "request_id": "mine",
        "trace_id": "a" * 32,
        "key": "k_1",
        "key_name": RECORD["name"],
        "client": "127.0.0.1",
        "peer": "127.0.0.1",
        "method": "POST",
        "path": "/generate",
        "operation": "generate",
        "status": 200,
        "result": "ok",
        "reason": None,
        "tokens_in": 7,
        "tokens_out": 3,
        "model": "fake",
        "prompt_hash": prompt_hash(AuditKeys.derive(SECRET).prompt, {"prompt": PROMPT}),
    }
    log = content(path)
    for secret in (
        PROMPT,
        KEY,
        RECORD["sha256"],
        SECRET,
        "in-the-query",
        "a-cookie",
        sha256(PROMPT.encode()).hexdigest(),
    ):
        assert secret not in log


@pytest.mark.parametrize(
    ("method", "target", "options", "status", "reason"),
    [
        pytest.param("POST", "/generate", {"json": {"prompt": 5}}, 400, "invalid_request", id="bad field"),
        pytest.param("POST", "/generate", {"data": b"{"}, 415, None, id="no JSON"),
        pytest.param("GET", "/nowhere", {}, 404, "not_found", id="no such path"),
        pytest.param("GET", "/static/none.js", {}, 404, "not_found", id="no such file"),
        pytest.param("PUT", "/generate", {}, 405, "method_not_allowed", id="no such method"),
        pytest.param("POST", "/generate", {"data": b"x" * 2000}, 413, "payload_too_large", id="too large"),
        pytest.param("GET", "/models", {"headers": {"X-Forwarded-For": "8.8.8.8"}}, 403, None, id="address"),
        pytest.param("GET", "/livez", {"headers": {"X-Forwarded-For": "x"}}, 403, None, id="probe from nowhere"),
    ],
)
async def test_refused_requests_are_kept(
    aiohttp_client: Client,
    path: Path,
    method: str,
    target: str,
    options: dict[str, Any],
    status: int,
    reason: str | None,
) -> None:
    """Whoever refuses, whatever was asked for: with the status and the error's code."""
    http = await aiohttp_client(app(path, max_body_bytes=1024, trusted_proxies="127.0.0.1"))
    response = await http.request(method, target, **options)
    assert response.status == status
    (record,) = requests(path)
    assert (record["status"], record["result"], record["path"]) == (status, "refused", target)
    assert record["reason"] == (reason or (await response.json())["code"])


async def test_a_wrong_key_is_kept_without_the_key(aiohttp_client: Client, path: Path) -> None:
    """Nobody is named, the attempt and its address are."""
    http = await aiohttp_client(app(path, api_keys=json.dumps(RECORD)))
    assert (await http.get("/models", headers={"X-API-Key": "wsk_wrong-canary"})).status == 401
    (record,) = requests(path)
    assert (record["key"], record["client"], record["reason"]) == (None, "127.0.0.1", "invalid_api_key")
    assert "wrong-canary" not in content(path)


async def test_a_change_of_the_keys_is_kept(aiohttp_client: Client, path: Path, tmp_path: Path) -> None:
    """Which keys came and which went, before the first request that they decide."""
    file = tmp_path / "keys"
    file.write_text(json.dumps(RECORD))
    file.chmod(0o600)
    http = await aiohttp_client(app(path, api_keys_file=file))
    assert (await http.get("/models", headers={"X-API-Key": KEY})).status == 200
    file.write_text(json.dumps(RECORD | {"id": "k_2"}))

    async with asyncio.timeout(10):
        while "keys" not in [record["event"] for record in records(path)]:
            await http.get("/models", headers={"X-API-Key": KEY})
    *_, before, change, after = records(path)
    assert (change["new"], change["gone"]) == (["k_2"], ["k_1"])
    assert (before["key"], after["key"]) == ("k_1", "k_2")


async def test_what_is_left_out(aiohttp_client: Client, path: Path) -> None:
    """Good answers of probes, of figures that are polled, of preflights, and of pages and their files."""
    http = await aiohttp_client(app(path, cors_origins="https://a.example"))
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    for target in ("/livez", "/readyz", "/health", "/metrics", "/stats", "/", "/docs", "/openapi.json"):
        assert (await http.get(target)).status == 200
    assert (await http.options("/generate", headers=preflight)).status == 200
    assert requests(path) == []
    assert (await http.get("/models")).status == 200
    assert (await http.head("/models")).status == 200
    assert [(record["method"], record["operation"]) for record in requests(path)] == [
        ("GET", "models"),
        ("HEAD", "models"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_told(aiohttp_client: Client, path: Path, stream: bool) -> None:
    """Also of a stream, which began with 200 and failed later."""
    http = await aiohttp_client(app(path, FakeEngine(fail_after=1, failure=RuntimeError("planted"))))
    response = await http.post("/generate", json={"prompt": "x", "stream": stream})
    await response.read()
    (record,) = requests(path)
    assert (record["status"], record["result"]) == (200 if stream else 500, "failed")
    assert record["reason"] == "internal_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(path: Path, stream: bool) -> None:
    """The record says so, and what it had cost by then."""
    engine = FakeEngine(words=("a",) * 1000, pause=0.01)
    async with serving(fake_context(engine), audit_log=path, audit_key=SECRET) as url:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"prompt": "x", "stream": stream, "max_new_tokens": 1000}).encode()
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        await until(lambda: engine.generated > 3)
        writer.close()
        await until(lambda: requests(path))
        del reader
    (record,) = requests(path)
    assert (record["status"], record["result"], record["tokens_in"]) == (499, "client_gone", 1)


async def test_nothing_that_is_sent_can_forge_a_line(aiohttp_client: Client, path: Path) -> None:
    """Path, method, model and request id, with line breaks and control characters, raw or escaped."""
    http = await aiohttp_client(app(path))
    forged = '\r\n{"seq":3,"event":"request","key":"admin"}\r\n\u2028\u0085\x00\x1b'
    await http.get("/%0d%0a%7B%22seq%22:3%7D%0a%00%1b%E2%80%A8")
    await http.get("/models", headers={"User-Agent": 'x"}{"seq":9', "X-Request-Id": 'a"b'})
    await http.post("/generate", json={"prompt": forged, "model": forged})
    await http.get("/" + "a" * 4000)
    *lines, rest = content(path).split("\n")
    assert rest == ""
    found = [json.loads(line) for line in lines]
    assert [record["seq"] for record in found] == [1, 2, 3, 4, 5]
    assert found[1]["path"] == '/\r\n{"seq":3}\n\x00\x1b\u2028'
    assert found[3]["model"] == forged
    assert len(found[4]["path"]) == 512
    assert all(" " <= character <= "~" for line in lines for character in line)


async def test_start_and_stop(aiohttp_client: Client, path: Path) -> None:
    """The application's life is recorded with it, and the file is let go at its end."""
    http = await aiohttp_client(app(path))
    await http.close()
    assert [record["event"] for record in records(path)] == ["start", "stop"]
    assert (await aiohttp_client(app(path))).port


async def test_a_second_service_is_refused_at_its_start(aiohttp_client: Client, path: Path) -> None:
    """As a wrong setting."""
    await aiohttp_client(app(path))
    with pytest.raises(SettingsError, match="AUDIT_LOG: another process writes"):
        await aiohttp_client(app(path))


async def test_a_full_disk_does_not_stop_the_service(aiohttp_client: Client, path: Path) -> None:
    """Requests are answered, and the figures tell of the records that are lost."""
    http = await aiohttp_client(app(path))
    with full_disk(path):
        for _ in range(3):
            assert (await http.post("/generate", json={"prompt": "x"})).status == 200
        assert "warmstart:audit_errors_total 3.0" in await (await http.get("/metrics")).text()
    assert (await http.get("/models")).status == 200
    assert sum(record.get("lost", 0) for record in records(path)) == 3


async def test_a_full_disk_stops_what_must_be_recorded(aiohttp_client: Client, path: Path) -> None:
    """With AUDIT_REQUIRED nothing is answered that is not recorded, probes aside, until it can be again."""
    engine = FakeEngine()
    http = await aiohttp_client(app(path, engine, audit_required=True))
    with full_disk(path):
        withheld = await http.post("/generate", json={"prompt": "x"})
        assert (withheld.status, (await withheld.json())["code"]) == (503, "audit_unavailable")
        assert len(engine.jobs) == 1  # it had run when it was found out
        refused = await http.post("/v1/completions", json={"prompt": "x"})
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "audit_unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert len(engine.jobs) == 1
        assert (await http.get("/livez")).status == 200
        assert (await http.get("/models")).status == 503
    await http.get("/models")  # found to work again by this one at the latest
    assert (await http.post("/generate", json={"prompt": "x"})).status == 200
    assert requests(path)[-1]["result"] == "ok"


async def test_no_log_by_default(aiohttp_client: Client) -> None:
    """Without AUDIT_LOG there is no middleware and no file."""
    application = create_app(Settings.load(), fake_context())
    assert "audit" not in [getattr(middleware, "__name__", "") for middleware in application.middlewares]
