"""OpenAI's Agents SDK over the Responses API and chat completions: tools, handoffs, outputs, guardrails, sessions."""

from __future__ import annotations

from typing import Any

import openai
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    InputGuardrailTripwireTriggered,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from cases import KEY, MODEL, URL, WITH_KEYS, araises, main
from pydantic import BaseModel, Field

set_tracing_disabled(True)


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@function_tool
def get_time() -> str:
    """The time."""
    return "noon"


def _models(name: str = MODEL, url: str = URL) -> list[Any]:
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    return [OpenAIResponsesModel(name, client), OpenAIChatCompletionsModel(name, client)]


def _agent(model: Any, **fields: Any) -> Agent[Any]:
    settings = ModelSettings(
        **{"temperature": 0, "max_tokens": 200, "parallel_tool_calls": None} | fields.pop("settings", {})
    )
    return Agent(**{"name": "Helper", "instructions": "Be brief.", "model": model, "model_settings": settings} | fields)


async def _run(api: int, question: Any = "Hi", **fields: Any) -> Any:
    return await Runner.run(_agent(_models()[api], **fields), question, max_turns=4)


async def _text(api: int) -> None:
    result = await _run(api)
    assert result.final_output
    assert result.context_wrapper.usage.output_tokens > 0


async def case_text() -> None:
    await _text(0)


async def case_text_chat() -> None:
    await _text(1)


async def _conversation(api: int) -> None:
    first = await _run(api)
    assert (await _run(api, [*first.to_input_list(), {"role": "user", "content": "And?"}])).final_output


async def case_conversation() -> None:
    await _conversation(0)


async def case_conversation_chat() -> None:
    await _conversation(1)


async def _stream(api: int) -> None:
    run = Runner.run_streamed(_agent(_models()[api]), "Hi")
    kinds = [event.data.type async for event in run.stream_events() if event.type == "raw_response_event"]
    assert "response.output_text.delta" in kinds
    assert run.final_output


async def case_stream() -> None:
    await _stream(0)


async def case_stream_chat() -> None:
    await _stream(1)


async def _output(api: int) -> None:
    assert isinstance((await _run(api, "Paris?", output_type=City)).final_output, City)


async def case_output() -> None:
    await _output(0)


async def case_output_chat() -> None:
    await _output(1)


async def _loop(api: int) -> None:
    """The choice of the tool is reset after its call, so that the loop ends with an answer or another call."""
    once = {"settings": {"tool_choice": "get_weather"}}
    try:
        result = await _run(api, "Weather in Rome?", tools=[get_weather, get_time], **once)
    except MaxTurnsExceeded as error:
        kinds = [item.type for item in error.run_data.new_items]
    else:
        kinds = [item.type for item in result.new_items]
        assert kinds[-1] == "message_output_item"
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"]


async def case_loop() -> None:
    await _loop(0)


async def case_loop_chat() -> None:
    await _loop(1)


async def _stops_at_tool(api: int) -> None:
    result = await _run(
        api,
        "Weather in Rome?",
        tools=[get_weather],
        tool_use_behavior="stop_on_first_tool",
        settings={"tool_choice": "required", "parallel_tool_calls": False},
    )
    assert result.final_output.startswith("sunny in")


async def case_stops_at_tool() -> None:
    await _stops_at_tool(0)


async def case_stops_at_tool_chat() -> None:
    await _stops_at_tool(1)


async def _stream_of_tool(api: int) -> None:
    agent = _agent(
        _models()[api],
        tools=[get_weather],
        tool_use_behavior="stop_on_first_tool",
        settings={"tool_choice": "required", "parallel_tool_calls": False},
    )
    run = Runner.run_streamed(agent, "Weather in Rome?")
    kinds = [event.data.type async for event in run.stream_events() if event.type == "raw_response_event"]
    assert "response.function_call_arguments.delta" in kinds
    assert run.final_output.startswith("sunny in")


async def case_stream_of_tool() -> None:
    await _stream_of_tool(0)


async def case_stream_of_tool_chat() -> None:
    await _stream_of_tool(1)


async def _handoff(api: int) -> None:
    model = _models()[api]
    other = _agent(model, name="Other", handoff_description="Knows all.")
    first = _agent(model, handoffs=[other], settings={"tool_choice": "required", "parallel_tool_calls": False})
    result = await Runner.run(first, "Ask the other one.")
    assert result.last_agent.name == "Other"
    assert result.final_output


async def case_handoff() -> None:
    await _handoff(0)


async def case_handoff_chat() -> None:
    await _handoff(1)


async def _agent_as_tool(api: int) -> None:
    tool = _agent(_models()[api]).as_tool("ask", "Ask.")
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    assert (await _run(api, tools=[tool], tool_use_behavior="stop_on_first_tool", settings=settings)).final_output


async def case_agent_as_tool() -> None:
    await _agent_as_tool(0)


async def case_agent_as_tool_chat() -> None:
    await _agent_as_tool(1)


async def case_session() -> None:
    session = SQLiteSession("x")
    for model in _models():
        await Runner.run(_agent(model), "Hi", session=session)
    assert len(await session.get_items()) == 4


async def case_guardrail() -> None:
    async def no(ctx: Any, agent: Any, question: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(None, tripwire_triggered=True)

    agent = _agent(_models()[0], input_guardrails=[InputGuardrail(no)])
    await araises(InputGuardrailTripwireTriggered, Runner.run(agent, "Hi"))


async def case_settings() -> None:
    settings = {"top_p": 0.9, "truncation": "disabled", "store": False, "metadata": {"a": "b"}, "top_logprobs": 2}
    assert (await _run(0, settings=settings)).final_output
    settings = {"presence_penalty": 0.1, "frequency_penalty": 0.1, "extra_body": {"seed": 1, "top_k": 4}}
    assert (await _run(1, settings=settings)).final_output


async def case_max_turns() -> None:
    settings = {"tool_choice": "required", "parallel_tool_calls": False}
    agent = _agent(_models()[1], tools=[get_time], settings=settings, reset_tool_choice=False)
    await araises(MaxTurnsExceeded, Runner.run(agent, "Hi", max_turns=2))


async def case_run_config() -> None:
    config = RunConfig(model=_models()[0], model_settings=ModelSettings(temperature=0))
    assert (await Runner.run(Agent(name="Plain"), "Hi", run_config=config)).final_output


async def case_errors() -> None:
    for model in _models("nosuch"):
        await araises(openai.NotFoundError, Runner.run(_agent(model), "Hi"))
    for model in _models(url=WITH_KEYS):
        await araises(openai.AuthenticationError, Runner.run(_agent(model), "Hi"))
    for model in _models():
        await araises(openai.BadRequestError, Runner.run(_agent(model), "word " * 20000))


if __name__ == "__main__":
    main(globals())
