"""Pydantic AI: agents over chat completions, Responses and Messages, with tools, outputs and streams."""

from __future__ import annotations

import json
from typing import Any

from cases import KEY, MODEL, URL, WITH_KEYS, araises, main
from pydantic import BaseModel, ConfigDict, Field
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError, UsageLimitExceeded
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

FORMATS: Any = {"supports_json_schema_output": True}  # which the library knows of its own models only
SETTINGS: Any = {"temperature": 0, "max_tokens": 200}


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def _chat(name: str = MODEL, url: str = URL) -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY))


def _responses() -> OpenAIResponsesModel:
    return OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key=KEY))


def _claude() -> AnthropicModel:
    return AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key=KEY))


def _agent(model: Any = None, **fields: Any) -> Agent[Any, Any]:
    return Agent(model or _chat(), model_settings=SETTINGS | fields.pop("settings", {}), **fields)


async def case_text() -> None:
    result = await _agent(instructions="Be brief.").run("Hi")
    assert result.output
    assert result.usage.output_tokens > 0


def case_sync() -> None:
    assert _agent(system_prompt="Be brief.").run_sync("Hi").output


async def case_conversation() -> None:
    agent = _agent()
    first = await agent.run("Hi")
    second = await agent.run("And?", message_history=first.all_messages())
    assert second.usage.input_tokens > first.usage.input_tokens


async def case_stream() -> None:
    async with _agent().run_stream("Count to five.") as result:
        pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 3
    assert result.usage.output_tokens > 0


async def case_stream_events() -> None:
    kinds = set()
    async with _agent().run_stream_events("Hi") as events:
        async for event in events:
            kinds.add(type(event).__name__)
    assert "AgentRunResultEvent" in kinds


async def case_iter() -> None:
    async with _agent().iter("Hi") as run:
        nodes = [type(node).__name__ async for node in run]
    assert nodes == ["UserPromptNode", "ModelRequestNode", "CallToolsNode", "End"]


async def case_settings() -> None:
    settings: Any = {
        "seed": 1,
        "top_p": 0.9,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "stop_sequences": ["x"],
    }
    settings |= {"logit_bias": {"5": -100}, "parallel_tool_calls": False, "timeout": 60, "extra_body": {"top_k": 5}}
    assert (await _agent(settings=settings).run("Hi")).output is not None


async def case_logprobs() -> None:
    result = await _agent(settings={"openai_logprobs": True, "openai_top_logprobs": 2}).run("Hi")
    response = result.all_messages()[-1]
    assert len(response.provider_details["logprobs"][0]["top_logprobs"]) == 2


async def case_tool_output() -> None:
    assert isinstance((await _agent(output_type=ToolOutput(City)).run("Paris?")).output, City)


async def case_native_output() -> None:
    assert isinstance((await _agent(output_type=NativeOutput(City)).run("Paris?")).output, City)


async def case_native_choice_of_two() -> None:
    class Person(BaseModel):
        """A person."""

        name: str = Field(max_length=20)

    output = (await _agent(output_type=NativeOutput([City, Person])).run("Paris?")).output
    assert isinstance(output, City | Person)


async def case_prompted_output() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "City", "schema": City.model_json_schema()}}
    agent = _agent(output_type=PromptedOutput(City), settings={"extra_body": {"response_format": schema}})
    assert isinstance((await agent.run("Paris?")).output, City)


async def case_output_of_plain_types() -> None:
    assert isinstance((await _agent(output_type=bool).run("Yes?")).output, bool)


async def case_output_function() -> None:
    def shout(name: str) -> str:
        return name.upper()

    output = (await _agent(output_type=shout, settings={"max_tokens": 400}).run("Name?")).output
    assert output == output.upper()


async def case_stream_output() -> None:
    for output in (ToolOutput(City), NativeOutput(City)):
        async with _agent(output_type=output).run_stream("Paris?") as result:
            pieces = [piece async for piece in result.stream_output(debounce_by=None)]
        assert isinstance(pieces[-1], City)


async def case_tools() -> None:
    agent = _agent()

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"sunny in {city}"

    @agent.tool
    def get_time(ctx: RunContext[None]) -> str:
        """The time."""
        return "noon"

    assert (await agent.run("Weather in Rome?")).output


async def _loop(model: Any) -> None:
    """Run a loop whose turns the grammar decides: a tool that must be called, then the output."""
    called: list[str] = []
    agent = _agent(model, output_type=ToolOutput(City, name="finish"), retries=3)

    async def only_at_first(ctx: RunContext[None], definition: Any) -> Any:
        return None if called else definition

    @agent.tool_plain(prepare=only_at_first)
    def get_weather(city: str) -> str:
        """The weather in a city."""
        called.append(city)
        return "sunny"

    result = await agent.run("Weather in Rome?")
    assert isinstance(result.output, City)
    assert sum(isinstance(message, ModelResponse) for message in result.all_messages()) >= 1


async def case_loop() -> None:
    await _loop(_chat())


async def case_loop_responses() -> None:
    await _loop(_responses())


async def case_loop_anthropic() -> None:
    await _loop(_claude())


def _called(arguments: Any = '{"city": "Rome"}') -> list[Any]:
    return [
        ModelRequest.user_text_prompt("Weather?"),
        ModelResponse([ToolCallPart("get_weather", arguments, "c1")]),
        ModelRequest([ToolReturnPart("get_weather", {"sky": "clear"}, "c1")]),
    ]


async def case_tool_result() -> None:
    for model in (_chat(), _responses(), _claude()):
        agent = _agent(model)
        agent.tool_plain(lambda city: "sunny", name="get_weather")
        assert (await agent.run("And now?", message_history=_called())).usage.input_tokens > 20


async def case_history_with_broken_arguments() -> None:
    for model in (_chat(), _responses()):
        assert (await _agent(model).run("And now?", message_history=_called('{"city": "Ro'))).output is not None


async def case_history_as_json() -> None:
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    first = await _agent().run("Hi")
    history = ModelMessagesTypeAdapter.validate_json(json.dumps(json.loads(first.all_messages_json())))
    assert (await _agent().run("And?", message_history=history)).output


async def case_model_retry() -> None:
    agent, seen = _agent(output_type=NativeOutput(City), retries=2), []

    @agent.output_validator
    def check(city: City) -> City:
        seen.append(city)
        if len(seen) == 1:
            raise ModelRetry("Another city, please.")
        return city

    assert isinstance((await agent.run("Paris?")).output, City)
    assert len(seen) == 2


async def case_responses_text() -> None:
    result = await _agent(_responses(), instructions="Be brief.").run("Hi")
    assert result.output
    assert result.usage.output_tokens > 0


async def case_responses_stream() -> None:
    async with _agent(_responses()).run_stream("Hi") as result:
        assert "".join([piece async for piece in result.stream_text(delta=True)])


async def case_responses_output() -> None:
    for output in (ToolOutput(City), NativeOutput(City)):
        assert isinstance((await _agent(_responses(), output_type=output).run("Paris?")).output, City)


async def case_responses_conversation() -> None:
    agent = _agent(_responses())
    first = await agent.run("Hi")
    assert (await agent.run("And?", message_history=first.all_messages())).output


async def case_anthropic_text() -> None:
    result = await _agent(_claude(), instructions="Be brief.").run("Hi")
    assert result.output
    assert result.usage.output_tokens > 0


async def case_anthropic_stream() -> None:
    async with _agent(_claude()).run_stream("Hi") as result:
        assert "".join([piece async for piece in result.stream_text(delta=True)])


async def case_anthropic_output() -> None:
    assert isinstance((await _agent(_claude(), output_type=ToolOutput(City)).run("Paris?")).output, City)


async def case_anthropic_native_output() -> None:
    able = AnthropicModel(MODEL, provider=AnthropicProvider(base_url=URL, api_key=KEY), profile=FORMATS)
    assert isinstance((await _agent(able, output_type=NativeOutput(City)).run("Paris?")).output, City)


async def case_count_tokens() -> None:
    limits = UsageLimits(input_tokens_limit=3, count_tokens_before_request=True)
    await araises(UsageLimitExceeded, _agent(_claude()).run("A long question.", usage_limits=limits))


async def case_errors() -> None:
    unknown = await araises(ModelHTTPError, _agent(_chat("nosuch")).run("Hi"))
    assert unknown.status_code == 404
    denied = await araises(ModelHTTPError, _agent(_chat(url=WITH_KEYS)).run("Hi"))
    assert denied.status_code == 401
    long = await araises(ModelHTTPError, _agent().run("word " * 20000))
    assert long.body["code"] == "context_length_exceeded"


if __name__ == "__main__":
    main(globals())
