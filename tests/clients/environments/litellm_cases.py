"""LiteLLM's SDK through its providers openai, hosted_vllm and anthropic, and its Responses and Messages."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # read by the import: no request for the list of prices

import litellm
from cases import ANSWER, CORPUS, EMBEDDER, KEY, MODEL, QUESTION, URL, WITH_KEYS, araises, main, raises
from pydantic import BaseModel, Field

litellm.telemetry = False
HI: Any = [{"role": "user", "content": "Hi"}]
FIELDS: Any = {"api_base": f"{URL}/v1", "api_key": KEY, "temperature": 0, "max_tokens": 60, "num_retries": 0}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)
    people: int = Field(ge=0, le=99)


def _ask(model: str = f"openai/{MODEL}", **fields: Any) -> Any:
    return litellm.completion(model=model, **FIELDS | {"messages": HI} | fields)


def case_completion() -> None:
    answer = _ask()
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def case_hosted_vllm() -> None:
    assert _ask(f"hosted_vllm/{MODEL}", top_k=3, min_p=0.1, seed=1).choices[0].message.content


def case_conversation() -> None:
    first = _ask()
    turns = [{"role": "system", "content": "Be brief."}, *HI, first.choices[0].message.model_dump(), *HI]
    assert _ask(messages=turns).choices[0].message.content


async def case_async() -> None:
    answer = await litellm.acompletion(model=f"openai/{MODEL}", messages=HI, **FIELDS)
    assert answer.choices[0].message.content


def case_stream() -> None:
    chunks = list(_ask(stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks, messages=HI)
    assert built.choices[0].message.content == _ask().choices[0].message.content
    assert built.usage.completion_tokens == _ask().usage.completion_tokens


async def case_async_stream() -> None:
    stream = await litellm.acompletion(model=f"openai/{MODEL}", messages=HI, stream=True, **FIELDS)
    assert [chunk async for chunk in stream][-1].choices[0].finish_reason in ("stop", "length")


def case_fields() -> None:
    fields: Any = {"n": 2, "seed": 1, "stop": ["x"], "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    fields |= {"logit_bias": {"5": -100}, "logprobs": True, "top_logprobs": 2, "user": "me", "temperature": 1}
    answer = _ask(**fields, extra_body={"repetition_penalty": 1.1})
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def case_max_completion_tokens() -> None:
    answer = _ask(max_tokens=None, max_completion_tokens=3)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 3)


def case_tool_forced() -> None:
    (call,) = _ask(tools=[WEATHER], tool_choice=NAMED).choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}


def case_tool_required() -> None:
    answer = _ask(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    assert answer.choices[0].finish_reason == "tool_calls"


def case_tool_stream() -> None:
    built = litellm.stream_chunk_builder(list(_ask(tools=[WEATHER], tool_choice=NAMED, stream=True)))
    assert json.loads(built.choices[0].message.tool_calls[0].function.arguments).keys() == {"city"}


def case_tool_result() -> None:
    asked = _ask(tools=[WEATHER], tool_choice=NAMED).choices[0].message
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "name": "get_weather", "content": "sunny"}
    turns = [*HI, asked.model_dump(), result]
    assert _ask(messages=turns, tools=[WEATHER], tool_choice="none").choices[0].message.content


def case_format() -> None:
    City.model_validate_json(_ask(response_format=City, max_tokens=200).choices[0].message.content)


def case_format_as_schema() -> None:
    schema = {"name": "City", "schema": City.model_json_schema(), "strict": True}
    answer = _ask(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=200)
    City.model_validate_json(answer.choices[0].message.content)


def case_json_mode() -> None:
    example = [*HI, {"role": "assistant", "content": '{"name": "Rome"}'}, *HI]
    answer = _ask(messages=example, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


def case_text_completion() -> None:
    answer = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Once", **FIELDS)
    assert answer.choices[0].text


def case_text_completion_stream() -> None:
    stream = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Once", stream=True, **FIELDS)
    assert "".join(chunk.choices[0].text or "" for chunk in stream)


def case_responses() -> None:
    answer = litellm.responses(
        model=f"openai/{MODEL}", input="Hi", api_base=f"{URL}/v1", api_key=KEY, max_output_tokens=20
    )
    assert answer.output[0].content[0].text


def case_responses_stream() -> None:
    stream = litellm.responses(
        model=f"openai/{MODEL}", input="Hi", api_base=f"{URL}/v1", api_key=KEY, max_output_tokens=20, stream=True
    )
    assert [event.type for event in stream][-1] in ("response.completed", "response.incomplete")


def case_anthropic() -> None:
    answer = _ask(f"anthropic/{MODEL}", api_base=URL)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def case_anthropic_stream() -> None:
    chunks = list(_ask(f"anthropic/{MODEL}", api_base=URL, stream=True))
    assert litellm.stream_chunk_builder(chunks).choices[0].message.content


def case_anthropic_tool() -> None:
    answer = _ask(f"anthropic/{MODEL}", api_base=URL, tools=[WEATHER], tool_choice=NAMED)
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*HI, answer.choices[0].message.model_dump(), result]
    assert _ask(f"anthropic/{MODEL}", api_base=URL, messages=turns, tools=[WEATHER]).usage.prompt_tokens > 20


def case_anthropic_format() -> None:
    answer = _ask(f"anthropic/{MODEL}", api_base=URL, response_format=City, max_tokens=200)
    City.model_validate_json(answer.choices[0].message.content)


async def case_messages() -> None:
    answer = await litellm.anthropic_messages(
        model=f"anthropic/{MODEL}", messages=HI, max_tokens=20, api_base=URL, api_key=KEY
    )
    assert answer["content"][0]["text"]


def case_batch() -> None:
    answers = litellm.batch_completion(model=f"openai/{MODEL}", messages=[HI, HI, HI], **FIELDS)
    assert len({answer.choices[0].message.content for answer in answers}) == 1


def case_router() -> None:
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": KEY}
    router = litellm.Router([{"model_name": "small", "litellm_params": parameters}])
    assert router.completion("small", HI, max_tokens=5).choices[0].message.content


def case_models() -> None:
    assert MODEL in litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_base=URL, api_key=KEY
    )


def case_unknown_model() -> None:
    raises(litellm.NotFoundError, lambda: _ask("openai/nosuch"))
    raises(litellm.NotFoundError, lambda: _ask("anthropic/nosuch", api_base=URL))


def case_wrong_key() -> None:
    raises(litellm.AuthenticationError, lambda: _ask(api_base=f"{WITH_KEYS}/v1"))
    raises(litellm.AuthenticationError, lambda: _ask(f"anthropic/{MODEL}", api_base=WITH_KEYS))


def case_too_long() -> None:
    long = [{"role": "user", "content": "word " * 20000}]
    raises(litellm.ContextWindowExceededError, lambda: _ask(messages=long))
    raises(litellm.ContextWindowExceededError, lambda: _ask(f"anthropic/{MODEL}", api_base=URL, messages=long))


async def case_stream_error() -> None:
    await araises(litellm.NotFoundError, litellm.acompletion(model="openai/nosuch", messages=HI, stream=True, **FIELDS))


def _vectors(model: str, texts: list[str], **fields: Any) -> list[list[float]]:
    answer = litellm.embedding(model, texts, api_base=f"{URL}/v1", api_key=KEY, **fields)
    assert answer.usage.prompt_tokens > 0
    return [entry["embedding"] for entry in answer.data]


def case_embeddings_search() -> None:
    for provider in ("openai", "hosted_vllm"):
        (asked,) = _vectors(f"{provider}/{EMBEDDER}", [QUESTION])
        vectors = _vectors(f"{provider}/{EMBEDDER}", CORPUS, encoding_format="float")
        scores = [sum(a * b for a, b in zip(asked, vector, strict=True)) for vector in vectors]
        assert CORPUS[scores.index(max(scores))] == ANSWER


def case_rerank() -> None:
    for provider in ("hosted_vllm", "cohere", "jina_ai"):
        fields: Any = {"api_base": URL if provider != "jina_ai" else f"{URL}/v1/rerank", "api_key": KEY}
        answer = litellm.rerank(f"{provider}/{EMBEDDER}", QUESTION, CORPUS, top_n=2, **fields)
        assert len(answer.results) == 2
        assert CORPUS[answer.results[0]["index"]] == ANSWER, provider


async def case_embeddings_async() -> None:
    answer = await litellm.aembedding(f"openai/{EMBEDDER}", CORPUS, api_base=f"{URL}/v1", api_key=KEY)
    assert len(answer.data) == 4


if __name__ == "__main__":
    main(globals())
