"""Instructor: its modes over chat completions, Responses and Messages, streams of objects, and its retries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import instructor
import openai
from anthropic import Anthropic
from cases import KEY, MODEL, URL, WITH_KEYS, araises, main, raises
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field, field_validator

MODE = instructor.Mode
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Paris?"}], "temperature": 0, "max_tokens": 200}


CLAUDE: Any = {key: value for key, value in ASK.items() if key != "temperature"} | {"extra_body": {"temperature": 0}}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


class Kind(BaseModel):
    """The kind of a text."""

    label: Literal["spam", "ham"]


def _client(mode: Any, **fields: Any) -> Any:
    defaults: dict[str, Any] = {"base_url": f"{URL}/v1", "api_key": KEY, "max_retries": 0}
    return instructor.from_openai(OpenAI(**defaults | fields), mode=mode)


def _create(mode: Any, kind: Any = City, **fields: Any) -> Any:
    return _client(mode).chat.completions.create(response_model=kind, max_retries=1, **ASK | fields)


def case_tools() -> None:
    assert isinstance(_create(MODE.TOOLS), City)


def case_tools_strict() -> None:
    assert isinstance(_create(MODE.TOOLS_STRICT), City)


def case_json() -> None:
    example = [*ASK["messages"], {"role": "assistant", "content": '{"name": "Paris", "people": 9}'}]
    assert isinstance(_create(MODE.JSON, messages=[*example, *ASK["messages"]]), City)


def case_json_schema() -> None:
    assert isinstance(_create(MODE.JSON_SCHEMA), City)


def case_md_json() -> None:
    block = r'```json\n\{"name": "[A-Z][a-z]{1,9}", "people": [0-9]\}\n```'  # or the model repeats the schema
    assert isinstance(_create(MODE.MD_JSON, extra_body={"guided_regex": block}), City)


def case_parallel_tools() -> None:
    found = list(
        _create(
            MODE.PARALLEL_TOOLS,
            Iterable[City | Kind],
            extra_body={"tool_choice": "required", "parallel_tool_calls": False},
        )
    )
    assert found
    assert all(isinstance(item, City | Kind) for item in found)


def case_responses_tools() -> None:
    client = _client(MODE.RESPONSES_TOOLS)
    city = client.responses.create(model=MODEL, input="Paris?", response_model=City, max_output_tokens=200)
    assert isinstance(city, City)


def case_classification() -> None:
    assert _create(MODE.TOOLS, Kind).label in ("spam", "ham")


def case_plain_type() -> None:
    assert isinstance(_create(MODE.TOOLS, int, seed=1), int)


def case_list() -> None:
    class Cities(BaseModel):
        cities: list[City] = Field(max_length=2)

    assert len(_create(MODE.JSON_SCHEMA, Cities).cities) <= 2


def case_nested_and_optional() -> None:
    class Trip(BaseModel):
        start: City
        end: City | None = None

    assert isinstance(_create(MODE.TOOLS, Trip).start, City)


def case_partial() -> None:
    pieces = list(_client(MODE.TOOLS).chat.completions.create_partial(response_model=City, **ASK))
    assert len(pieces) > 1
    assert pieces[-1].name


def case_partial_json_schema() -> None:
    pieces = list(_client(MODE.JSON_SCHEMA).chat.completions.create_partial(response_model=City, **ASK))
    assert pieces[-1].name


def case_iterable() -> None:
    class Label(BaseModel):
        label: Literal["spam", "ham"]

    client = _client(MODE.TOOLS)
    asked = ASK | {"max_tokens": 60, "logit_bias": None}
    stream = client.chat.completions.create_iterable(response_model=Label, **asked)
    assert isinstance(next(iter(stream)), Label)


def case_with_completion() -> None:
    city, completion = _client(MODE.TOOLS).chat.completions.create_with_completion(response_model=City, **ASK)
    assert isinstance(city, City)
    assert completion.usage.completion_tokens > 0


def case_asks_again() -> None:
    seen: list[str] = []

    class Refused(BaseModel):
        name: str = Field(max_length=20)

        @field_validator("name")
        @classmethod
        def _second(cls, value: str) -> str:
            seen.append(value)
            if len(seen) == 1:
                raise ValueError("try another one")
            return value

    for mode in (MODE.TOOLS, MODE.JSON_SCHEMA):
        seen.clear()
        answer = _client(mode).chat.completions.create(response_model=Refused, max_retries=2, **ASK)
        assert isinstance(answer, Refused)
        assert len(seen) == 2


def case_asks_again_after_a_cut() -> None:
    from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException

    raises(
        (IncompleteOutputException, InstructorRetryException),
        lambda: _client(MODE.TOOLS).chat.completions.create(
            response_model=City, max_retries=2, **ASK | {"max_tokens": 4}
        ),
    )


def case_hooks() -> None:
    client, seen = _client(MODE.TOOLS), []
    client.on("completion:kwargs", lambda **fields: seen.append(fields))
    client.chat.completions.create(response_model=City, **ASK)
    assert seen[0]["model"] == MODEL


async def case_async() -> None:
    client = instructor.from_openai(AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY), mode=MODE.TOOLS)
    assert isinstance(await client.chat.completions.create(response_model=City, **ASK), City)


async def case_async_partial() -> None:
    client = instructor.from_openai(AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY), mode=MODE.TOOLS)
    pieces = [piece async for piece in client.chat.completions.create_partial(response_model=City, **ASK)]
    assert pieces[-1].name


def case_provider() -> None:
    client = instructor.from_provider(f"openai/{MODEL}", base_url=f"{URL}/v1", api_key=KEY)
    fields = {key: value for key, value in ASK.items() if key != "model"}
    assert isinstance(client.chat.completions.create(response_model=City, **fields), City)


def case_anthropic_tools() -> None:
    client = instructor.from_anthropic(Anthropic(base_url=URL, api_key=KEY), mode=MODE.ANTHROPIC_TOOLS)
    assert isinstance(client.messages.create(response_model=City, **CLAUDE), City)


def case_anthropic_json() -> None:
    client = instructor.from_anthropic(Anthropic(base_url=URL, api_key=KEY), mode=MODE.ANTHROPIC_JSON)
    example = [*ASK["messages"], {"role": "assistant", "content": '{"name": "Paris", "people": 9}'}]
    asked = CLAUDE | {"messages": [*example, *ASK["messages"]]}
    assert isinstance(client.messages.create(response_model=City, **asked), City)


def case_anthropic_partial() -> None:
    client = instructor.from_anthropic(Anthropic(base_url=URL, api_key=KEY), mode=MODE.ANTHROPIC_TOOLS)
    assert list(client.messages.create_partial(response_model=City, **CLAUDE))[-1].name


def case_errors() -> None:
    from instructor.core.exceptions import InstructorRetryException

    kinds = (InstructorRetryException, openai.APIStatusError)
    unknown = raises(kinds, lambda: _create(MODE.TOOLS, model="nosuch"))
    assert "nosuch" in str(unknown)
    denied = _client(MODE.TOOLS, base_url=f"{WITH_KEYS}/v1")
    raises(kinds, lambda: denied.chat.completions.create(response_model=City, max_retries=1, **ASK))


async def case_async_error() -> None:
    client = instructor.from_openai(AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0))
    await araises(Exception, client.chat.completions.create(response_model=City, **ASK | {"model": "nosuch"}))


if __name__ == "__main__":
    main(globals())
