"""handlers.operations.ollama: Ollama's chats and prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.context import Context
from handlers.generation.ollama_input import chat_payload, completion_payload, prompt_chat_payload
from handlers.generation.ollama_output import AnswerLines
from handlers.operations import ollama
from handlers.schemas.ollama import OllamaChatRequest, OllamaGenerateRequest, unloads
from handlers.schemas.ollama_objects import OllamaChatResponse, OllamaGenerateResponse
from handlers.schemas.parsing import parse
from runtime.answer_format import AnswerFormat
from runtime.errors import InsufficientScope, InvalidRequest, ModelNotFound, TooManyRequests
from tests.support.fakes import INFO, FakeEngine, fake_context, usage

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
CALL = ("I look.\n", "<tool_call>\n", '{"name": "time", "arguments": {"zone": ', '"UTC"}}\n', "</tool_call>")
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time", "parameters": {"type": "object"}}}


def _chat(own: dict[str, float] | None = None, **payload: Any) -> dict[str, Any]:
    """The chat completion that a chat is translated into."""
    return chat_payload(parse(OllamaChatRequest, HI | payload), own or {})


def _prompt(**payload: Any) -> OllamaGenerateRequest:
    return parse(OllamaGenerateRequest, {"prompt": "Hi"} | payload)


async def _lines(payload: dict[str, Any], ctx: Context) -> list[dict[str, Any]]:
    lines = [line async for line in ollama.stream_chat(payload, ctx)]
    for line in lines:
        OllamaChatResponse.model_validate(line, extra="forbid", strict=True)
    return lines


def _build(chunks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines and the whole answer of a chat completion's choices."""
    last = {"usage": usage(3, 4), "timings": {"prompt_ms": 2.0, "predicted_ms": 0.5}}
    made = []
    for _ in range(2):
        lines = AnswerLines("m", chat=True, now=lambda: 0.0, elapsed=lambda: 1.5, loaded=0.25)
        made.append((lines, [line for choice in chunks for line in lines.add(choice)]))
    (streaming, events), (whole, _) = made
    return events + streaming.finish(last), whole.whole(last)


async def test_message() -> None:
    """The whole answer, with counts, and times in nanoseconds."""
    engine = FakeEngine(token_length=9)
    answer = await ollama.handle_chat(HI | {"model": "fake:latest"}, fake_context(engine))
    OllamaChatResponse.model_validate(answer, extra="forbid", strict=True)
    durations = {name: answer.pop(name) for name in list(answer) if name.endswith("_duration")}
    assert durations.keys() == {"total_duration", "load_duration", "prompt_eval_duration", "eval_duration"}
    assert all(isinstance(value, int) and value >= 0 for value in durations.values())
    assert answer == {
        "model": "fake",
        "created_at": answer["created_at"],
        "message": {"role": "assistant", "content": "Hello there."},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 9,
        "eval_count": 3,
    }


async def test_stream() -> None:
    """A line for each piece of the text; the last one is empty and has the counts."""
    lines = await _lines(HI, fake_context(FakeEngine()))
    assert [line["message"]["content"] for line in lines] == ["Hello", " there", ".", ""]
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("stop", 3)


async def test_log_probabilities() -> None:
    """Each line has those of its tokens, with as many alternatives as asked for; a continued prompt's are alike."""
    asked = {"logprobs": True, "top_logprobs": 1}
    lines = await _lines(HI | asked, fake_context(FakeEngine()))
    assert lines[0]["logprobs"] == [
        {"token": "Hello", "logprob": -0.25, "top_logprobs": [{"token": "Hello", "logprob": -0.25}]}
    ]
    raw = await ollama.handle_generate({"prompt": "x", "raw": True} | asked, fake_context(FakeEngine()))
    OllamaGenerateResponse.model_validate(raw, extra="forbid", strict=True)
    assert raw["logprobs"] == [entry for line in lines for entry in line.get("logprobs", ())]


async def test_prompt_is_a_message_or_continued() -> None:
    """A prompt is the user's message, with the system's before it; raw, or without a chat template, it is continued."""
    engine = FakeEngine()
    answer = await ollama.handle_generate({"prompt": "Hi", "system": "Be brief."}, fake_context(engine))
    OllamaGenerateResponse.model_validate(answer, extra="forbid", strict=True)
    assert answer["response"] == "Hello there."
    assert [(message.role, message.content) for message in engine.chats[0]] == [
        ("system", "Be brief."),
        ("user", "Hi"),
    ]
    for plain, more in ((FakeEngine(), {"raw": True}), (FakeEngine(info=replace(INFO, chat_template=False)), {})):
        answer = await ollama.handle_generate({"prompt": "Hi", **more}, fake_context(plain))
        assert (answer["response"], plain.chats) == ("Hello there.", [])
    with pytest.raises(InvalidRequest, match="raw: cannot be combined with system"):
        await ollama.handle_generate({"prompt": "Hi", "raw": True, "system": "x"}, fake_context())


async def test_without_a_prompt_the_model_is_loaded_or_unloaded() -> None:
    """Nothing is generated; unloading needs the scope that it needs elsewhere."""
    engine = FakeEngine()
    ctx = fake_context(engine)
    loaded = await ollama.handle_chat({"messages": []}, ctx)
    assert (loaded["message"], loaded["done"], loaded["done_reason"]) == (
        {"role": "assistant", "content": ""},
        True,
        "load",
    )
    assert (await ollama.handle_generate({"keep_alive": "0s"}, ctx))["done_reason"] == "unload"
    assert [line["done_reason"] for line in await _lines({"keep_alive": 0, "model": "fake"}, ctx)] == ["unload"]
    assert engine.jobs == []
    with pytest.raises(InsufficientScope, match=r"^keep_alive: "):
        await ollama.handle_chat({"keep_alive": 0}, replace(ctx, may_call=lambda operation: operation == "ollama_chat"))
    with pytest.raises(ModelNotFound):
        await ollama.handle_chat({"model": "other"}, ctx)


@pytest.mark.parametrize(
    ("keep_alive", "expected"),
    [(0, True), ("0", True), ("0s", True), (0.0, True), ("5m", False), (-1, False), (None, False)],
)
def test_keep_alive(keep_alive: Any, expected: bool) -> None:
    """A duration of zero unloads."""
    assert unloads(keep_alive) == expected


def test_options() -> None:
    """They are fields of a chat completion; Ollama's defaults hold where neither request nor model says otherwise."""
    options = {
        "num_predict": 5,
        "temperature": 0,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 7,
        "stop": ["x"],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "num_ctx": 4096,
    }
    shared = {name: options[name] for name in options.keys() - {"num_predict", "repeat_penalty", "num_ctx"}}
    expected = {"model": None, "timings_per_token": True, "max_tokens": 5, "repetition_penalty": 1.1}
    assert _chat(options=options) == HI | shared | expected
    defaults = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    assert _chat().items() >= defaults.items()
    own = _chat({"temperature": 0.6, "top_k": 20})
    assert "temperature" not in own
    assert own["top_p"] == 0.9
    assert _chat(options={"num_predict": -2})["n_predict"] == -1
    assert completion_payload(_prompt(raw=True), {})["n_predict"] == -1


def test_formats_and_reasoning() -> None:
    """JSON, a schema, no form; and whether the model reasons."""
    schema = {"type": "object", "properties": {"a": {}}}
    named = {"name": "answer", "schema": schema}
    assert _chat(format="json")["response_format"] == {"type": "json_object"}
    assert _chat(format=schema)["response_format"] == {"type": "json_schema", "json_schema": named}
    assert "response_format" not in _chat(format="")
    assert [_chat(think=think).get("reasoning_effort") for think in (False, True, None, "low")] == [
        "none",
        None,
        None,
        "low",
    ]
    assert prompt_chat_payload(_prompt(think=False), {})["reasoning_effort"] == "none"


def test_calls_get_ids() -> None:
    """A result belongs to the first call of its tool without a result, or to the call that it names."""
    call = {"function": {"name": "time", "arguments": {"zone": "UTC"}}}
    found = _chat(
        messages=[
            *HI["messages"],
            {"role": "assistant", "thinking": "Hm.", "tool_calls": [call, {"id": "c9", **call}, call]},
            {"role": "tool", "content": "2", "tool_name": "time", "tool_call_id": "c9"},
            {"role": "tool", "content": "1", "tool_name": "time"},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "?"},
        ],
        tools=[TIME],
    )
    assistant, *results = found["messages"][1:]
    assert assistant["reasoning_content"] == "Hm."
    assert [made["id"] for made in assistant["tool_calls"]] == ["call_1_0", "c9", "call_1_2"]
    assert assistant["tool_calls"][0]["function"] == {"name": "time", "arguments": '{"zone": "UTC"}'}
    assert [result["tool_call_id"] for result in results] == ["c9", "call_1_0", "call_1_2", "call_5"]
    assert found["tools"] == [TIME]


async def test_tools() -> None:
    """A call's arguments are an object, in a line of its own in a stream."""
    payload = HI | {"tools": [TIME]}
    whole = await ollama.handle_chat(payload, fake_context(FakeEngine(words=CALL)))
    (call,) = whole["message"]["tool_calls"]
    assert call["function"] == {"index": 0, "name": "time", "arguments": {"zone": "UTC"}}
    assert whole["done_reason"] == "stop"
    *_, called, last = await _lines(payload, fake_context(FakeEngine(words=CALL)))
    assert called["message"]["tool_calls"][0]["function"] == call["function"]
    assert (called["done"], last["done"]) == (False, True)


async def test_reasoning() -> None:
    """It is returned apart from the content."""
    engine = FakeEngine(words=("<think>", "Hm.", "</think>", "Yes."), answer_format=AnswerFormat(reasoning="optional"))
    answer = await ollama.handle_chat(HI, fake_context(engine))
    assert answer["message"] == {"role": "assistant", "content": "Yes.", "thinking": "Hm."}


def test_an_answer_that_is_cut_off() -> None:
    """A call that was cut off has no arguments."""
    cut = {"index": 0, "id": "c", "function": {"name": "time", "arguments": '{"zone'}}
    lines, whole = _build([{"delta": {"tool_calls": [cut]}}, {"delta": {}, "finish_reason": "length"}])
    assert whole["message"]["tool_calls"][0]["function"]["arguments"] == {}
    assert whole["done_reason"] == "length"
    assert lines[-1] == {
        "model": "m",
        "created_at": "1970-01-01T00:00:00.000000Z",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "total_duration": 1_500_000_000,
        "load_duration": 250_000_000,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 2_000_000,
        "eval_count": 4,
        "eval_duration": 500_000,
    }


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"nonsense": 1}}, "options.nonsense"),
        ({"options": {"temperature": 3}}, "options.temperature"),
        ({"format": "xml"}, "format"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"messages": [{"role": "user", "content": "x", "images": ["a"]}]}, "messages.0.images"),
        ({"messages": [{"role": "user", "content": "x", "thinking": "y"}]}, "messages.0.thinking"),
        ({"think": "much"}, "think"),
    ],
)
async def test_wrong_requests(wrong: dict[str, Any], param: str) -> None:
    """Each error names Ollama's own field."""
    with pytest.raises(InvalidRequest) as caught:
        await ollama.handle_chat(HI | wrong, fake_context())
    assert (caught.value.param or "").startswith(param)


async def test_errors_of_a_stream() -> None:
    """They are raised as those of the chat completion, and name the prompt of a request that has one."""
    engine = FakeEngine(fail_after=1, failure=TooManyRequests("full"))
    lines: list[dict[str, Any]] = []
    with pytest.raises(TooManyRequests):
        lines.extend([line async for line in ollama.stream_chat(HI, fake_context(engine))])
    with pytest.raises(InvalidRequest, match=r"^prompt: "):
        await ollama.handle_generate({"prompt": "x" * 300_000}, fake_context())
