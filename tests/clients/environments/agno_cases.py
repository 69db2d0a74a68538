"""Agno: OpenAILike and OpenAIResponses models in agents with tools, formats and streams."""

from __future__ import annotations

from typing import Any

from agno.agent import Agent
from agno.models.openai import OpenAIResponses
from agno.models.openai.like import OpenAILike
from cases import KEY, MODEL, URL, WITH_KEYS, main
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def _agent(kind: Any = OpenAILike, name: str = MODEL, url: str = URL, **fields: Any) -> Agent:
    limit = "max_output_tokens" if kind is OpenAIResponses else "max_tokens"
    model = kind(id=name, base_url=f"{url}/v1", api_key=KEY, temperature=0, max_retries=0, **{limit: 200})
    return Agent(**{"model": model, "telemetry": False, "instructions": "Be brief."} | fields)


def case_text() -> None:
    for kind in (OpenAILike, OpenAIResponses):
        result = _agent(kind).run("Hi")
        assert result.content
        assert result.metrics.output_tokens > 0


def case_stream() -> None:
    for kind in (OpenAILike, OpenAIResponses):
        assert "".join(event.content or "" for event in _agent(kind).run("Hi", stream=True))


async def case_async() -> None:
    assert (await _agent().arun("Hi")).content


def case_format() -> None:
    for kind in (OpenAILike, OpenAIResponses):
        assert isinstance(_agent(kind, output_schema=City).run("Paris?").content, City)


def case_tools() -> None:
    for kind in (OpenAILike, OpenAIResponses):
        assert _agent(kind, tools=[get_weather]).run("Hi").status == "COMPLETED"


def case_errors() -> None:
    for agent in (_agent(name="nosuch"), _agent(url=WITH_KEYS)):
        assert agent.run("Hi").status == "ERROR"


if __name__ == "__main__":
    main(globals())
