"""Magentic: prompt functions that return texts, models, calls and streams."""

import os
from typing import Annotated, Any

import openai
from cases import KEY, MODEL, URL, WITH_KEYS, main, raises
from magentic import FunctionCall, OpenaiChatModel, StreamedStr, UserMessage, chatprompt, prompt
from pydantic import BaseModel, Field

os.environ["OPENAI_API_KEY"] = KEY


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def _model(name: str = MODEL, url: str = URL) -> Any:
    return OpenaiChatModel(name, base_url=f"{url}/v1", api_key=KEY, temperature=0, max_tokens=200, seed=1)


def case_text() -> None:
    @prompt("Say {word}.", model=_model())
    def say(word: str) -> str: ...

    assert say("hello")


def case_model() -> None:
    @prompt("A city like {name}?", model=_model())
    def find(name: str) -> City: ...

    assert isinstance(find("Rome"), City)


def case_stream() -> None:
    @prompt("Say {word}.", model=_model())
    def say(word: str) -> StreamedStr: ...

    assert "".join(say("hello"))


async def case_async_stream() -> None:
    from magentic import AsyncStreamedStr

    @prompt("Say {word}.", model=_model())
    async def say(word: str) -> AsyncStreamedStr: ...

    assert "".join([piece async for piece in await say("hello")])


def case_chat() -> None:
    @chatprompt(UserMessage("Say {word}."), model=_model())
    def say(word: str) -> str: ...

    assert say("hello")


def case_function() -> None:
    def get_weather(city: Annotated[str, Field(max_length=20)]) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    @prompt("Weather in {city}?", functions=[get_weather], model=_model())
    def ask(city: str) -> FunctionCall[str]: ...

    assert ask("Rome")().startswith("sunny in")


def case_errors() -> None:
    raises(openai.NotFoundError, lambda: _model("nosuch").complete([UserMessage("Hi")]))
    raises(openai.AuthenticationError, lambda: _model(url=WITH_KEYS).complete([UserMessage("Hi")]))


if __name__ == "__main__":
    main(globals())
