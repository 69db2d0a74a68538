"""The fields that OpenAI's chat completions and completions have in common, with vLLM's additions."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import MAX_TOKENS, Temperature, TokensOrAll, TopK, TopP
from handlers.schemas.prompt import PromptFields
from handlers.schemas.strict import Strict, check_needs
from handlers.schemas.structured import Structured
from handlers.schemas.unsupported import STREAM_OPTIONS

MAX_NEW_TOKENS = MAX_TOKENS
"""The greatest number of new tokens that a request may set."""


class StreamOptions(Strict):
    """OpenAI's stream options."""

    unsupported = STREAM_OPTIONS

    include_usage: bool = Field(False, description="End the stream with a chunk that contains the usage.")
    continuous_usage_stats: bool = Field(
        False, description="Also put the usage so far into every other chunk, if include_usage is true."
    )


def not_streamed(field: str) -> dict[str, Any]:
    """Return a JSON schema rule: with ``field`` not null, ``stream`` must not be true."""
    return {
        "not": {
            "required": [field, "stream"],
            "properties": {field: {"type": "integer"}, "stream": {"const": True}},
        }
    }


class OpenAIRequest(PromptFields, Structured):
    """A request of OpenAI's chat completions or completions. Its sampling defaults are OpenAI's.

    With ``GENERATION_CONFIG=model`` a model's own values take the place of the defaults.
    """

    temperature: Temperature = Field(
        1.0, description="0 is greedy (always the most likely token); higher is more varied."
    )
    top_p: TopP = Field(
        1.0,
        description="Sample from the most likely tokens with this total probability; 1 is all, 0 is greedy.",
    )
    top_k: TopK = Field(0, description="Sample from the k most likely tokens; 0 or -1 is all.")
    n: int = Field(1, ge=1, le=1024, strict=False, description="Number of choices for each chat or prompt.")
    stream_options: StreamOptions | None = Field(None, description="Options of the stream; requires stream to be true.")
    user: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")
    n_predict: TokensOrAll | None = Field(
        None, description="llama.cpp's name of max_tokens; -1 is up to the end of the context. The lower limit applies."
    )
    cache_prompt: bool = Field(
        True, description="Accepted for compatibility; not used: prefix caching is automatic and changes no answer."
    )
    id_slot: int | None = Field(
        None, ge=-1, strict=False, description="Accepted for compatibility; not used: there are no slots."
    )
    timings_per_token: bool = Field(
        False,
        description="llama.cpp's: return the times and rates of prompt and answer, also in the chunks of a stream.",
    )
    return_token_ids: bool = Field(
        False, description="Return the token ids of each choice (token_ids) and of the prompt (prompt_token_ids)."
    )
    return_tokens_as_token_ids: bool = Field(
        False, description="Name tokens in log-probabilities token_id: and their id, instead of by their text."
    )
    request_id: str | None = Field(
        None,
        pattern="^[!-~]{1,128}$",
        description="Random part of the response's id; chosen by the server if left out.",
    )
    session_id: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        strict=False,
        description="Return the log-probability of each token of the prompt and of this many most likely alternatives; "
        "not with stream.",
    )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @field_validator("prompt_logprobs")
    @classmethod
    def _not_streamed(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stream") is True:
            raise PydanticCustomError("not_streamed", "needs stream to be false")
        return value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        return check_needs(value, info, "stream")
