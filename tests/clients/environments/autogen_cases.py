"""AutoGen: its OpenAI client, tools, formats, streams, and an assistant agent with a team."""

from __future__ import annotations

from typing import Any

import openai
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from cases import KEY, MODEL, URL, WITH_KEYS, araises, main
from pydantic import BaseModel, ConfigDict, Field

INFO: Any = {"vision": False, "function_calling": True, "json_output": True, "family": "unknown"}
HI: Any = [SystemMessage(content="Be brief."), UserMessage(content="Hi", source="user")]


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


async def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


TOOL = FunctionTool(get_weather, description="The weather in a city.")


def _client(**fields: Any) -> OpenAIChatCompletionClient:
    defaults: dict[str, Any] = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": KEY, "temperature": 0}
    info = INFO | {"structured_output": True}
    return OpenAIChatCompletionClient(**defaults | {"max_tokens": 100, "max_retries": 0, "model_info": info} | fields)


async def case_create() -> None:
    result = await _client().create(HI)
    assert result.content
    assert result.usage.completion_tokens > 0


async def case_stream() -> None:
    pieces = [
        piece
        async for piece in _client().create_stream(HI, extra_create_args={"stream_options": {"include_usage": True}})
    ]
    assert len(pieces) > 2
    assert pieces[-1].usage.completion_tokens > 0


async def case_fields() -> None:
    assert (
        await _client(seed=1, stop=["x"], top_p=0.9, frequency_penalty=0.5, presence_penalty=0.5).create(HI)
    ).content


async def case_logprobs() -> None:
    result = await _client().create(HI, extra_create_args={"logprobs": True, "top_logprobs": 2})
    assert result.logprobs


async def case_format() -> None:
    City.model_validate_json((await _client().create(HI, json_output=City)).content)


async def case_json_mode() -> None:
    example = [*HI, AssistantMessage(content='{"name": "Rome"}', source="assistant"), HI[1]]
    assert (await _client().create(example, json_output=True)).content.startswith("{")


async def _called() -> Any:
    return (await _client().create(HI, tools=[TOOL], tool_choice=TOOL)).content


async def case_tool() -> None:
    (call,) = await _called()
    assert call.name == "get_weather"


async def case_tool_stream() -> None:
    pieces = [
        piece
        async for piece in _client().create_stream(
            HI, tools=[TOOL], tool_choice="required", extra_create_args={"parallel_tool_calls": False}
        )
    ]
    assert pieces[-1].content[0].name == "get_weather"


async def case_tool_result() -> None:
    (call,) = await _called()
    result = FunctionExecutionResult(content="sunny", name="get_weather", call_id=call.id, is_error=False)
    turns = [*HI, AssistantMessage(content=[call], source="a"), FunctionExecutionResultMessage(content=[result])]
    assert (await _client().create(turns, tools=[TOOL], tool_choice="none")).content


async def case_agent() -> None:
    agent = AssistantAgent("helper", _client(), tools=[get_weather])
    assert (await agent.run(task="Hi")).messages[-1].source == "helper"


async def case_agent_with_format() -> None:
    agent = AssistantAgent("helper", _client(), output_content_type=City)
    assert isinstance((await agent.run(task="Paris?")).messages[-1].content, City)


async def case_agent_stream() -> None:
    agent = AssistantAgent("helper", _client(), model_client_stream=True)
    kinds = [type(event).__name__ async for event in agent.run_stream(task="Hi")]
    assert "ModelClientStreamingChunkEvent" in kinds


async def case_team() -> None:
    team = RoundRobinGroupChat(
        [AssistantAgent("one", _client(max_tokens=20)), AssistantAgent("two", _client(max_tokens=20))],
        termination_condition=MaxMessageTermination(4),
    )
    assert len((await team.run(task="Talk.")).messages) == 4


async def case_cancelled() -> None:
    token = CancellationToken()
    token.cancel()
    await araises(BaseException, _client().create(HI, cancellation_token=token))


async def case_errors() -> None:
    await araises(openai.NotFoundError, _client(model="nosuch").create(HI))
    await araises(openai.AuthenticationError, _client(base_url=f"{WITH_KEYS}/v1").create(HI))


if __name__ == "__main__":
    main(globals())
