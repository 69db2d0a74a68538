"""Semantic Kernel: chat and text completion services, functions, formats, streams and an agent."""

from __future__ import annotations

from typing import Annotated, Any

from cases import ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, araises, main
from openai import AsyncOpenAI
from pydantic import BaseModel, Field
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
    OpenAITextCompletion,
    OpenAITextEmbedding,
    OpenAITextPromptExecutionSettings,
)
from semantic_kernel.connectors.in_memory import InMemoryCollection
from semantic_kernel.contents import ChatHistory
from semantic_kernel.data.vector import VectorStoreCollectionDefinition, VectorStoreField
from semantic_kernel.exceptions import ServiceResponseException
from semantic_kernel.functions import kernel_function


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


class Weather:
    """A plugin."""

    @kernel_function(description="The weather in a city.")
    def get_weather(self, city: Annotated[str, "The city."]) -> str:
        """The weather in a city."""
        return f"sunny in {city}"


def _client(url: str = URL) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def _chat(name: str = MODEL, url: str = URL) -> OpenAIChatCompletion:
    return OpenAIChatCompletion(ai_model_id=name, async_client=_client(url))


def _settings(**fields: Any) -> OpenAIChatPromptExecutionSettings:
    return OpenAIChatPromptExecutionSettings(**{"temperature": 0, "max_tokens": 100} | fields)


def _history() -> ChatHistory:
    history = ChatHistory(system_message="Be brief.")
    history.add_user_message("Hi")
    return history


async def case_chat() -> None:
    assert (await _chat().get_chat_message_content(_history(), _settings())).content


async def case_stream() -> None:
    pieces = [piece async for piece in _chat().get_streaming_chat_message_content(_history(), _settings())]
    assert "".join(str(piece) for piece in pieces)


async def case_fields() -> None:
    settings = _settings(number_of_responses=2, seed=1, stop=["x"], top_p=0.9, presence_penalty=0.5, temperature=1)
    assert len(await _chat().get_chat_message_contents(_history(), settings)) == 2


async def case_text() -> None:
    service = OpenAITextCompletion(ai_model_id=MODEL, async_client=_client())
    settings = OpenAITextPromptExecutionSettings(max_tokens=10, temperature=0)
    assert (await service.get_text_content("Once upon a time", settings)).text


async def case_format() -> None:
    message = await _chat().get_chat_message_content(_history(), _settings(response_format=City))
    City.model_validate_json(message.content)


async def case_function_required() -> None:
    kernel = Kernel()
    kernel.add_plugin(Weather(), "weather")
    behavior = FunctionChoiceBehavior.Required(auto_invoke=False)
    settings = _settings(function_choice_behavior=behavior, parallel_tool_calls=False)
    message = await _chat().get_chat_message_content(_history(), settings, kernel=kernel)
    assert message.items[0].function_name == "get_weather"


async def case_function_loop() -> None:
    kernel = Kernel()
    kernel.add_plugin(Weather(), "weather")
    settings = _settings(function_choice_behavior=FunctionChoiceBehavior.Required(), parallel_tool_calls=False)
    message = await _chat().get_chat_message_content(_history(), settings, kernel=kernel)
    assert message is not None


async def case_function_auto() -> None:
    kernel = Kernel()
    kernel.add_plugin(Weather(), "weather")
    settings = _settings(function_choice_behavior=FunctionChoiceBehavior.Auto())
    assert await _chat().get_chat_message_content(_history(), settings, kernel=kernel)


async def case_prompt() -> None:
    kernel = Kernel()
    kernel.add_service(_chat())
    assert str(await kernel.invoke_prompt("Say {{$word}}.", word="hello"))


async def case_agent() -> None:
    agent = ChatCompletionAgent(service=_chat(), name="Helper", instructions="Be brief.", plugins=[Weather()])
    assert str(await agent.get_response("Hi")) is not None


async def case_agent_stream() -> None:
    agent = ChatCompletionAgent(service=_chat(), name="Helper", instructions="Be brief.")
    assert [piece async for piece in agent.invoke_stream("Hi")]


async def case_errors() -> None:
    unknown = await araises(ServiceResponseException, _chat("nosuch").get_chat_message_content(_history(), _settings()))
    assert "no model 'nosuch'" in str(unknown)
    await araises(ServiceResponseException, _chat(url=WITH_KEYS).get_chat_message_content(_history(), _settings()))


NOTES = VectorStoreCollectionDefinition(
    collection_name="notes",
    fields=[
        VectorStoreField("key", name="id", type="int"),
        VectorStoreField("data", name="text", type="str"),
        VectorStoreField("vector", name="vector", type="float", dimensions=384, distance_function="cosine_similarity"),
    ],
)


async def case_embeddings_search() -> None:
    model = OpenAITextEmbedding(ai_model_id=EMBEDDER, async_client=_client())
    vectors = await model.generate_embeddings(CORPUS)
    assert len(vectors) == 4
    async with InMemoryCollection(record_type=dict, definition=NOTES, embedding_generator=model) as notes:
        await notes.ensure_collection_exists()
        await notes.upsert([{"id": index, "text": text, "vector": text} for index, text in enumerate(CORPUS)])
        found = await notes.search(QUESTION, top=2)
        results = [result.record["text"] async for result in found.results]
    assert results[0] == ANSWER


if __name__ == "__main__":
    main(globals())
