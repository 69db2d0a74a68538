"""POST /events of the real application: CloudEvents behind the whole edge."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http

from app import create_app
from runtime.audit.chain import AuditKeys, prompt_hash
from runtime.errors import ModelLoading, SettingsError
from runtime.keys.records import KeyRecord, digest, new_key
from runtime.settings import Settings
from runtime.types import Caller
from tests.support.fakes import FakeEngine, fake_context, serving, until
from tests.support.models import ROOT

Client = Callable[[web.Application], Awaitable[TestClient[web.Request, web.Application]]]

STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BATCH = {"Content-Type": "application/cloudevents-batch+json"}
GENERATE = {"prompt": "Hi", "max_new_tokens": 2}
KEYS = {scope: new_key() for scope in ("events", "generate", "*", "admin")}
RECORDS = "\n".join(
    KeyRecord(Caller(f"k_{digest(key).hex()[:8]}", scope, frozenset({scope})), 1, None, digest(key)).line()
    for scope, key in KEYS.items()
)


def event(operation: str = "generate", data: Any = GENERATE, **more: Any) -> dict[str, Any]:
    """An event that asks for an operation."""
    return {"specversion": "1.0", "id": "1", "source": "/here", "type": f"warmstart.{operation}", "data": data} | more


def application(ctx: Any = None, **settings: Any) -> web.Application:
    """The real one on a fake model, with records in memory."""
    return create_app(Settings.load(**{"idempotency": "memory"} | settings), ctx or fake_context())


@pytest.mark.parametrize(
    ("operation", "path", "payload"),
    [
        ("generate", "/generate", GENERATE),
        ("complete", "/complete", {"prompt": "Hé"}),
        ("chat", "/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("completions", "/v1/completions", {"prompt": ["a", "b"]}),
        ("compare", "/models/compare", {"prompt": "Hi", "variants": [{"seed": 1}, {"seed": 2}]}),
        ("models", "/models", None),
    ],
)
async def test_the_same_answer_in_every_mode(aiohttp_client: Client, operation: str, path: str, payload: Any) -> None:
    """Data are byte for byte what the operation's own route answers, and the package reads the events."""
    http = await aiohttp_client(application())
    asked = {name: value for name, value in event(operation, payload).items() if value is not None}
    attributes = {name: value for name, value in asked.items() if name != "data"}
    written = CloudEvent(attributes | {"datacontenttype": "application/json"}, payload)

    async def route() -> bytes:
        fresh = await aiohttp_client(application())
        answer = await (fresh.get(path) if payload is None else fresh.post(path, json=payload))
        assert answer.status == 200
        return await answer.read()

    wanted = await route()
    headers, body = to_binary(written)
    answer = await http.post("/events", data=b"" if payload is None else body, headers=headers)
    assert (answer.status, await answer.read()) == (200, wanted)
    assert answer.headers["ce-type"] == f"warmstart.{operation}.result"
    headers, body = to_structured(written)
    answer = await http.post("/events", data=body, headers=headers)
    text = await answer.read()
    assert (answer.status, answer.headers["Content-Type"]) == (200, STRUCTURED["Content-Type"])
    assert wanted in text
    assert from_http(answer.headers, text).data == json.loads(wanted)
    answer = await http.post("/events", data=json.dumps([asked, asked]), headers=BATCH)
    assert (answer.status, answer.headers["Content-Type"]) == (200, BATCH["Content-Type"])
    assert (await answer.read()).count(wanted) == 2


async def test_streaming_is_not_asked_for(aiohttp_client: Client) -> None:
    """An event has one answer: one that asks for a stream gets it whole."""
    http = await aiohttp_client(application())
    answer = await http.post("/events", json=event(data=GENERATE | {"stream": True}), headers=STRUCTURED)
    assert (await answer.json(content_type=None))["data"]["text"] == "HiHello there"


async def test_its_work_goes_after_that_of_people() -> None:
    """The engine is told that nobody waits for it."""
    engine = FakeEngine()
    async with serving(fake_context(engine), idempotency="off") as url, aiohttp.ClientSession() as http:
        for path, body, headers in (("/generate", GENERATE, {}), ("/events", event(), STRUCTURED)):
            async with http.post(url + path, json=body, headers=headers) as answer:
                assert answer.status == 200
    assert [job.background for jobs in engine.jobs for job in jobs] == [False, True]


async def test_scopes(aiohttp_client: Client) -> None:
    """A key needs the scope events, or all of them; what it may call then is what events may call."""
    http = await aiohttp_client(application(api_keys=RECORDS))
    for scope, status in (("events", 200), ("*", 200), ("generate", 403), ("admin", 403)):
        answer = await http.post("/events", json=event(), headers=STRUCTURED | {"X-API-Key": KEYS[scope]})
        assert (scope, answer.status) == (scope, status)
    assert (await http.post("/events", json=event(), headers=STRUCTURED)).status == 401


async def test_an_admins_operations(aiohttp_client: Client) -> None:
    """They are for no event, whatever its key, unless EVENTS_OPERATIONS names them."""
    asked = event("load_model", {"model": "fake"})
    for operations, status in (((), 403), (("load_model",), 200)):
        http = await aiohttp_client(application(api_keys=RECORDS, events_operations=operations))
        answer = await http.post("/events", json=asked, headers=STRUCTURED | {"X-API-Key": KEYS["events"]})
        assert answer.status == status
        if status == 403:
            error = (await answer.json(content_type=None))["data"]["error"]
            assert error["code"] == "insufficient_scope"
    answer = await http.post("/events", json=event(), headers=STRUCTURED | {"X-API-Key": KEYS["*"]})
    assert answer.status == 403  # it names all that they may


def test_operations_that_are_none() -> None:
    """A wrong name stops the service at its start, and is named."""
    with pytest.raises(SettingsError, match="EVENTS_OPERATIONS: no operation 'generat'"):
        application(events_operations=("generat",))


async def test_keys_are_apart(aiohttp_client: Client) -> None:
    """The same source and id of two keys are two events; of one key they are one."""
    engine = FakeEngine()
    http = await aiohttp_client(application(fake_context(engine), api_keys=RECORDS))
    for scope, prompt, status in (
        ("events", "mine", 200),
        ("*", "other", 200),
        ("events", "mine", 200),
        ("events", "changed", 422),
    ):
        headers = STRUCTURED | {"X-API-Key": KEYS[scope]}
        answer = await http.post("/events", json=event(data={"prompt": prompt}), headers=headers)
        assert answer.status == status
    assert len(engine.jobs) == 2


async def test_tokens_are_charged(aiohttp_client: Client) -> None:
    """An event costs what the same work costs over HTTP, a repeated one its request alone."""
    settings = {"rate_limit_enabled": True, "rate_limit_tokens_per_minute": 60, "rate_limit_burst": 0.1}
    http = await aiohttp_client(application(**settings))
    answer = await http.post("/events", json=event(), headers=STRUCTURED)
    assert answer.headers["RateLimit"].partition('"tokens";r=')[2].startswith("3;")
    answer = await http.post("/events", json=event(), headers=STRUCTURED)
    assert answer.status == 200
    answer = await http.post("/events", json=[event(id="2"), event(id="3")], headers=BATCH)
    assert answer.status == 429
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await answer.json(content_type=None))["code"] == "rate_limited"


async def test_what_the_edge_refuses(aiohttp_client: Client) -> None:
    """Bodies are bounded as everywhere, and no page of another origin may call."""
    http = await aiohttp_client(application(max_body_bytes=2000, max_json_depth=5, cors_origins=["https://a.example"]))

    async def status(data: bytes | str, **headers: str) -> int:
        return (await http.post("/events", data=data, headers=STRUCTURED | headers)).status

    assert await status(json.dumps(event(data={"prompt": "x" * 2000}))) == 413
    assert await status(gzip.compress(json.dumps(event()).encode()), **{"Content-Encoding": "gzip"}) == 415
    assert await status(json.dumps(event(data={"a": {"b": {"c": {"d": {"e": 1}}}}}))) == 400
    answer = await http.post("/events", json=event(), headers=STRUCTURED | {"Origin": "https://a.example"})
    assert answer.status == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert (await http.get("/events")).status == 405
    for bad, param in (({**event(), "id": ""}, "id"), ({**event(), "specversion": "0.3"}, "specversion")):
        answer = await http.post("/events", json=bad, headers=STRUCTURED)
        assert (answer.status, (await answer.json(content_type=None))["param"]) == (400, param)
        assert answer.content_type == "application/problem+json"


async def test_to_be_sent_again(aiohttp_client: Client) -> None:
    """What passes by itself is 503 with the time to wait, as a problem."""
    http = await aiohttp_client(application(fake_context(failure=ModelLoading("it loads", retry_after=7))))
    answer = await http.post("/events", json=event(), headers=STRUCTURED)
    assert (answer.status, answer.content_type) == (503, "application/problem+json")
    assert int(answer.headers["Retry-After"]) >= 7


async def test_lines_in_the_log(aiohttp_client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """One for each event and one for the request, which has the tokens of all; prompts only where that is asked for."""
    caplog.set_level(logging.INFO)
    for asked, log_prompts in ((event(data={"prompt": "c4n4ry"}), False), (event(data={"prompt": "w4nted"}), True)):
        http = await aiohttp_client(application(log_prompts=log_prompts))
        await http.post("/events", json=[asked, {**asked, "id": "2"}], headers=BATCH)
    lines = [vars(record) for record in caplog.records]
    assert [(line["tokens_in"], line["tokens_out"]) for line in lines if line["name"] == "warmstart.access"] == [
        (2, 6)
    ] * 2
    events = [line for line in lines if line["msg"] % line["args"] == "event acked"]
    assert [line["operation"] for line in events] == ["generate"] * 4
    assert "c4n4ry" not in str(lines)
    assert [line["prompt"] for line in lines if "prompt" in line] == ["w4nted"] * 2


async def test_records_in_the_audit_log(aiohttp_client: Client, tmp_path: Path) -> None:
    """A request's record has its prompt as a hash, the tokens, and why it was refused."""
    secret = "0123456789abcdef" * 4
    http = await aiohttp_client(application(audit_log=tmp_path / "audit.log", audit_key=secret))
    await http.post("/events", json=event(), headers=STRUCTURED)
    await http.post("/events", json=event("nothing", id="n"), headers=STRUCTURED)
    await http.post("/events", json=[event(id="2"), event(id="3", data={"prompt": "Ho"})], headers=BATCH)
    await http.close()
    records = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    single, refused, batch = [record for record in records if record.get("path") == "/events"]
    key = AuditKeys.derive(secret).prompt
    assert (single["operation"], single["tokens_in"], single["tokens_out"]) == ("events", 1, 2)
    assert single["prompt_hash"] == prompt_hash(key, GENERATE)
    assert (refused["status"], refused["result"], refused["reason"]) == (422, "refused", "not_found")
    assert batch["prompt_hash"] == prompt_hash(key, {"prompt": [GENERATE, {"prompt": "Ho"}]})
    assert (batch["tokens_in"], batch["tokens_out"]) == (2, 5)


async def test_metrics(aiohttp_client: Client) -> None:
    """Events are counted by operation and outcome, and errors by code, each of a batch."""
    http = await aiohttp_client(application())
    await http.post("/events", json=[event(), event("nothing", id="2")], headers=BATCH)
    await http.post("/events", json=event(), headers=STRUCTURED)
    text = await (await http.get("/metrics")).text()
    for labels in ('operation="generate",outcome="acked"', 'operation="generate",outcome="repeated"'):
        assert f'warmstart:events_total{{{labels},source="http"}} 1.0' in text
    assert 'warmstart:events_total{operation="other",outcome="rejected",source="http"} 1.0' in text
    assert 'code="not_found"} 1.0' in text


async def test_records_outlive_the_service(aiohttp_client: Client, tmp_path: Path) -> None:
    """Nothing is opened before the first event; what one process has answered, the next one does not do again."""
    engine, file = FakeEngine(), tmp_path / "events.sqlite"
    for _ in range(2):
        http = await aiohttp_client(application(fake_context(engine), idempotency="sqlite", cache_dir=tmp_path))
        assert (await http.post("/generate", json=GENERATE)).status == 200
        assert file.exists() == (len(engine.jobs) > 1)
        assert (await http.post("/events", json=event(), headers=STRUCTURED)).status == 200
        await http.close()
    assert len(engine.jobs) == 3  # two of people, one of the event


async def test_a_sender_that_goes_away() -> None:
    """Its generation stops, and the event can be sent again."""
    engine = FakeEngine(pause=0.01, words=("word",) * 1000)
    async with serving(fake_context(engine), idempotency="memory") as url, aiohttp.ClientSession() as http:
        asked = event(data={"prompt": "Hi", "max_new_tokens": 1000})
        with pytest.raises(TimeoutError):
            await http.post(f"{url}/events", json=asked, headers=STRUCTURED, timeout=aiohttp.ClientTimeout(0.2))
        await until(lambda: not engine.open_streams)
        engine.pause = 0
        async with http.post(f"{url}/events", json=asked, headers=STRUCTURED) as answer:
            assert answer.status == 200


async def test_a_worker_has_no_such_route(aiohttp_client: Client) -> None:
    """The side port of a process that takes its work from a queue is for probes."""
    http = await aiohttp_client(create_app(Settings.load(), fake_context(), full_api=False))
    assert (await http.post("/events", json=event(), headers=STRUCTURED)).status == 404


def test_a_start_does_not_wait_for_the_format() -> None:
    """What reads CloudEvents is imported by the first event."""
    program = "import app, sys; sys.exit('cloudevents' in sys.modules or 'flask' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
