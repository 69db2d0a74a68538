"""LlamaIndex: OpenAILike with completions and chats, streams, structured predictions, tools and the function agent."""

from __future__ import annotations

from typing import Any

import openai
from cases import ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, main, raises
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def _llm(**fields: Any) -> OpenAILike:
    defaults: dict[str, Any] = {"model": MODEL, "api_base": f"{URL}/v1", "api_key": KEY, "is_chat_model": True}
    defaults |= {"is_function_calling_model": True, "temperature": 0, "max_tokens": 100, "max_retries": 0}
    return OpenAILike(**defaults | {"context_window": 8192} | fields)


def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


TOOL = FunctionTool.from_defaults(get_weather)
HI = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hi")]


def case_chat() -> None:
    assert _llm().chat(HI).message.content


def case_complete_by_chat() -> None:
    assert _llm().complete("Hi").text


def case_complete() -> None:
    assert _llm(is_chat_model=False).complete("Once upon a time").text


def case_stream_chat() -> None:
    assert [piece.delta for piece in _llm().stream_chat(HI)]


def case_stream_complete() -> None:
    assert [piece.delta for piece in _llm(is_chat_model=False).stream_complete("Once")]


async def case_async() -> None:
    assert (await _llm().achat(HI)).message.content
    assert [piece async for piece in await _llm().astream_chat(HI)]


def case_logprobs() -> None:
    assert _llm(logprobs=True, top_logprobs=2).chat(HI).logprobs


def case_extra_fields() -> None:
    assert _llm(additional_kwargs={"seed": 1, "stop": ["x"], "extra_body": {"top_k": 3}}).chat(HI).message.content


def case_structured_by_function() -> None:
    llm = _llm().as_structured_llm(City)
    assert isinstance(llm.chat(HI).raw, City)


def case_structured_predict() -> None:
    assert isinstance(_llm().structured_predict(City, PromptTemplate("Paris?")), City)


def case_structured_by_schema() -> None:
    llm = _llm(should_use_structured_outputs=True)
    assert isinstance(llm.structured_predict(City, PromptTemplate("Paris?")), City)


def case_tools() -> None:
    llm = _llm()
    answer = llm.chat_with_tools([TOOL], user_msg="Weather in Rome?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert (call.tool_name, list(call.tool_kwargs)) == ("get_weather", ["city"])


def case_tool_result() -> None:
    llm = _llm()
    answer = llm.chat_with_tools([TOOL], user_msg="Weather in Rome?", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    result = ChatMessage(role="tool", content="sunny", additional_kwargs={"tool_call_id": call.tool_id})
    assert llm.chat([*HI, answer.message, result]).message.content


def case_predict_and_call() -> None:
    assert "sunny" in str(_llm().predict_and_call([TOOL], user_msg="Weather in Rome?", tool_choice="required"))


async def case_function_agent() -> None:
    agent = FunctionAgent(tools=[TOOL], llm=_llm(), system_prompt="Be brief.")
    assert await agent.run("Hi") is not None


async def case_react_agent() -> None:
    agent = ReActAgent(tools=[TOOL], llm=_llm())
    try:
        assert await agent.run("Hi", max_iterations=2) is not None
    except Exception as error:
        assert "iterations" in str(error)  # noqa: PT017 - a small model may not keep to the agent's format


def case_errors() -> None:
    raises(openai.NotFoundError, lambda: _llm(model="nosuch").chat(HI))
    raises(openai.AuthenticationError, lambda: _llm(api_base=f"{WITH_KEYS}/v1").chat(HI))


def case_embeddings_search() -> None:
    model = OpenAILikeEmbedding(model_name=EMBEDDER, api_base=f"{URL}/v1", api_key=KEY, embed_batch_size=3)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in CORPUS], embed_model=model)
    found = index.as_retriever(similarity_top_k=2).retrieve(QUESTION)
    assert found[0].text == ANSWER
    assert len(model.get_query_embedding(QUESTION)) == 384


if __name__ == "__main__":
    main(globals())
