"""Mirascope: its OpenAI provider over completions and responses: calls, streams, tools and formats."""

from __future__ import annotations

from typing import Any

from cases import KEY, MODEL, URL, WITH_KEYS, main, raises
from mirascope import llm
from pydantic import BaseModel, ConfigDict, Field

llm.register_provider("openai", scope="openai/", base_url=f"{URL}/v1", api_key=KEY)
CHAT: Any = f"openai/{MODEL}:completions"
RESPONSES: Any = f"openai/{MODEL}:responses"


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


@llm.tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def _model(name: Any) -> llm.Model:
    return llm.model(name, temperature=0, max_tokens=100)


def case_call() -> None:
    for name in (CHAT, RESPONSES):
        assert _model(name).call("Hi").text()


def case_stream() -> None:
    for name in (CHAT, RESPONSES):
        assert "".join(_model(name).stream("Hi").text_stream())


def case_conversation() -> None:
    for name in (CHAT, RESPONSES):
        assert _model(name).call("Hi").resume("And?").text()


def case_format() -> None:
    for name in (CHAT, RESPONSES):
        for mode in ("strict", "tool"):
            form = llm.format(City, mode=mode)
            assert isinstance(_model(name).call("Paris?", format=form).parse(), City)


def case_tools() -> None:
    for name in (CHAT, RESPONSES):
        assert _model(name).call("Weather in Rome?", tools=[get_weather]).usage.output_tokens > 0


def case_errors() -> None:
    raises(llm.NotFoundError, lambda: llm.model("openai/nosuch:completions").call("Hi"))
    llm.register_provider("openai", scope="openai/", base_url=f"{WITH_KEYS}/v1", api_key=KEY)
    raises(llm.AuthenticationError, lambda: _model(CHAT).call("Hi"))


if __name__ == "__main__":
    main(globals())
