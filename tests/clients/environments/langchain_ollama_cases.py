"""LangChain with Ollama's API: ChatOllama, OllamaLLM, OllamaEmbeddings."""

from __future__ import annotations

from typing import Any

from cases import ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, main, raises
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from ollama import ResponseError
from pydantic import BaseModel, Field

HI = [SystemMessage("Be brief."), HumanMessage("Hi")]


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def _chat(**fields: Any) -> ChatOllama:
    return ChatOllama(**({"model": MODEL, "base_url": URL, "temperature": 0, "num_predict": 48} | fields))


def case_invoke() -> None:
    answer = _chat().invoke(HI)
    assert answer.content
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["done_reason"] in ("stop", "length")


def case_stream() -> None:
    pieces = list(_chat().stream(HI))
    assert len(pieces) > 2
    assert "".join(str(piece.content) for piece in pieces) == _chat().invoke(HI).content


async def case_async_stream() -> None:
    pieces = [piece async for piece in _chat().astream(HI)]
    assert "".join(str(piece.content) for piece in pieces)


def case_model_is_validated() -> None:
    _chat(validate_model_on_init=True)


def case_seed() -> None:
    sampling = {"temperature": 1.5, "seed": 7}
    assert _chat(**sampling).invoke(HI).content == _chat(**sampling).invoke(HI).content


def case_structured_output() -> None:
    city = _chat(num_predict=200).with_structured_output(City).invoke("Name a city as JSON.")
    assert isinstance(city, City)


def case_json() -> None:
    answer = _chat(format="json", num_predict=200).invoke('Repeat: {"a": 1}')
    assert str(answer.content).startswith("{")


def case_tool_results() -> None:
    call = {"name": "get_weather", "args": {"city": "Rome"}, "id": "c1", "type": "tool_call"}
    messages = [*HI, AIMessage("", tool_calls=[call]), ToolMessage("sunny", tool_call_id="c1")]
    assert _chat().bind_tools([get_weather]).invoke(messages).content


def case_stop() -> None:
    assert "a" not in str(_chat(stop=["a"]).invoke(HI).content)


def case_completion() -> None:
    model = OllamaLLM(model=MODEL, base_url=URL, temperature=0, num_predict=16)
    assert model.invoke("What is the capital of France?") == "".join(model.stream("What is the capital of France?"))


def case_search() -> None:
    store = InMemoryVectorStore(OllamaEmbeddings(model=EMBEDDER, base_url=URL))
    store.add_texts(CORPUS)
    (found,) = store.similarity_search(QUESTION, k=1)
    assert found.page_content == ANSWER


def case_unknown_model() -> None:
    assert raises(ResponseError, lambda: _chat(model="other").invoke(HI)).status_code == 404


def case_wrong_key() -> None:
    headers = {"headers": {"Authorization": f"Bearer {KEY}"}}
    refused = raises(ResponseError, lambda: _chat(base_url=WITH_KEYS, client_kwargs=headers).invoke(HI))
    assert refused.status_code == 401


if __name__ == "__main__":
    main(globals())
