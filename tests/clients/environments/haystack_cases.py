"""Haystack: its generators over chat completions and Responses, tools, formats, streams and the agent."""

from __future__ import annotations

import json
from typing import Any

import openai
from cases import ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, main, raises
from haystack import Document, Pipeline
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.dataclasses import ChatMessage
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.tools import Tool
from haystack.utils import Secret
from pydantic import BaseModel, Field

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
TOOL = Tool("get_weather", "The weather in a city.", PARAMETERS, lambda city: f"sunny in {city}")
HI = [ChatMessage.from_system("Be brief."), ChatMessage.from_user("Hi")]
FORCED = {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def _generator(kind: Any = OpenAIChatGenerator, **fields: Any) -> Any:
    limit = "max_tokens" if kind is OpenAIChatGenerator else "max_output_tokens"
    generation = {"temperature": 0, limit: 100} | fields.pop("generation_kwargs", {})
    defaults: dict[str, Any] = {"model": MODEL, "api_base_url": f"{URL}/v1", "api_key": Secret.from_token(KEY)}
    return kind(**defaults | {"generation_kwargs": generation, "max_retries": 0} | fields)


def case_chat() -> None:
    (reply,) = _generator().run(HI)["replies"]
    assert reply.text
    assert reply.meta["usage"]["completion_tokens"] > 0


def case_several() -> None:
    assert len(_generator(generation_kwargs={"n": 2, "seed": 1}).run(HI)["replies"]) == 2


def case_stream() -> None:
    pieces: list[str] = []
    (reply,) = _generator(streaming_callback=lambda chunk: pieces.append(chunk.content)).run(HI)["replies"]
    assert "".join(pieces) == reply.text


async def case_async() -> None:
    assert (await _generator().run_async(HI))["replies"][0].text


def case_tool() -> None:
    (reply,) = _generator(tools=[TOOL], generation_kwargs=FORCED).run(HI)["replies"]
    assert list(reply.tool_calls[0].arguments) == ["city"]


def case_tool_strict() -> None:
    (reply,) = _generator(tools=[TOOL], tools_strict=True, generation_kwargs=FORCED).run(HI)["replies"]
    assert list(reply.tool_calls[0].arguments) == ["city"]


def case_tool_stream() -> None:
    generator = _generator(tools=[TOOL], generation_kwargs=FORCED, streaming_callback=lambda chunk: None)
    assert list(generator.run(HI)["replies"][0].tool_calls[0].arguments) == ["city"]


def case_tool_result() -> None:
    (asked,) = _generator(tools=[TOOL], generation_kwargs=FORCED).run(HI)["replies"]
    turns = [*HI, asked, ChatMessage.from_tool("sunny", origin=asked.tool_calls[0])]
    assert _generator(tools=[TOOL], generation_kwargs={"tool_choice": "none"}).run(turns)["replies"][0].text


def case_format() -> None:
    (reply,) = _generator(generation_kwargs={"response_format": City}).run(HI)["replies"]
    City.model_validate_json(reply.text)


def case_format_as_schema() -> None:
    schema = {"name": "City", "strict": True, "schema": City.model_json_schema() | {"additionalProperties": False}}
    form = {"type": "json_schema", "json_schema": schema}
    (reply,) = _generator(generation_kwargs={"response_format": form}).run(HI)["replies"]
    City.model_validate(json.loads(reply.text))


def case_pipeline() -> None:
    pipeline = Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder([ChatMessage.from_user("Say {{ word }}.")]))
    pipeline.add_component("llm", _generator())
    pipeline.connect("prompt.prompt", "llm.messages")
    assert pipeline.run({"prompt": {"word": "hello"}})["llm"]["replies"][0].text


def case_agent() -> None:
    agent = Agent(chat_generator=_generator(), tools=[TOOL], max_agent_steps=3)
    assert agent.run(HI)["messages"][-1].role == "assistant"


def case_agent_that_ends_with_a_tool() -> None:
    agent = Agent(chat_generator=_generator(generation_kwargs=FORCED), tools=[TOOL], exit_conditions=["get_weather"])
    assert agent.run(HI)["messages"][-1].tool_call_result.result.startswith("sunny in")


def case_responses() -> None:
    assert _generator(OpenAIResponsesChatGenerator).run(HI)["replies"][0].text


def case_responses_stream() -> None:
    pieces: list[str] = []
    callback: Any = lambda chunk: pieces.append(chunk.content)  # noqa: E731 - the generator takes a function
    assert _generator(OpenAIResponsesChatGenerator, streaming_callback=callback).run(HI)["replies"][0].text
    assert "".join(pieces)


def case_responses_tool() -> None:
    forced = {"tool_choice": "required", "parallel_tool_calls": False}
    generator = _generator(OpenAIResponsesChatGenerator, tools=[TOOL], generation_kwargs=forced)
    (asked,) = generator.run(HI)["replies"]
    turns = [*HI, asked, ChatMessage.from_tool("sunny", origin=asked.tool_calls[0])]
    assert _generator(OpenAIResponsesChatGenerator).run(turns)["replies"][0].text


def case_responses_format() -> None:
    generator = _generator(OpenAIResponsesChatGenerator, generation_kwargs={"text_format": City})
    City.model_validate_json(generator.run(HI)["replies"][0].text)


def case_errors() -> None:
    raises(openai.NotFoundError, lambda: _generator(model="nosuch").run(HI))
    raises(openai.AuthenticationError, lambda: _generator(api_base_url=f"{WITH_KEYS}/v1").run(HI))


def case_embeddings_search() -> None:
    fields: dict[str, Any] = {"model": EMBEDDER, "api_base_url": f"{URL}/v1", "api_key": Secret.from_token(KEY)}
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    found = OpenAIDocumentEmbedder(**fields, batch_size=3).run([Document(content=text) for text in CORPUS])
    assert found["meta"]["usage"]["prompt_tokens"] > 0
    store.write_documents(found["documents"])
    search = Pipeline()
    search.add_component("embedder", OpenAITextEmbedder(**fields))
    search.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    search.connect("embedder.embedding", "retriever.query_embedding")
    documents = search.run({"embedder": {"text": QUESTION}})["retriever"]["documents"]
    assert documents[0].content == ANSWER


if __name__ == "__main__":
    main(globals())
