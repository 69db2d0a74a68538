"""handlers.operations.chat: OpenAI's chat completions."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.context import RequestLimits
from handlers.operations import chat
from handlers.schemas.responses import ChatChunk, ChatResponse
from runtime.errors import InvalidRequest
from runtime.types import Message
from tests.support.fakes import FakeEngine, fake_context, usage

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


async def _chunks(payload: dict[str, Any], engine: FakeEngine | None = None) -> list[dict[str, Any]]:
    return [chunk async for chunk in chat.stream(HI | payload, fake_context(engine))]


async def test_answer() -> None:
    """The whole answer, in OpenAI's shape."""
    answer = await chat.handle(HI, fake_context(FakeEngine(token_length=9)))
    assert answer == {
        "id": "chatcmpl-id1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there."},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": usage(9, 3),
    }
    ChatResponse.model_validate(answer, extra="forbid", strict=True)


async def test_n_answers() -> None:
    """n answers come as n choices; the prompt is counted once."""
    answer = await chat.handle(HI | {"n": 3}, fake_context(FakeEngine(token_length=9)))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == usage(9, 9)


async def test_messages_reach_the_template() -> None:
    """developer becomes system, text parts become one text, names stay out; the order stays."""
    engine = FakeEngine()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": ""},
    ]
    await chat.handle({"messages": messages}, fake_context(engine))
    assert engine.chats == [
        (Message("system", "Be brief."), Message("user", "ab"), Message("assistant", "c"), Message("user", ""))
    ]


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({}, 512),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 5),
        ({"max_tokens": 7, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 4000}, 4000),
        ({"max_tokens": None, "max_completion_tokens": None}, 512),
    ],
)
async def test_most_new_tokens(given: dict[str, Any], most: int) -> None:
    """The tighter of OpenAI's two names for it holds; 512 if neither is given."""
    engine = FakeEngine()
    await chat.handle(HI | given, fake_context(engine))
    assert engine.jobs[0][0].params.max_new_tokens == most


@pytest.mark.parametrize(
    ("stop", "reached"),
    [(None, ("<|user|>",)), ("a", ("a", "<|user|>")), (["a", "b"], ("a", "b", "<|user|>"))],
)
async def test_template_stops_are_added(stop: object, reached: tuple[str, ...]) -> None:
    """Strings that end a turn in the template stop an answer beside the request's own."""
    engine = FakeEngine(chat_stops=("<|user|>",))
    await chat.handle(HI | {"stop": stop}, fake_context(engine))
    assert engine.jobs[0][0].params.stop == reached


async def test_stream() -> None:
    """A role chunk, a chunk per text, the finish reason on an empty delta; all of one answer share id and time."""
    chunks = await _chunks({})
    head = {"id": "chatcmpl-id1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "fake"}
    deltas = [{"role": "assistant", "content": ""}, {"content": "Hello"}, {"content": " there"}, {"content": "."}, {}]
    assert chunks == [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop", "logprobs": None}]}
        for delta in deltas
    ]
    for chunk in chunks:
        ChatChunk.model_validate(chunk, extra="forbid", strict=True)


@pytest.mark.parametrize(
    "options", [{}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}]
)
async def test_stream_without_usage(options: dict[str, Any]) -> None:
    """Unless asked for, no chunk mentions the usage."""
    assert all("usage" not in chunk for chunk in await _chunks(options))


async def test_stream_with_usage() -> None:
    """Asked for, the usage comes in a last chunk without choices, and is null on all others, as OpenAI has it."""
    *chunks, last = await _chunks({"stream_options": {"include_usage": True}}, FakeEngine(token_length=9))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == usage(9, 3)
    assert last["id"] == chunks[0]["id"]
    ChatChunk.model_validate(last, extra="forbid", strict=True)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("words", [("Hello", " there", "."), ("", "x", ""), ("", "")])
@pytest.mark.parametrize("most", [1, 2, 100])
async def test_streamed_deltas_join_to_the_answer(n: int, words: tuple[str, ...], most: int) -> None:
    """Each choice begins with its role, ends with its reason, and its deltas are the whole answer's text."""
    payload = HI | {"n": n, "max_tokens": most}
    answer = await chat.handle(payload, fake_context(FakeEngine(words)))
    chunks = await _chunks(payload, FakeEngine(words))
    for whole in answer["choices"]:
        mine = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == whole["index"]]
        first, *middle, last = mine
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert all(piece["finish_reason"] is None for piece in [first, *middle])
        assert (last["delta"], last["finish_reason"]) == ({}, whole["finish_reason"])
        assert "".join(piece["delta"]["content"] for piece in middle) == whole["message"]["content"]
        assert all(piece["delta"]["content"] for piece in middle), "an empty delta is no chunk"


async def test_ids_differ() -> None:
    """Every answer has an id of its own."""
    ctx = fake_context()
    assert (await chat.handle(HI, ctx))["id"] != (await chat.handle(HI, ctx))["id"]


@pytest.mark.parametrize(
    ("payload", "limits", "param"),
    [
        ({"messages": [{"role": "user", "content": "ab"}] * 2}, RequestLimits(max_prompt_chars=3), "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "ab"}] * 2}]},
            RequestLimits(max_prompt_chars=3),
            "messages",
        ),
        (HI | {"n": 3}, RequestLimits(max_sequences=2), "n"),
    ],
)
async def test_limits(payload: dict[str, Any], limits: RequestLimits, param: str) -> None:
    """All messages together, however they are cut into parts, count against the limits."""
    engine = FakeEngine()
    with pytest.raises(InvalidRequest) as caught:
        await chat.handle(payload, fake_context(engine, limits=limits))
    assert caught.value.param == param
    assert (engine.jobs, engine.chats) == ([], [])


async def test_wrong_request_fails_at_the_first_read() -> None:
    """A wrong request's stream fails before it has given anything."""
    with pytest.raises(InvalidRequest, match="messages: field required"):
        await anext(chat.stream({}, fake_context()))
