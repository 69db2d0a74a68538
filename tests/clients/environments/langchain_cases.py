"""LangChain and LangGraph: ChatOpenAI (chat completions and Responses), OpenAI (completions), ChatAnthropic."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import openai
from cases import ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, main, raises
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

ASK_FOR_JSON: Any = [  # the model repeats the example, so that the object ends
    ("user", "JSON, please."),
    ("assistant", '{"name": "Rome"}'),
    ("user", "JSON, please."),
]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def _chat(**fields: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"model": MODEL, "base_url": f"{URL}/v1", "api_key": KEY, "temperature": 0}
    return ChatOpenAI(**defaults | {"max_tokens": 60, "max_retries": 0} | fields)


def _claude(**fields: Any) -> ChatAnthropic:
    defaults: dict[str, Any] = {"model": MODEL, "base_url": URL, "api_key": KEY, "temperature": 0}
    return ChatAnthropic(**defaults | {"max_tokens": 60, "max_retries": 0} | fields)


def case_invoke() -> None:
    answer = _chat().invoke("Say hello.")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.response_metadata["finish_reason"] in ("stop", "length")


def case_conversation() -> None:
    answer = _chat().invoke([SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Hello."), HumanMessage("And?")])
    assert answer.content


def case_chain() -> None:
    chain = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{x}")]) | _chat() | StrOutputParser()
    assert chain.invoke({"x": "Hi"})


def case_stream() -> None:
    chunks = list(_chat(stream_usage=True).stream("Count to five."))
    assert len(chunks) > 3
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.content == _chat().invoke("Count to five.").content
    assert total.usage_metadata["output_tokens"] > 0


async def case_async_stream() -> None:
    assert "".join([str(chunk.content) async for chunk in _chat().astream("Count to five.")])


async def case_events() -> None:
    kinds = [event["event"] async for event in _chat().astream_events("Hi", version="v2")]
    assert "on_chat_model_stream" in kinds
    assert kinds[-1] == "on_chat_model_end"


def case_batch() -> None:
    assert len(_chat().batch(["One?", "Two?", "Three?"])) == 3


def case_stop() -> None:
    assert "3" not in _chat().invoke("Count: 1, 2, 3, 4", stop=["3"]).content


def case_max_tokens() -> None:
    answer = _chat(max_tokens=3).invoke("Tell a long story.")
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 3


def case_seed() -> None:
    assert len({_chat(temperature=1, seed=5).invoke("Tell a story.").content for _ in range(2)}) == 1


def case_several() -> None:
    result = _chat(n=2, temperature=1).generate([[HumanMessage("Hi")]])
    assert len(result.generations[0]) == 2


def case_logprobs() -> None:
    answer = _chat().bind(logprobs=True, top_logprobs=2).invoke("Hi")
    entries = answer.response_metadata["logprobs"]["content"]
    assert len(entries[0]["top_logprobs"]) == 2


def case_penalties() -> None:
    assert _chat(presence_penalty=0.5, frequency_penalty=0.5, top_p=0.9, logit_bias={5: -100}).invoke("Hi").content


def case_extra_body() -> None:
    assert _chat(extra_body={"top_k": 3, "min_p": 0.1}).invoke("Hi").content


def case_json_mode() -> None:
    model = _chat().bind(response_format={"type": "json_object"})
    assert isinstance(json.loads(model.invoke(ASK_FOR_JSON).content), dict)


def case_structured_json_schema() -> None:
    city = _chat(max_tokens=200).with_structured_output(City, method="json_schema").invoke("Paris?")
    assert isinstance(city, City)


def case_structured_strict() -> None:
    city = _chat(max_tokens=200).with_structured_output(City, method="json_schema", strict=True).invoke("Paris?")
    assert isinstance(city, City)


def case_structured_function_calling() -> None:
    city = _chat(max_tokens=200).with_structured_output(City, method="function_calling").invoke("Paris?")
    assert isinstance(city, City)


def case_structured_json_mode() -> None:
    schema = {"title": "City", "type": "object", "properties": {"name": {"type": "string"}}}
    model = _chat().with_structured_output(schema, method="json_mode")
    assert isinstance(model.invoke(ASK_FOR_JSON), dict)


def case_structured_stream() -> None:
    pieces = list(_chat(max_tokens=200).with_structured_output(City).stream("Paris?"))
    assert isinstance(pieces[-1], City)


def case_tool_forced() -> None:
    answer = _chat(max_tokens=200).bind_tools([get_weather], tool_choice="get_weather").invoke("Weather in Rome?")
    (call,) = answer.tool_calls
    assert (call["name"], list(call["args"])) == ("get_weather", ["city"])


def case_tool_any() -> None:
    model = _chat(max_tokens=400).bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    assert len(model.invoke("Weather in Rome?").tool_calls) == 1


def case_tool_auto() -> None:
    answer = _chat().bind_tools([get_weather]).invoke("Weather in Rome?")
    assert answer.content or answer.tool_calls or answer.invalid_tool_calls


def case_tool_strict() -> None:
    answer = _chat(max_tokens=200).bind_tools([get_weather], tool_choice="required", strict=True).invoke("Rome?")
    assert answer.tool_calls


def case_tool_stream() -> None:
    chunks = list(_chat(max_tokens=200).bind_tools([get_weather], tool_choice="get_weather").stream("Rome?"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.tool_calls[0]["name"] == "get_weather"


def case_tool_result() -> None:
    model = _chat(max_tokens=200).bind_tools([get_weather])
    asked = model.bind(tool_choice="required").invoke("Weather in Rome?")
    results = [ToolMessage("sunny", tool_call_id=call["id"]) for call in asked.tool_calls]
    assert model.bind(tool_choice="none").invoke([HumanMessage("Weather in Rome?"), asked, *results]).content


def case_agent() -> None:
    agent = create_agent(_chat(), [get_weather], system_prompt="Be brief.")
    assert agent.invoke({"messages": [{"role": "user", "content": "Hi"}]})["messages"][-1].type == "ai"


def case_agent_with_format() -> None:
    from langchain.agents.structured_output import ProviderStrategy

    agent = create_agent(_chat(max_tokens=200), [], response_format=ProviderStrategy(City))
    state = agent.invoke({"messages": [{"role": "user", "content": "Paris?"}]})
    assert isinstance(state["structured_response"], City)


def case_agent_with_tool_format() -> None:
    from langchain.agents.structured_output import ToolStrategy

    model = _chat(max_tokens=200, model_kwargs={"parallel_tool_calls": False})
    agent = create_agent(model, [], response_format=ToolStrategy(City))
    state = agent.invoke({"messages": [{"role": "user", "content": "Paris?"}]})
    assert isinstance(state["structured_response"], City)


def case_agent_stream() -> None:
    agent = create_agent(_chat(), [get_weather])
    assert list(agent.stream({"messages": [{"role": "user", "content": "Hi"}]}, stream_mode="messages"))


def case_react_agent() -> None:
    from langgraph.prebuilt import create_react_agent

    agent = create_react_agent(_chat(), [get_weather])
    assert agent.invoke({"messages": [("user", "Hi")]})["messages"][-1].type == "ai"


def case_graph_loop() -> None:
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    def model(state: Any) -> Any:
        called = any(message.type == "tool" for message in state["messages"])
        choice = "none" if called else "get_weather"
        bound = _chat(max_tokens=200).bind_tools([get_weather], tool_choice=choice)
        return {"messages": [bound.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_node("tools", ToolNode([get_weather]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    messages = graph.compile().invoke({"messages": [HumanMessage("Weather in Rome?")]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]


def case_responses_invoke() -> None:
    answer = _chat(use_responses_api=True).invoke("Hi")
    assert answer.text
    assert answer.usage_metadata["output_tokens"] > 0


def case_responses_stream() -> None:
    assert "".join(chunk.text for chunk in _chat(use_responses_api=True).stream("Hi"))


def case_responses_tool() -> None:
    model = _chat(use_responses_api=True, max_tokens=200).bind_tools([get_weather], tool_choice="get_weather")
    asked = model.invoke("Weather in Rome?")
    (call,) = asked.tool_calls
    turns = [HumanMessage("Weather in Rome?"), asked, ToolMessage("sunny", tool_call_id=call["id"])]
    assert _chat(use_responses_api=True).bind_tools([get_weather], tool_choice="none").invoke(turns).text


def case_responses_structured() -> None:
    assert isinstance(_chat(use_responses_api=True, max_tokens=200).with_structured_output(City).invoke("Paris?"), City)


def case_responses_v1() -> None:
    assert _chat(use_responses_api=True, output_version="v1").invoke("Hi").content_blocks


def case_completion() -> None:
    model = OpenAI(model=MODEL, base_url=f"{URL}/v1", api_key=KEY, temperature=0, max_tokens=10)
    assert model.invoke("The capital of France is")


def case_completion_stream() -> None:
    model = OpenAI(model=MODEL, base_url=f"{URL}/v1", api_key=KEY, temperature=0, max_tokens=10)
    assert "".join(model.stream("The capital of France is")) == model.invoke("The capital of France is")


def case_completion_batch() -> None:
    model = OpenAI(model=MODEL, base_url=f"{URL}/v1", api_key=KEY, temperature=1, max_tokens=10, n=2, best_of=2)
    assert [len(texts) for texts in model.generate(["One", "Two"]).generations] == [2, 2]


def case_anthropic_invoke() -> None:
    answer = _claude().invoke([SystemMessage("Be brief."), HumanMessage("Hi")])
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0


def case_anthropic_stream() -> None:
    assert "".join(str(chunk.text) for chunk in _claude().stream("Hi"))


def case_anthropic_tool() -> None:
    model = _claude(max_tokens=200).bind_tools([get_weather], tool_choice="get_weather")
    asked = model.invoke("Weather in Rome?")
    (call,) = asked.tool_calls
    turns = [HumanMessage("Weather in Rome?"), asked, ToolMessage("sunny", tool_call_id=call["id"])]
    assert _claude().bind_tools([get_weather]).invoke(turns).type == "ai"


def case_anthropic_tool_stream() -> None:
    chunks = list(_claude(max_tokens=200).bind_tools([get_weather], tool_choice="any").stream("Rome?"))
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.tool_calls


def case_anthropic_structured() -> None:
    assert isinstance(_claude(max_tokens=200).with_structured_output(City).invoke("Paris?"), City)


def case_anthropic_structured_json_schema() -> None:
    model = _claude(max_tokens=200).with_structured_output(City, method="json_schema")
    assert isinstance(model.invoke("Paris?"), City)


def case_anthropic_tokens() -> None:
    assert _claude().get_num_tokens_from_messages([HumanMessage("Hi")], tools=[get_weather]) > 5


def case_anthropic_agent() -> None:
    agent = create_agent(_claude(), [get_weather])
    assert agent.invoke({"messages": [{"role": "user", "content": "Hi"}]})["messages"][-1].type == "ai"


def case_unknown_model() -> None:
    raises(openai.NotFoundError, lambda: _chat(model="nosuch").invoke("Hi"))
    raises(anthropic.NotFoundError, lambda: _claude(model="nosuch").invoke("Hi"))


def case_wrong_key() -> None:
    raises(openai.AuthenticationError, lambda: _chat(base_url=f"{WITH_KEYS}/v1").invoke("Hi"))
    raises(anthropic.AuthenticationError, lambda: _claude(base_url=WITH_KEYS).invoke("Hi"))


def case_too_long() -> None:
    error = raises(openai.BadRequestError, lambda: _chat().invoke("word " * 20000))
    assert error.code == "context_length_exceeded"


def _embeddings(**fields: Any) -> Any:
    # Otherwise it sends the token ids of OpenAI's own models.
    defaults: dict[str, Any] = {"model": EMBEDDER, "base_url": f"{URL}/v1", "check_embedding_ctx_length": False}
    return OpenAIEmbeddings(**defaults | {"api_key": KEY, "max_retries": 0} | fields)


def case_embeddings_search() -> None:
    store = InMemoryVectorStore.from_texts(CORPUS, _embeddings())
    ((found, score), _) = store.similarity_search_with_score(QUESTION, k=2)
    assert found.page_content == ANSWER
    assert 0 < score < 1


async def case_embeddings_async() -> None:
    assert len(await _embeddings().aembed_query(QUESTION)) == 384
    assert len(await _embeddings(chunk_size=3).aembed_documents(CORPUS)) == 4


def case_embeddings_errors() -> None:
    raises(openai.NotFoundError, lambda: _embeddings(model="nosuch").embed_query("x"))
    error = raises(openai.BadRequestError, lambda: _embeddings().embed_query("word " * 2000))
    assert error.code == "context_length_exceeded"


if __name__ == "__main__":
    main(globals())
