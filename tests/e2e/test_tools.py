"""Tools with the embedded model through the real service and OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest
from openai import AsyncOpenAI

from handlers.local import build_context
from runtime.settings import Settings
from tests.support.fakes import serving
from tests.support.soak import soak

MODEL = "smollm2-135m-instruct"
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "unit", "days"],
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": WEATHER},
    },
    {"type": "function", "function": {"name": "get_time", "description": "The time now."}},
]
SCHEMAS: dict[str, Any] = {"get_weather": WEATHER, "get_time": {"maxProperties": 0}}


@pytest.fixture
async def client() -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of a service with the embedded model."""
    ctx = build_context(Settings.load(response_cache="off", model_name=MODEL))
    try:
        async with (
            serving(ctx) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as made,
        ):
            yield made
    finally:
        ctx.models.close()  # type: ignore[attr-defined]


async def test_tools(client: AsyncOpenAI) -> None:
    """Calls that are required parse and match their schemas, and a loop of call, result and answer comes to its end."""
    for seed in range(soak(20, 4)):
        question = f"What is the weather in city number {seed}?"
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": question}],
            tools=TOOLS,
            tool_choice="required",
            seed=seed,
            temperature=1,
            max_tokens=2000,
        )
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls
        for call in choice.message.tool_calls:
            assert call.type == "function"
            jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    await _loop(client)


async def _loop(client: AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    async with client.chat.completions.stream(
        model=MODEL, messages=messages, tools=TOOLS, tool_choice=named, temperature=0, max_tokens=200
    ) as stream:
        answer = await stream.get_final_completion()
    message = answer.choices[0].message
    assert message.tool_calls
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    messages += [
        message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear", "degrees": 21}'},
    ]
    last = await client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, temperature=0)
    assert last.choices[0].finish_reason in ("stop", "tool_calls", "length")
    assert last.choices[0].message.content or last.choices[0].message.tool_calls
    assert last.usage is not None
    assert last.usage.prompt_tokens > (answer.usage.prompt_tokens if answer.usage else 0)
