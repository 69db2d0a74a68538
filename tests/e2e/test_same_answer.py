"""Every operation gives the same answer whichever way it is called."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import server
from app import ROUTES
from handlers.cli import generate as command_line
from handlers.context import Context
from handlers.dispatch.events import Dispatcher
from handlers.generation.stored_responses import save
from handlers.lambda_function import Function
from handlers.local import build_context, invoke, invoke_stream
from handlers.operations import OPERATIONS
from runtime.error_response import error_body
from runtime.errors import ServiceError
from runtime.events.aws_lambda.kinds import FunctionError
from runtime.events.envelope import TYPE_PREFIX, Envelope, encode
from runtime.events.outcome import Policy
from runtime.events.processor import Processor
from runtime.events.queues.factory import open_source, open_submitter
from runtime.response_cache.memory import MemoryStore
from runtime.settings import Settings
from tests.events.brokers import Broker, Nats, Redis
from tests.support.batches import with_batches
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import fake_context, serving

TEXT = {"prompt": ["a", "é😀"], "num_return_sequences": 2, "max_new_tokens": 2, "seed": 1, "stop": "x"}
SHAPED: dict[str, Any] = {
    "min_p": 0.1,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"7": -100, "5": 1.5},
}
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "é"}]},
    ],
    "n": 2,
    "temperature": "0.5",
}
RESPONSE = {"id": "resp_1", "object": "response", "model": "fake", "output": []}
NEUTRAL: dict[str, Any] = {"top_p": None, "stop": [], "tools": [], "response_format": {"type": "text"}}
CALLING: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        },
        {"role": "tool", "content": "y", "tool_call_id": "1"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
}
PAYLOADS: dict[str, list[dict[str, Any]]] = {
    "health": [{}],
    "model_info": [{}, {"model": "fake"}],
    "models": [{}],
    "get_model": [{"model": "fake"}],
    "load_model": [{"model": "fake"}],
    "unload_model": [{"model": "fake"}],
    "default_model": [{"model": "fake"}],
    "cache_stats": [{}],
    "clear_cache": [{}, {"model": "fake", "prefix": "0af"}],
    "stats": [{}],
    "generate": [TEXT, {"prompt": ""}, SHAPED | {"prompt": "x", "logprobs": 2, "min_new_tokens": 3}],
    "complete": [TEXT | {"echo": True, "logprobs": 0}, {"prompt": "x"}],
    "completions": [
        {"prompt": ["a", "é😀"], "n": 2, "echo": True, "logprobs": 2, "stop": "x", "temperature": None},
        SHAPED | {"prompt": "x", "max_tokens": 0, "echo": True, "logprobs": 0},
        {"prompt": [[0, 1], "x"], "return_token_ids": True, "best_of": 1, "stop_token_ids": [7]},
    ],
    "decisions": [
        {"input": "é", "questions": [{"type": "predicate", "instructions": "x", "name": None}]},
        {
            "input": [{"role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]}],
            "questions": [
                {"type": "choice", "name": "é", "instructions": "x", "choices": [{"value": "a"}, {"value": True}]},
                {"type": "score", "instructions": "x", "levels": [{"label": "a"}, {"label": "b", "description": "c"}]},
            ],
            "model": "fake",
        },
    ],
    "embeddings": [
        {"input": "é"},
        {"input": ["a", [5, 6], "é😀"], "encoding_format": "base64", "dimensions": 2, "truncate": "END"},
    ],
    "rerank": [{"query": "é", "documents": ["a", {"text": "é"}], "top_n": 1, "instruction": "x"}],
    "score": [{"text_1": "a", "text_2": ["a", "é"]}, {"queries": ["a", "b"], "documents": ["b", "b"]}],
    "classify": [{"input": ["a", "é"], "use_activation": False}],
    "tokenize": [{"prompt": "x", "return_token_strs": True}, {"messages": CHAT["messages"]}],
    "detokenize": [{"tokens": [0, 2]}],
    "tokenizer_info": [{}, {"model": "fake"}],
    "apply_template": [{"messages": CHAT["messages"], "add_generation_prompt": False}],
    "compare": [
        {"prompt": "x", "variants": [{"seed": 1}, {"label": "b", "temperature": 0}]},
        SHAPED | {"messages": CHAT["messages"], "variants": [{"model": "other"}], "score": False},
    ],
    "responses": [
        {"input": "é", "instructions": "Be brief.", "temperature": "0.5", "stop": None},
        {
            "input": [
                {"role": "developer", "content": "Be brief."},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "é"}]},
                {"type": "reasoning", "summary": []},
            ],
            "include": ["message.output_text.logprobs"],
            "top_logprobs": 2,
            "max_output_tokens": 2,
            "metadata": {"a": "b"},
            "store": True,
        },
    ],
    "get_response": [{"response_id": "resp_1"}],
    "delete_response": [{"response_id": "resp_1"}],
    "messages": [
        {"messages": [{"role": "user", "content": "é"}], "max_tokens": 9},
        {
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [{"role": "user", "content": [{"type": "text", "text": "é"}]}],
            "max_tokens": 2,
            "stop_sequences": ["x"],
            "top_k": 3,
        },
    ],
    "ollama_chat": [
        {"messages": [{"role": "user", "content": "é"}], "stream": False},
        {
            "model": "fake:latest",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "é"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                {"role": "tool", "content": "x", "tool_name": "f"},
            ],
            "options": {"num_predict": 2, "seed": 1, "stop": "x", "num_ctx": 512},
            "logprobs": True,
            "top_logprobs": 2,
            "keep_alive": "5m",
            "stream": False,
        },
        {"messages": [], "stream": False},
    ],
    "ollama_generate": [
        {"prompt": "é", "system": "Be brief.", "stream": False},
        {"prompt": "x", "raw": True, "logprobs": True, "options": {"num_predict": 2, "top_k": 3}, "stream": False},
        {"model": "fake", "keep_alive": 0, "stream": False},
    ],
    "ollama_embed": [{"input": "é"}, {"input": ["a", "é😀"], "dimensions": 2}, {"input": []}],
    "ollama_embeddings": [{"prompt": "é"}, {}],
    "ollama_tags": [{}],
    "ollama_ps": [{}],
    "ollama_show": [{}, {"name": "fake"}],
    "ollama_version": [{}],
    "chat_input_tokens": [{"messages": [{"role": "user", "content": "é"}], "max_tokens": 2, "stream": True}],
    "response_input_tokens": [{"instructions": "Be brief.", "input": [{"type": "input_text", "text": "é"}]}],
    "count_tokens": [{"system": "Be brief.", "messages": [{"role": "user", "content": "é"}]}],
    "upload_file": [
        {"purpose": "batch", "file": "é"},
        {"purpose": "batch", "file": "", "filename": "é", "expires_after": {"anchor": "created_at", "seconds": 3600}},
    ],
    "list_files": [{}, {"limit": "1", "order": "asc", "purpose": "batch"}],
    "get_file": [{"file_id": "file-1"}],
    "file_content": [{"file_id": "file-2"}],
    "delete_file": [{"file_id": "file-2"}],
    "create_batch": [
        {"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        {
            "input_file_id": "file-2",
            "endpoint": "/complete",
            "completion_window": "1m",
            "metadata": {"é": "😀"},
            "output_expires_after": {"anchor": "created_at", "seconds": 3600},
        },
    ],
    "list_batches": [{}, {"limit": "1"}],
    "get_batch": [{"batch_id": "batch_1"}],
    "cancel_batch": [{"batch_id": "batch_1"}],
    "chat": [CHAT | NEUTRAL, CHAT | CALLING, SHAPED | CHAT | {"logprobs": True, "top_logprobs": 3, "min_tokens": 2}],
}
WRONG: dict[str, dict[str, Any]] = {
    "health": {"x": "1"},
    "model_info": {"model": "other"},
    "models": {"x": "1"},
    "get_model": {"model": "other"},
    "load_model": {"model": "other"},
    "unload_model": {"model": "other"},
    "default_model": {"model": ""},
    "cache_stats": {"x": "1"},
    "clear_cache": {"prefix": "X"},
    "stats": {"x": "1"},
    "generate": {"prompt": []},
    "complete": {"prompt": "x", "model": "other"},
    "completions": {"prompt": "x", "logprobs": 21},
    "decisions": {"input": "x", "questions": [{"type": "choice", "instructions": "x", "choices": []}]},
    "embeddings": {"input": "x" * 99},
    "rerank": {"query": "x", "documents": []},
    "score": {"text_1": "x", "documents": "x"},
    "classify": {"input": "x", "model": "other"},
    "tokenize": {"prompt": "x", "content": "x"},
    "detokenize": {"tokens": [256]},
    "tokenizer_info": {"model": "other"},
    "apply_template": {"messages": []},
    "compare": {"prompt": "x", "variants": [{}, {"temperature": 3}]},
    "responses": {"input": [{"role": "nobody", "content": "x"}]},
    "get_response": {"response_id": "resp_2"},
    "delete_response": {"response_id": "resp_2"},
    "messages": {"messages": [{"role": "user", "content": "x"}]},
    "ollama_chat": {"messages": [{"role": "user", "content": "x"}], "options": {"mirostat": 1}, "stream": False},
    "ollama_generate": {"prompt": "x", "suffix": "y", "stream": False},
    "ollama_embed": {"input": "x", "dimensions": 0},
    "ollama_embeddings": {"prompt": "x", "model": "other"},
    "ollama_tags": {"x": "1"},
    "ollama_ps": {"x": "1"},
    "ollama_show": {"model": "other"},
    "ollama_version": {"x": "1"},
    "chat_input_tokens": {"messages": []},
    "response_input_tokens": {"input": []},
    "count_tokens": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
    "upload_file": {"purpose": "vision", "file": "x"},
    "list_files": {"limit": "0"},
    "get_file": {"file_id": "file-3"},
    "file_content": {"file_id": "file-3"},
    "delete_file": {"file_id": "file-1"},
    "create_batch": {"input_file_id": "file-1", "endpoint": "/v1/images", "completion_window": "24h"},
    "list_batches": {"after": "batch_2"},
    "get_batch": {"batch_id": "batch_2"},
    "cancel_batch": {"batch_id": "batch_2"},
    "chat": {"messages": [{"role": "nobody", "content": "x"}]},
}
CALLS = [
    pytest.param(route, payload, id=f"{route.path} {i}")
    for route in ROUTES
    for i, payload in enumerate(PAYLOADS[route.operation])
]


def context(owner: str = "") -> Context:
    """The same for every way in: same words, same ids, same clock, same stored response; files and a batch of one."""
    ctx = replace(fake_context(FakeEncoder(token_length=len)), responses=MemoryStore(1 << 20, 60, lambda: 0.0))
    ctx = with_batches(ctx, owner)
    for caller in ("", "events:lambda:direct"):
        save({"input": "é"}, RESPONSE, replace(ctx, caller=lambda caller=caller: caller))
    return ctx


async def _http(route: Any, payload: dict[str, Any]) -> tuple[int, Any]:
    async with serving(context()) as url, aiohttp.ClientSession() as session:
        left = {name: value for name, value in payload.items() if name not in route.fields}
        fields = {"params": left} if route.method in ("GET", "DELETE") else {"json": left}
        path = route.plain_path.format(**payload)
        async with session.request(route.method, url + path, **fields) as response:
            if OPERATIONS[route.operation].raw and response.status == 200:
                return response.status, {"content": await response.text("utf-8")}
            return response.status, await response.json(content_type=None)


async def _command_line(
    operation: str, payload: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, Any]:
    monkeypatch.setattr(command_line, "build_context", lambda settings: context())
    monkeypatch.setattr(command_line, "setup_logging", lambda *args: None)  # the process's logs are not ours
    capsys.readouterr()
    status = await asyncio.to_thread(
        server.main, ["invoke", operation, json.dumps(payload)]
    )  # it runs a loop of its own
    (line,) = capsys.readouterr().out.splitlines()
    return status, json.loads(line)


Answer = tuple[str, bytes]
"""``result`` or the error's code, and the body."""

EVERYTHING = {"events_operations": ",".join(OPERATIONS), "idempotency": "off"}


async def _lambda(operation: str, payload: dict[str, Any], ctx: Context) -> Answer:
    try:
        function = Function(Settings.load(**EVERYTHING), ctx)
        return "result", encode(await function.answer({"operation": operation, "payload": payload}))
    except FunctionError as error:
        body = str(error)  # what Lambda shows as errorMessage
        return json.loads(body)["error"]["code"], body.encode()


async def _cloud_event(operation: str, payload: dict[str, Any], ctx: Context) -> Answer:
    attributes = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/test", "ce-type": f"warmstart.{operation}"}
    async with (
        serving(ctx, **EVERYTHING) as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/events", json=payload, headers=attributes) as answer,
    ):
        body = await answer.read()
        if answer.status == 200:
            assert answer.headers["ce-type"] == f"warmstart.{operation}.result"
            return "result", body
        return json.loads(body)["error"]["code"], body


def _queue(broker: type[Broker]) -> Any:
    async def way(operation: str, payload: dict[str, Any], ctx: Context) -> Answer:
        async with broker.queue(operation=None) as queue:
            source, submitter = open_source(queue), open_submitter(queue)
            processor = Processor(Dispatcher(ctx, tuple(OPERATIONS)), None, Policy())
            await source.open()
            await submitter.open()
            try:
                work = Envelope("1", "", TYPE_PREFIX + operation, operation, payload)
                replies = await submitter.submit(work, wait=True)
                (delivery,) = await source.fetch(1, 10)
                found = delivery.envelope()
                await delivery.settle(found, await processor(found))
                async with asyncio.timeout(30):
                    (reply,) = [reply async for reply in replies]
            finally:
                await submitter.close()
                await source.close()
            return reply.kind if reply.kind == "result" else reply.body["error"]["code"], encode(reply.body)

    return way


OWNERS = {"Lambda": "events:lambda:direct"}  # who calls, where it is not nobody
EVENTS = {"Lambda": _lambda, "CloudEvents": _cloud_event, "NATS": _queue(Nats), "Redis": _queue(Redis)}


def test_every_operation_is_called() -> None:
    """An operation that is added must be added here."""
    assert PAYLOADS.keys() == WRONG.keys() == OPERATIONS.keys() == {route.operation for route in ROUTES}


@pytest.mark.parametrize(("route", "payload"), CALLS)
async def test_same_answer(
    route: Any, payload: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Called in the process, over HTTP and from the command line, the answer is the same to the last field."""
    called = await invoke(route.operation, payload, ctx=context())
    assert await _http(route, payload) == (200, called)
    assert await _command_line(route.operation, payload, monkeypatch, capsys) == (0, called)


@pytest.mark.parametrize("route", [r for r in ROUTES if r.path != "/v1/models"], ids=lambda route: route.path)
async def test_same_error(route: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong request is the same error everywhere; HTTP dresses it as its route does.

    ``/v1/models`` has nothing that could be wrong: its query is not looked at.
    """
    payload = WRONG[route.operation]
    with pytest.raises(ServiceError) as caught:
        await invoke(route.operation, payload, ctx=context())
    error = caught.value
    assert await _http(route, payload) == (error.status, error_body(error, route.errors))
    assert await _command_line(route.operation, payload, monkeypatch, capsys) == (1, error.openai())


@pytest.mark.parametrize("way", EVENTS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_same_answer_to_events(operation: str, way: str) -> None:
    """An event is answered with what HTTP answers, byte for byte; an error is OpenAI's object of the same error."""
    for payload in PAYLOADS[operation]:
        called = await invoke(operation, payload, ctx=context())
        assert await EVENTS[way](operation, payload, context(OWNERS.get(way, ""))) == ("result", encode(called))
    with pytest.raises(ServiceError) as caught:
        await invoke(operation, WRONG[operation], ctx=context())
    error = caught.value
    answer = await EVENTS[way](operation, WRONG[operation], context(OWNERS.get(way, "")))
    assert answer == (error.code, encode(error.openai()))


async def test_same_text_for_a_seed(
    tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real model that draws gives the same bytes whichever way it is asked."""
    payload = {"prompt": "You may", "max_new_tokens": 24, "temperature": 1.3, "seed": 11}
    answers = {}

    @asynccontextmanager
    async def fresh() -> AsyncIterator[Context]:
        ctx = build_context(Settings.load(model_name=str(tiny_gpt2), response_cache="off"))
        yield ctx
        await asyncio.to_thread(ctx.models.close)  # type: ignore[attr-defined]

    for way, ask in EVENTS.items():
        async with fresh() as ctx:
            answers[way] = await ask("complete", payload, ctx)
    async with (
        fresh() as ctx,
        serving(ctx) as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/complete", json=payload) as answer,
    ):
        answers["HTTP"] = ("result", await answer.read())
    async with fresh() as ctx:
        monkeypatch.setattr(command_line, "build_context", lambda settings, ctx=ctx: ctx)
        monkeypatch.setattr(command_line, "setup_logging", lambda *args: None)
        assert await asyncio.to_thread(server.main, ["invoke", "complete", json.dumps(payload)]) == 0
        answers["command line"] = ("result", encode(json.loads(capsys.readouterr().out)))
    assert set(answers.values()) == {answers["HTTP"]}
    assert len(json.loads(answers["HTTP"][1])["text"]) > 10


@pytest.mark.parametrize("route", [r for r in ROUTES if OPERATIONS[r.operation].stream], ids=lambda route: route.path)
async def test_same_stream(route: Any) -> None:
    """A stream's events are the same in the process and over HTTP."""
    for payload in PAYLOADS[route.operation]:
        events = [event async for event in invoke_stream(route.operation, payload, ctx=context())]
        async with (
            serving(context()) as url,
            aiohttp.ClientSession() as session,
            session.post(url + route.plain_path.format(**payload), json=_body(route, payload)) as response,
        ):
            text = await response.text()
        form = OPERATIONS[route.operation].stream_form
        if form == "lines":
            assert [json.loads(line) for line in text.splitlines()] == events
            continue
        sent = text.removesuffix("\n\n").split("\n\n")
        if form == "named":
            names = [event.splitlines()[0] for event in sent]
            assert names == [f"event: {event['type']}" for event in events]
        else:
            assert sent.pop() == "data: [DONE]"
        assert [json.loads(event.partition("data: ")[2]) for event in sent] == events


def _body(route: Any, payload: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name not in route.fields} | {"stream": True}


async def test_many_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """JSON lines in, a byte order mark before them or none, JSON lines out, in order; one that is wrong does not stop
    the others but is told by the status.
    """
    lines = [json.dumps({"prompt": "a"}), "", "{", "[]", json.dumps({"prompt": "b"})]
    (tmp_path / "in").write_text("\n".join(lines), "utf-8-sig")
    monkeypatch.setattr(command_line, "build_context", lambda settings: context())
    monkeypatch.setattr(command_line, "setup_logging", lambda *args: None)
    with (tmp_path / "in").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert await asyncio.to_thread(server.main, ["invoke", "generate"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer.get("text") for answer in answers] == ["aHello there.", None, None, "bHello there."]
    assert [answer["error"]["code"] for answer in answers if "error" in answer] == ["invalid_request"] * 2
