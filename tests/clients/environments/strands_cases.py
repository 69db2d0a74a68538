"""Strands Agents: OpenAIModel, tools, structured output, streams and errors."""

from __future__ import annotations

from typing import Any

from cases import KEY, MODEL, URL, WITH_KEYS, main, raises
from pydantic import BaseModel, Field
from strands import Agent, tool
from strands.models.openai import OpenAIModel


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def _agent(name: str = MODEL, url: str = URL, params: Any = None, **fields: Any) -> Agent:
    client = {"base_url": f"{url}/v1", "api_key": KEY, "max_retries": 0}
    model = OpenAIModel(
        client_args=client, model_id=name, params={"temperature": 0, "max_tokens": 200} | (params or {})
    )
    return Agent(**{"model": model, "callback_handler": None, "system_prompt": "Be brief."} | fields)


def case_text() -> None:
    result = _agent()("Hi")
    assert str(result)
    assert result.metrics.accumulated_usage["outputTokens"] > 0


def case_conversation() -> None:
    agent = _agent()
    agent("Hi")
    agent("And?")
    assert len(agent.messages) == 4


async def case_stream() -> None:
    assert [event async for event in _agent().stream_async("Hi") if "data" in event]


def case_structured_output() -> None:
    forced = {"tool_choice": {"type": "function", "function": {"name": "City"}}}  # or the model may talk without end
    result = _agent(params={"extra_body": forced | {"parallel_tool_calls": False}})(
        "Paris?", structured_output_model=City
    )
    assert isinstance(result.structured_output, City)


def case_tools() -> None:
    assert _agent(tools=[get_weather])("Hi").stop_reason


def case_tool_by_hand() -> None:
    agent = _agent(tools=[get_weather])
    agent.tool.get_weather(city="Rome")
    assert str(agent("And now?")) is not None


def case_errors() -> None:
    assert "nosuch" in str(raises(Exception, lambda: _agent("nosuch")("Hi")))
    raises(Exception, lambda: _agent(url=WITH_KEYS)("Hi"))
    from strands.types.exceptions import ContextWindowOverflowException, MaxTokensReachedException

    raises(ContextWindowOverflowException, lambda: _agent()("word " * 20000))
    raises(MaxTokensReachedException, lambda: _agent(params={"max_tokens": 2})("Tell a story."))


if __name__ == "__main__":
    main(globals())
