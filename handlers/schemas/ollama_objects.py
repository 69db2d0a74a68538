"""Response models of Ollama's API, for OpenAPI and tests; the operations themselves build plain dicts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from handlers.schemas.responses import LazyModel


class OllamaLikelyToken(LazyModel):
    """A token and its log-probability."""

    token: str
    logprob: float = Field(description="Natural logarithm of the probability; -9999 stands for all lower values.")


class OllamaLogprob(OllamaLikelyToken):
    """A generated token, its log-probability and the likeliest alternatives."""

    top_logprobs: list[OllamaLikelyToken] = Field(description="Most likely first; empty unless requested.")


class OllamaAnswer(LazyModel):
    """What a line of a stream and a whole answer have in common; the counts and times are in the last line only."""

    model: str
    created_at: str = Field(description="Time of this line, RFC 3339 in UTC.")
    done: bool = Field(description="Whether this is the last line.")
    done_reason: Literal["stop", "length", "load", "unload"] | None = None
    total_duration: int | None = Field(None, description="Nanoseconds from the request to the end of the answer.")
    load_duration: int | None = Field(None, description="Nanoseconds in which the model was loaded or waited for.")
    prompt_eval_count: int | None = Field(None, description="Number of tokens of the prompt.")
    prompt_eval_duration: int | None = Field(
        None, description="Nanoseconds up to the first token, with the time in the queue."
    )
    eval_count: int | None = Field(None, description="Number of generated tokens.")
    eval_duration: int | None = Field(None, description="Nanoseconds from the first token to the last one.")
    logprobs: list[OllamaLogprob] | None = Field(None, description="If requested; of the tokens of this line.")


class OllamaCalledFunction(LazyModel):
    """A function that the model calls."""

    index: int
    name: str
    arguments: dict[str, Any] = Field(description="Empty if the call was cut off.")


class OllamaCall(LazyModel):
    """A call of a tool."""

    id: str
    function: OllamaCalledFunction


class OllamaAnswerMessage(LazyModel):
    """The assistant's message, or a piece of it."""

    role: Literal["assistant"]
    content: str
    thinking: str | None = Field(None, description="The reasoning before the content.")
    tool_calls: list[OllamaCall] | None = None


class OllamaChatResponse(OllamaAnswer):
    """The next message of a chat, or a line with a piece of it."""

    message: OllamaAnswerMessage


class OllamaGenerateResponse(OllamaAnswer):
    """The answer to a prompt, or a line with a piece of it."""

    response: str
    thinking: str | None = Field(None, description="The reasoning before the response.")


class OllamaEmbedResponse(LazyModel):
    """The vectors of texts."""

    model: str
    embeddings: list[list[float]]
    total_duration: int = Field(description="Nanoseconds.")
    load_duration: int = Field(description="Nanoseconds in which the model was loaded or waited for.")
    prompt_eval_count: int = Field(description="Number of tokens of all texts.")


class OllamaEmbeddingsResponse(LazyModel):
    """The vector of a text."""

    embedding: list[float]


class OllamaDetails(LazyModel):
    """What kind of model it is; empty texts if it is not loaded."""

    parent_model: str
    format: str = Field(description="Kind of the model's source: wheel, hub, folder or gguf.")
    family: str = Field(description="The architecture.")
    families: list[str]
    parameter_size: str = Field(description="Number of parameters, such as 134.52M.")
    quantization_level: str = Field(description="Number type of most weights.")


class OllamaModel(LazyModel):
    """A served model."""

    name: str
    model: str = Field(description="The same.")
    modified_at: str = Field(description="Time at which the model was registered, RFC 3339 in UTC.")
    size: int = Field(description="Memory that the model uses, in bytes; 0 if it is not loaded.")
    digest: str = Field(description="Identifies what determines the answers; if it is not loaded, the name only.")
    details: OllamaDetails


class OllamaModels(LazyModel):
    """The served models."""

    models: list[OllamaModel]


class OllamaRunningModel(LazyModel):
    """A loaded model."""

    name: str
    model: str = Field(description="The same.")
    size: int = Field(description="Memory that the model uses, in bytes.")
    digest: str
    details: OllamaDetails
    expires_at: str | None = Field(description="Always null: a model stays loaded until the memory is needed.")
    size_vram: int = Field(description="The same as size on a GPU, else 0.")
    context_length: int


class OllamaRunningModels(LazyModel):
    """The loaded models."""

    models: list[OllamaRunningModel]


class OllamaShowResponse(LazyModel):
    """The metadata of a model."""

    modelfile: str = Field(description="Always empty: there are no Modelfiles.")
    parameters: str = Field(description="The model's own sampling parameters, one in a line, if they are used.")
    template: str = Field(description="The chat template, in Jinja; empty if there is none.")
    details: OllamaDetails
    model_info: dict[str, Any] = Field(description="Metadata by the names that GGUF has for them.")
    capabilities: list[Literal["completion", "tools", "thinking", "embedding"]]
    modified_at: str


class OllamaVersion(LazyModel):
    """The version of Ollama whose API this server has."""

    version: str
