"""handlers.operations.chat: OpenAI's chat completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.context import RequestLimits
from handlers.operations import chat
from handlers.schemas.responses import ChatChunk, ChatResponse
from runtime.errors import InvalidRequest
from runtime.types import Message, TemplateOptions
from tests.support.fakes import INFO, FakeEngine, fake_context, usage

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
NO_REASONING = {"completion_tokens_details": {"reasoning_tokens": 0}}


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
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there."},
                "finish_reason": "stop",
                "logprobs": None,
                "stop_reason": None,
            }
        ],
        "usage": usage(9, 3) | NO_REASONING,
    }
    ChatResponse.model_validate(answer, extra="forbid", strict=True)


async def test_stop_reason() -> None:
    """The request's stop string that ended the text is named, whole and streamed; one of the template is not."""
    for stop, expected in ((["y", "x"], "x"), (["y"], None)):
        engine = FakeEngine(stop_string="x")
        answer = await chat.handle(HI | {"stop": stop}, fake_context(engine))
        assert answer["choices"][0].get("stop_reason") == expected
        chunks = await _chunks({"stop": stop}, engine)
        assert [chunk["choices"][0].get("stop_reason") for chunk in chunks][-2:] == [None, expected]


async def test_stop_reason_of_a_stop_token() -> None:
    """The id of the request's stop token that ended the text; null if another end token did."""
    for ids, expected in (([2], 2), ([1], None)):
        answer = await chat.handle(HI | {"stop_token_ids": ids}, fake_context())
        assert answer["choices"][0]["stop_reason"] == expected


async def test_id_of_the_request() -> None:
    """The answer's id has the request's own, if it has one."""
    answer = await chat.handle(HI | {"request_id": "mine"}, fake_context())
    assert answer["id"] == "chatcmpl-mine"


@pytest.mark.parametrize(
    ("role", "echo", "text"), [("assistant", True, "So: "), ("assistant", False, ""), ("user", True, "")]
)
async def test_echo(role: str, echo: bool, text: str) -> None:
    """echo returns the assistant's last message before the answer, once per choice, whole and streamed."""
    payload = {"messages": [{"role": role, "content": "So: "}], "echo": echo, "n": 2}
    answer = await chat.handle(payload, fake_context())
    assert [choice["message"]["content"] for choice in answer["choices"]] == [f"{text}Hello there."] * 2
    texts = ["", ""]
    for chunk in await _chunks(payload):
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [f"{text}Hello there."] * 2


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 4}, (5, 6, 7, 8)),
        ({"truncate_prompt_tokens": 7}, tuple(range(2, 9))),
        ({"truncate_prompt_tokens": 4, "truncation_side": "right"}, (0, 1, 2, 3)),
        ({"truncate_prompt_tokens": -1, "max_tokens": 5}, (6, 7, 8)),
        ({"truncate_prompt_tokens": -1}, tuple(range(2, 9))),
    ],
)
async def test_truncated_prompt(fields: dict[str, Any], kept: tuple[int, ...]) -> None:
    """Only so many tokens of the prompt are kept, at its end unless asked for otherwise; -1 is what leaves space."""
    engine = FakeEngine(token_length=9, info=replace(INFO, context_length=8))
    answer = await chat.handle(HI | fields | {"return_token_ids": True, "n": 1}, fake_context(engine))
    assert engine.jobs[0][0].token_ids == kept
    assert tuple(answer["prompt_token_ids"]) == kept


async def test_special_tokens_and_salt_reach_the_engine() -> None:
    """Whether the tokenizer adds its tokens, and whose prefixes are shared."""
    engine = FakeEngine()
    await chat.handle(HI | {"add_special_tokens": True, "cache_salt": "s"}, fake_context(engine))
    options = engine.template_options[0]
    assert options is not None
    assert options.add_special_tokens is True
    assert engine.jobs[0][0].cache_salt == "s"


async def test_tokens_named_by_ids() -> None:
    """return_tokens_as_token_ids replaces the texts of tokens in log-probabilities, of the alternatives, too."""
    fields = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    answer = await chat.handle(HI | fields, fake_context())
    first, second, _ = answer["choices"][0]["logprobs"]["content"]
    assert (first["token"], second["token"]) == ("token_id:0", "token_id:1")
    assert second["top_logprobs"][0]["token"] == "token_id:0"


async def test_control_tokens_rule_out_tools() -> None:
    """skip_special_tokens is passed on; false is refused with tools."""
    engine = FakeEngine()
    await chat.handle(HI | {"skip_special_tokens": False, "include_stop_str_in_output": True}, fake_context(engine))
    params = engine.jobs[0][0].params
    assert (params.skip_special_tokens, params.include_stop) == (False, True)
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(InvalidRequest, match="skip_special_tokens: it must be true with tools"):
        await chat.handle(HI | {"skip_special_tokens": False, "tools": [tool]}, fake_context())


async def test_n_answers() -> None:
    """n answers come as n choices; the prompt is counted once."""
    answer = await chat.handle(HI | {"n": 3}, fake_context(FakeEngine(token_length=9)))
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"] == usage(9, 9) | NO_REASONING


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
        ({}, 4999),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 5),
        ({"max_tokens": 7, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 4000}, 4000),
        ({"max_tokens": None, "max_completion_tokens": None}, 4999),
    ],
)
async def test_most_new_tokens(given: dict[str, Any], most: int) -> None:
    """The tighter of OpenAI's two names for it holds; as many as the context has space for if neither is given."""
    engine = FakeEngine(info=replace(INFO, context_length=5000))
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
    head["system_fingerprint"] = None
    deltas = [{"role": "assistant", "content": ""}, {"content": "Hello"}, {"content": " there"}, {"content": "."}, {}]
    ends: list[dict[str, Any]] = [{"finish_reason": None}] * 4 + [{"finish_reason": "stop", "stop_reason": None}]
    assert chunks == [
        head | {"choices": [{"index": 0, "delta": delta, "logprobs": None} | end]}
        for delta, end in zip(deltas, ends, strict=True)
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
    assert last["usage"] == usage(9, 3) | NO_REASONING
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


async def test_most_new_tokens_in_a_small_kv_cache() -> None:
    """Without a number it is no more than the KV cache holds, so that the request is not refused."""
    engine = FakeEngine(token_length=3, info=replace(INFO, context_length=5000, kv_tokens=100))
    await chat.handle(HI, fake_context(engine))
    assert engine.jobs[0][0].params.max_new_tokens == 97


async def test_most_new_tokens_of_a_limited_caller() -> None:
    """Without a number it is 512 where the caller's tokens are limited, because all of them are reserved."""
    engine = FakeEngine()
    await chat.handle(HI, replace(fake_context(engine), has_token_limit=lambda: True))
    assert engine.jobs[0][0].params.max_new_tokens == chat.LIMITED_NEW_TOKENS


async def test_template_options() -> None:
    """How the prompt ends and the template's variables reach the template; the default is the start of an answer."""
    engine = FakeEngine()
    await chat.handle(HI, fake_context(engine))
    await chat.handle(
        HI | {"continue_final_message": True, "chat_template_kwargs": {"b": [1, None], "a": "x"}}, fake_context(engine)
    )
    await chat.handle(HI | {"add_generation_prompt": False, "continue_final_message": True}, fake_context(engine))
    assert engine.template_options == [
        TemplateOptions(),
        TemplateOptions(True, True, '{"a": "x", "b": [1, null]}'),
        TemplateOptions(False, True),
    ]


async def test_tokens_that_end_a_message() -> None:
    """Further end tokens, and none of the model's own, reach the engine; sixteen stop strings are the most."""
    engine = FakeEngine()
    await chat.handle(HI | {"stop_token_ids": [5, 6], "ignore_eos": True, "stop": ["x"] * 16}, fake_context(engine))
    params = engine.jobs[0][0].params
    assert (params.stop_token_ids, params.ignore_eos, len(params.stop)) == ((5, 6), True, 16)
    for wrong in ({"stop": ["x"] * 17}, {"stop_token_ids": [-1]}, {"stop_token_ids": [256]}):
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            await chat.handle(HI | wrong, fake_context(engine))
    with pytest.raises(InvalidRequest, match="ignore_eos: a text that guided_regex constrains ends"):
        await chat.handle(HI | {"ignore_eos": True, "guided_regex": "a+"}, fake_context(engine))
    tool = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(InvalidRequest, match="ignore_eos: an answer that may have tool calls"):
        await chat.handle(HI | {"ignore_eos": True, "tools": [tool]}, fake_context(engine))


async def test_token_ids() -> None:
    """The prompt's ids and each choice's; a stream has the prompt's in its first chunk and the others as they come."""
    fields = {"return_token_ids": True, "prompt_logprobs": 0, "n": 2}
    answer = await chat.handle(HI | fields, fake_context(FakeEngine(token_length=2)))
    ChatResponse.model_validate(answer, extra="forbid", strict=True)
    assert answer["prompt_token_ids"] == [0, 1]
    assert answer["prompt_logprobs"] == [None, {"1": {"logprob": -0.5, "rank": None, "decoded_token": " there"}}]
    assert [choice["token_ids"] for choice in answer["choices"]] == [[0, 1, 2]] * 2
    chunks = await _chunks({"return_token_ids": True}, FakeEngine(token_length=2))
    assert [chunk.get("prompt_token_ids") for chunk in chunks] == [[0, 1], None, None, None, None]
    assert [chunk["choices"][0].get("token_ids") for chunk in chunks] == [None, [0], [1], [2], []]


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "scale", "priority"])
async def test_service_tier(tier: str) -> None:
    """Each of OpenAI's tiers is accepted; all requests are served alike, and the answer says so."""
    assert (await chat.handle(HI | {"service_tier": tier}, fake_context()))["service_tier"] == "default"
    assert {chunk["service_tier"] for chunk in await _chunks({"service_tier": tier})} == {"default"}


async def test_system_fingerprint() -> None:
    """It is made of the model's fingerprint."""
    engine = FakeEngine(info=replace(INFO, fingerprint="0123456789abcdef0123"))
    assert (await chat.handle(HI, fake_context(engine)))["system_fingerprint"] == "fp_0123456789abcdef"


async def test_timings() -> None:
    """llama.cpp's member is in every chunk but the first, and in the whole answer; rates need some time."""
    payload = HI | {"timings_per_token": True, "stream_options": {"include_usage": True}}
    chunks = [chunk async for chunk in chat.stream(payload, fake_context())]
    assert ["timings" in chunk for chunk in chunks] == [False, *[True] * (len(chunks) - 1)]
    for chunk in chunks:
        ChatChunk.model_validate(chunk, extra="forbid", strict=True)
    answer = await chat.handle(HI | {"timings_per_token": True}, fake_context())
    ChatResponse.model_validate(answer, extra="forbid", strict=True)
    assert answer["timings"]["predicted_n"] == 3
    assert answer["timings"]["predicted_per_second"] is None


@pytest.mark.parametrize(("fields", "limit"), [({"n_predict": 7}, 7), ({"n_predict": 7, "max_tokens": 5}, 5)])
async def test_n_predict(fields: dict[str, Any], limit: int) -> None:
    """llama.cpp's name of max_tokens; the lower limit applies, and -1 is the default."""
    engine = FakeEngine()
    for more in (fields, {}, {"n_predict": -1}):
        await chat.handle(HI | more, fake_context(engine))
    limits = [jobs[0].params.max_new_tokens for jobs in engine.jobs]
    assert limits == [limit, limits[1], limits[1]]


async def test_counted_tokens() -> None:
    """The number of tokens of the prompt, without generating."""
    engine = FakeEngine(token_length=9)
    assert await chat.count(HI | {"stream": True, "max_tokens": 2}, fake_context(engine)) == {"input_tokens": 9}
    assert engine.jobs == []
