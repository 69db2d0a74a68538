"""smolagents: OpenAIModel, its streams and tools, and both kinds of agent."""

from __future__ import annotations

from typing import Any

import openai
from cases import KEY, MODEL, URL, WITH_KEYS, main, raises
from smolagents import AgentGenerationError, CodeAgent, OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage, MessageRole

HI: Any = [ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": "Hi"}])]
SCHEMA: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}},
    "required": ["name"],
    "additionalProperties": False,
}


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: the city.
    """
    return f"sunny in {city}"


def _model(**fields: Any) -> OpenAIModel:
    defaults: dict[str, Any] = {"model_id": MODEL, "api_base": f"{URL}/v1", "api_key": KEY, "temperature": 0}
    return OpenAIModel(**defaults | {"max_tokens": 100, "client_kwargs": {"max_retries": 0}, "retry": False} | fields)


def case_generate() -> None:
    answer = _model().generate(HI)
    assert answer.content
    assert answer.token_usage.output_tokens > 0


def case_flat_messages() -> None:
    assert _model(flatten_messages_as_text=True).generate(HI).content


def case_stream() -> None:
    assert "".join(delta.content or "" for delta in _model().generate_stream(HI))


def case_stop() -> None:
    assert "a" not in _model().generate(HI, stop_sequences=["a"]).content


def case_format() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "City", "schema": SCHEMA, "strict": True}}
    assert _model().generate(HI, response_format=form).content.startswith('{"name"')


def case_tool() -> None:
    answer = _model().generate(HI, tools_to_call_from=[get_weather], parallel_tool_calls=False)
    assert answer.tool_calls[0].function.name == "get_weather"


def case_tool_stream() -> None:
    deltas = list(_model().generate_stream(HI, tools_to_call_from=[get_weather], parallel_tool_calls=False))
    assert [delta for delta in deltas if delta.tool_calls]


def case_tool_agent() -> None:
    settings: Any = {"extra_body": {"parallel_tool_calls": False}}
    agent = ToolCallingAgent(tools=[get_weather], model=_model(**settings), max_steps=2)
    assert agent.run("Weather in Rome?") is not None
    assert agent.memory.steps


def case_tool_agent_stream() -> None:
    settings: Any = {"extra_body": {"parallel_tool_calls": False}}
    agent = ToolCallingAgent(tools=[get_weather], model=_model(**settings), max_steps=1, stream_outputs=True)
    assert list(agent.run("Weather in Rome?", stream=True))


def case_code_agent() -> None:
    code = r'Thought: done\n<code>\nfinal_answer\("[a-z]{1,9}"\)\n'
    agent = CodeAgent(tools=[], model=_model(extra_body={"guided_regex": code}), max_steps=2)
    assert agent.run("Say a word.").isalpha()


def case_code_agent_with_structured_output() -> None:
    agent = CodeAgent(tools=[], model=_model(max_tokens=300), max_steps=1, use_structured_outputs_internally=True)
    assert agent.run("Say a word.") is not None


def case_errors() -> None:
    raises(openai.NotFoundError, lambda: _model(model_id="nosuch").generate(HI))
    raises(openai.AuthenticationError, lambda: _model(api_base=f"{WITH_KEYS}/v1").generate(HI))
    raises(AgentGenerationError, lambda: CodeAgent(tools=[], model=_model(model_id="nosuch")).run("Hi"))


if __name__ == "__main__":
    main(globals())
