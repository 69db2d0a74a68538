"""handlers.dispatch.join: a stream put together is the whole answer."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.context import Clock, Context
from handlers.dispatch.join import join
from handlers.local import build_context, invoke, invoke_stream
from handlers.operations import OPERATIONS
from runtime.answer_format import AnswerFormat
from runtime.model_pool.registry import Registry
from runtime.settings import Settings
from tests.e2e.test_same_answer import CHAT, PAYLOADS
from tests.support.fakes import FakeEngine, caching, fake_context

STREAMING = [name for name, operation in OPERATIONS.items() if operation.stream]
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CALLS = [
    pytest.param(name, payload | (USAGE if name in ("chat", "completions") else {}), id=f"{name} {i}")
    for name in STREAMING
    for i, payload in enumerate(PAYLOADS[name])
]


async def joined(operation: str, payload: dict[str, Any], ctx: Context) -> str:
    """The stream's answer as it goes out, so that the order of its members counts too."""
    return json.dumps(join(operation, [chunk async for chunk in invoke_stream(operation, payload, ctx=ctx)]))


@pytest.mark.parametrize(("operation", "payload"), CALLS)
async def test_joined_is_whole(operation: str, payload: dict[str, Any]) -> None:
    """For every operation that streams, byte for byte."""

    def ctx() -> Context:
        return fake_context(FakeEngine(token_length=len, cached_tokens=1))

    assert await joined(operation, payload, ctx()) == json.dumps(await invoke(operation, payload, ctx=ctx()))


async def test_calls_of_tools() -> None:
    """Text, calls and their arguments are put together."""
    words = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")
    tool = {"name": "time", "parameters": {"type": "object"}}
    payloads = {
        "chat": USAGE | CHAT | {"n": 1, "tools": [{"type": "function", "function": tool}]},
        "responses": {"input": "x", "tools": [{"type": "function", **tool}]},
        "messages": {
            "messages": [{"role": "user", "content": "x"}],
            "max_tokens": 9,
            "tools": [{"name": "time", "input_schema": {"type": "object"}}],
        },
    }
    for operation, payload in payloads.items():
        ctx = replace(fake_context(FakeEngine(words)), new_id=lambda: "id")
        assert await joined(operation, payload, ctx) == json.dumps(await invoke(operation, payload, ctx=ctx))


async def test_calls_and_reasoning() -> None:
    """A chat's calls of tools and its reasoning are joined, too."""
    words = ("<think>Hm", ".</think>", '<tool_call>\n{"name": "f", ', '"arguments": {"x": ', "1}}\n</tool_call>")
    payload = CHAT | USAGE | {"tools": [{"type": "function", "function": {"name": "f"}}]}

    def ctx() -> Context:
        return fake_context(FakeEngine(words, answer_format=AnswerFormat(reasoning="optional")))

    whole = await invoke("chat", payload, ctx=ctx())
    assert whole["choices"][0]["message"]["reasoning_content"] == "Hm."
    assert whole["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert _without_ids(await joined("chat", payload, ctx())) == _without_ids(json.dumps(whole))


def _without_ids(answer: str) -> str:
    return re.sub("call_id[0-9]+", "", answer)


@pytest.mark.parametrize("operation", ["generate", "complete"])
async def test_what_the_response_cache_did_is_kept(operation: str) -> None:
    """Its report is in the usage of both; an answer that was kept streams as the same one."""
    ctx = caching(fake_context(FakeEngine(token_length=len)))
    payload = {"prompt": "x", "seed": 1}
    await invoke(operation, payload, ctx=ctx)
    whole = await invoke(operation, payload, ctx=ctx)
    assert whole["usage"]["cache"]["status"] == "hit"
    assert await joined(operation, payload, ctx) == json.dumps(whole)


async def test_sequences_come_in_their_order() -> None:
    """Whichever of them has its first piece first."""
    piece = {"text": "x", "finish_reason": "stop"}
    answer = join("complete", [{"index": 1} | piece, {"index": 0} | piece, {"model": "m", "usage": {}}])
    assert [sequence["index"] for sequence in answer["sequences"]] == [0, 1]


REAL: list[tuple[str, dict[str, Any]]] = [
    ("generate", {"prompt": ["You may", "The"], "num_return_sequences": 2, "max_new_tokens": 9, "logprobs": 2}),
    ("complete", {"prompt": "You", "max_new_tokens": 12, "stop": ["e"], "echo": True}),
    ("completions", USAGE | {"prompt": ["You may", "é"], "n": 2, "max_tokens": 9, "echo": True, "logprobs": 2}),
    ("completions", USAGE | {"prompt": "You", "max_tokens": 0, "echo": True, "logprobs": 1}),
    ("chat", USAGE | CHAT | {"max_tokens": 12}),
    ("responses", {"input": "You", "max_output_tokens": 12, "top_logprobs": 2, "stop": ["a"]}),
    ("messages", {"messages": CHAT["messages"][1:], "max_tokens": 12, "stop_sequences": ["e", "a"]}),
    ("chat", USAGE | CHAT | {"max_tokens": 12, "logprobs": True, "top_logprobs": 2, "stop": ["a"]}),
]


@pytest.mark.parametrize("engine", ["auto", "reference"])
async def test_joined_is_whole_on_a_model(tiny_gpt2: Path, engine: str) -> None:
    """With half characters, stop strings and log-probabilities as a real engine gives them."""
    made = build_context(
        Settings.load(model_name=str(tiny_gpt2), engine=engine, response_cache="off", prefix_cache_bytes=0)
    )
    ctx = replace(made, new_id=lambda: "id", clock=Clock(lambda: 1.0, lambda: 1.0))
    try:
        for operation, payload in REAL:
            asked = payload | {"seed": 5}
            assert await joined(operation, asked, ctx) == json.dumps(await invoke(operation, asked, ctx=ctx))
    finally:
        assert isinstance(made.models, Registry)
        made.models.close()
