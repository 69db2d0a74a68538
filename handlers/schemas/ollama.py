"""Request models of Ollama's API."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.base import MessageLogprobs
from handlers.schemas.fields import (
    MAX_PROMPTS,
    MAX_TOKENS,
    AnyText,
    MinP,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    Text,
    Texts,
    TopK,
    TopP,
)
from handlers.schemas.messages import CallId, of_an_assistant
from handlers.schemas.strict import Strict, needs
from handlers.schemas.tools import MAX_TOOLS, FunctionName, Parameters
from handlers.schemas.unsupported import Unsupported

_HOW_IT_RUNS = "Accepted for compatibility; not used: how the server runs a model is set by its settings."
_TAG = ":latest"

_IMAGES = Unsupported("this server takes texts only", ([],))


def _new_tokens(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("zero", "should be -2, -1 or greater than 0")
    return value


NewTokens = Annotated[
    int,
    Field(ge=-2, le=MAX_TOKENS, strict=False),
    AfterValidator(_new_tokens),
    WithJsonSchema({"type": "integer", "minimum": -2, "maximum": MAX_TOKENS, "not": {"const": 0}}),
]
"""A number of tokens; -1 and -2 for as many as the model's context has space for."""


def _format(value: object) -> object:
    if value in ("", "json") or isinstance(value, dict):
        return value
    raise PydanticCustomError("format", "input should be json or a JSON Schema")


Format = Annotated[
    Any, BeforeValidator(_format), WithJsonSchema({"anyOf": [{"enum": ["", "json"]}, {"type": "object"}]})
]
"""The form of the answer: ``json`` for any JSON object, or a JSON Schema."""

Model = Annotated[Text, Field(max_length=256), AfterValidator(lambda name: name.removesuffix(_TAG) or name)]
"""A served model's id; Ollama's default tag ``:latest`` may follow it."""

KeepAlive = Annotated[int | float | Annotated[str, Field(max_length=64)], Field(union_mode="left_to_right")]
"""Seconds, or a duration as Go writes it, such as ``5m``."""

Think = bool | Literal["low", "medium", "high", "max"]


def unloads(keep_alive: float | str | None) -> bool:
    """Return whether ``keep_alive`` is a duration of zero, such as 0 or ``0s``."""
    if isinstance(keep_alive, str):
        return keep_alive.rstrip("nuµmsh") in ("0", "0.0")
    return keep_alive == 0 and keep_alive is not None


class OllamaOptions(Strict):
    """Ollama's options of a model."""

    unsupported = MappingProxyType(
        {
            "mirostat": Unsupported("sampling by Mirostat is not supported by this server", (0,)),
            "typical_p": Unsupported("locally typical sampling is not supported by this server", (1, 0)),
            "tfs_z": Unsupported("tail-free sampling is not supported by this server", (1,)),
            "repeat_last_n": Unsupported("penalties apply to all tokens on this server", (-1,)),
        }
    )

    num_predict: NewTokens | None = Field(
        None, description="Maximum number of new tokens; -1 and -2 are up to the end of the context."
    )
    temperature: Temperature | None = Field(None, description="0 is greedy; 0.8 if left out.")
    top_k: TopK | None = Field(None, description="Sample from the k most likely tokens; 40 if left out; 0 is all.")
    top_p: TopP | None = Field(
        None, description="Sample from the most likely tokens with this total probability; 0.9 if left out."
    )
    min_p: MinP | None = Field(None, description="Minimum probability, as a share of the most likely token's.")
    seed: Seed | None = Field(None, description="Seed of the random numbers.")
    stop: Stops | None = Field(None, description="Strings that end the text; they are not included in it.")
    repeat_penalty: RepetitionPenalty | None = Field(
        None, description="Values above 1 make tokens of the prompt and of the text so far less likely; 1 if left out."
    )
    presence_penalty: Penalty | None = Field(
        None, description="Values above 0 make tokens that were already generated less likely."
    )
    frequency_penalty: Penalty | None = Field(
        None, description="Like presence_penalty, but applied once for each time that a token was generated."
    )
    num_ctx: int | None = Field(
        None,
        ge=0,
        le=2**31 - 1,
        strict=False,
        description="Accepted for compatibility; not used: the context is always the model's whole one.",
    )
    num_keep: int | None = Field(
        None, strict=False, description="Accepted for compatibility; not used: this server does not shift the context."
    )
    mirostat_tau: float | None = Field(None, description="Accepted for compatibility; has no effect without mirostat.")
    mirostat_eta: float | None = Field(None, description="Accepted for compatibility; has no effect without mirostat.")
    penalize_newline: bool | None = Field(None, description="Accepted for compatibility; not used, as by Ollama.")
    num_batch: int | None = Field(None, strict=False, description=_HOW_IT_RUNS)
    num_gpu: int | None = Field(None, strict=False, description=_HOW_IT_RUNS)
    main_gpu: int | None = Field(None, strict=False, description=_HOW_IT_RUNS)
    num_thread: int | None = Field(None, strict=False, description=_HOW_IT_RUNS)
    numa: bool | None = Field(None, description=_HOW_IT_RUNS)
    low_vram: bool | None = Field(None, description=_HOW_IT_RUNS)
    f16_kv: bool | None = Field(None, description=_HOW_IT_RUNS)
    logits_all: bool | None = Field(None, description=_HOW_IT_RUNS)
    vocab_only: bool | None = Field(None, description=_HOW_IT_RUNS)
    embedding_only: bool | None = Field(None, description=_HOW_IT_RUNS)
    use_mmap: bool | None = Field(None, description=_HOW_IT_RUNS)
    use_mlock: bool | None = Field(None, description=_HOW_IT_RUNS)


class OllamaModelChoice(Strict):
    """A request with an optional model, which Ollama's own requests always have."""

    model: Model | None = Field(None, description="A served model's id; the default model if left out.")


class OllamaRequest(OllamaModelChoice):
    """A request with options."""

    options: OllamaOptions = Field(
        default_factory=OllamaOptions, description="Options of the model: sampling, and the number of tokens."
    )
    keep_alive: KeepAlive | None = Field(
        None,
        description="0 in a request without a prompt unloads the model, which needs the scope admin. Other values are "
        "accepted for compatibility: models stay loaded until the memory is needed.",
    )


class OllamaGeneration(MessageLogprobs, OllamaRequest):
    """What the requests for a text and for a message have in common."""

    format: Format = Field("", description="json for a JSON object, or a JSON Schema that the answer follows.")
    think: Think | None = Field(
        None,
        description="false: the model does not reason, if its chat template can turn it off; an effort is passed to "
        "the chat template.",
    )
    stream: bool = Field(True, description="Respond with a line of JSON for each piece of the text (over HTTP).")


_CUT = Unsupported("prompts that are too long are refused by this server", (False,))


class OllamaFunctionCall(Strict):
    """A function and its arguments, which are an object."""

    name: FunctionName
    arguments: dict[str, Any] = Field({}, description="The arguments.")
    index: int | None = Field(None, description="Accepted for compatibility; the order of the calls counts.")
    description: str | None = Field(None, description="Accepted for compatibility; not used.")


class OllamaToolCall(Strict):
    """A call of a tool in an assistant's message."""

    id: CallId | None = Field(None, description="Id of the call; its number if left out.")
    type: Literal["function"] | None = None
    function: OllamaFunctionCall


class OllamaMessage(Strict):
    """One message of a chat."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"role": {"const": "assistant"}}},
            "else": {
                "properties": {
                    "thinking": {"enum": ["", None]},
                    "tool_calls": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]},
                }
            },
        }
    )
    unsupported = MappingProxyType({"images": _IMAGES})

    role: Literal["system", "user", "assistant", "tool"]
    content: AnyText = Field("", description="Content of the message.")
    thinking: AnyText | None = Field(
        None, description="The reasoning before an assistant's message; chat templates may leave it out."
    )
    tool_calls: list[OllamaToolCall] | None = Field(
        None, max_length=MAX_TOOLS, description="The tools that an assistant's message calls."
    )
    tool_name: str | None = Field(None, max_length=256, description="Of a tool's message: the tool.")
    name: str | None = Field(None, max_length=256, description="Older name of tool_name.")
    tool_call_id: CallId | None = Field(
        None,
        description="Of a tool's message: the id of the call whose result it is; the tool's first call without a "
        "result if left out.",
    )

    _of_an_assistant = field_validator("thinking", "tool_calls")(of_an_assistant)


class OllamaFunction(Strict):
    """A function that the model may call."""

    name: FunctionName
    description: AnyText | None = None
    parameters: Parameters = Field({}, description="JSON Schema of the arguments, which are an object.")


class OllamaTool(Strict):
    """A tool: always a function."""

    type: Literal["function"] = "function"
    function: OllamaFunction


class OllamaChatRequest(OllamaGeneration):
    """Ollama's request for the next message of a chat; without messages it loads the model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "What is the capital of France?"}], "stream": False},
            ],
            "allOf": [needs("top_logprobs", "integer", "logprobs")],
        }
    )
    unsupported = MappingProxyType({"truncate": _CUT, "shift": _CUT})

    messages: list[OllamaMessage] = Field([], max_length=1024, description="The messages of the chat so far.")
    tools: list[OllamaTool] | None = Field(None, max_length=MAX_TOOLS, description="Functions that the model may call.")


_RAW: dict[str, Any] = {
    "if": {"required": ["raw"], "properties": {"raw": {"const": True}}},
    "then": {"properties": {"system": {"enum": ["", None]}}},
}


class OllamaGenerateRequest(OllamaGeneration):
    """Ollama's request for the answer to a prompt; without a prompt it loads the model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "What is the capital of France?", "stream": False},
                {"prompt": "Once upon a time", "raw": True, "options": {"num_predict": 16}, "stream": False},
            ],
            "allOf": [needs("top_logprobs", "integer", "logprobs"), _RAW],
        }
    )
    unsupported = MappingProxyType(
        {
            "images": _IMAGES,
            "suffix": Unsupported("a text after the completion is not supported by this server", ("",)),
            "template": Unsupported("the model's own chat template is always used", ("",)),
            "context": Unsupported("this server keeps no conversations: send the messages to /api/chat", ([],)),
            "truncate": _CUT,
            "shift": _CUT,
            "width": Unsupported("this server generates text only", (0,)),
            "height": Unsupported("this server generates text only", (0,)),
            "steps": Unsupported("this server generates text only", (0,)),
        }
    )

    prompt: AnyText = Field("", description="The prompt: the user's message, or with raw the text to continue.")
    system: AnyText = Field("", description="The system message.")
    raw: bool = Field(
        False,
        description="Continue the prompt itself, without the chat template, which a model may not have, nor system.",
    )

    @field_validator("raw")
    @classmethod
    def _without_system(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("system"):
            raise PydanticCustomError("two_forms", "cannot be combined with system")
        return value


class OllamaEmbedRequest(OllamaRequest):
    """Ollama's request for the vectors of texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["How do bees find flowers?"]}]})

    input: Texts = Field(
        max_length=MAX_PROMPTS, description="The text to embed, or a list of texts; without a text the model is loaded."
    )
    truncate: bool = Field(True, description="Whether the end of a text that is too long is cut off.")
    dimensions: int | None = Field(
        None, ge=1, le=1_000_000, strict=False, description="Return the first dimensions of each vector only."
    )


class OllamaEmbeddingsRequest(OllamaRequest):
    """Ollama's older request for the vector of one text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "How do bees find flowers?"}]})

    prompt: AnyText = Field("", description="The text to embed.")


class OllamaShowRequest(OllamaModelChoice):
    """Ollama's request for the metadata of a model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}]})

    name: Model | None = Field(None, description="Older name of model, which comes first.")
    verbose: bool = Field(False, description="Accepted for compatibility; the vocabulary is never returned.")
