"""Base classes of the request models: choice of model, sampling parameters, cache control."""

from __future__ import annotations

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from handlers.schemas.fields import (
    BadWords,
    LogitBias,
    MinP,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    Text,
    TokenIds,
    TopK,
    TopP,
)
from handlers.schemas.strict import Strict, check_needs


class Empty(Strict):
    """A request without fields."""


class ModelChoice(Strict):
    """A request with an optional model; the default model if it is left out."""

    model: Text | None = Field(None, max_length=256, description="A served model's id; the default model if left out.")


class ModelName(Strict):
    """A request that names a model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "smollm2-135m-instruct"}]})

    model: Text = Field(max_length=256, description="A served model's id.")


class Sampling(ModelChoice):
    """Sampling parameters; their defaults are the same for every operation."""

    temperature: Temperature = Field(
        0.7, description="0 is greedy (always the most likely token); higher is more varied."
    )
    top_p: TopP = Field(
        0.9,
        description="Sample from the most likely tokens with this total probability; 1 is all, 0 is greedy.",
    )
    top_k: TopK = Field(50, description="Sample from the k most likely tokens; 0 or -1 is all.")
    min_p: MinP = Field(
        0.0, description="Minimum probability of a token, as a share of the most likely token's; 0 is no minimum."
    )
    repetition_penalty: RepetitionPenalty = Field(
        1.0, description="Values above 1 make tokens of the prompt and of the text so far less likely."
    )
    presence_penalty: Penalty = Field(
        0.0, description="Values above 0 make tokens that were already generated less likely."
    )
    frequency_penalty: Penalty = Field(
        0.0, description="Like presence_penalty, but applied once for each time that a token was generated."
    )
    logit_bias: LogitBias | None = Field(
        None,
        description="Map of token ids to numbers added to their logits; -100 practically bans a token, 100 forces it.",
    )
    stop: Stops | None = Field(None, description="Strings that end the text; they are not included in it.")
    stop_token_ids: TokenIds | None = Field(
        None, max_length=128, description="Ids of further tokens that end the text; they are not included in it."
    )
    ignore_eos: bool = Field(
        False,
        description="Continue behind the model's own end tokens, up to the maximum number of tokens; not with "
        "structured output, tools or a token budget of the reasoning.",
    )
    allowed_token_ids: TokenIds | None = Field(
        None,
        min_length=1,
        max_length=1_000_000,
        description="Ids of the only tokens that may be generated; not with structured output or tools.",
    )
    bad_words: BadWords | None = Field(
        None,
        description="Texts that are not generated, as the tokenizer writes them at the start of a text and behind a "
        "blank; not with structured output or tools.",
    )
    include_stop_str_in_output: bool = Field(
        False, description="Whether the text includes the stop string or stop token that ended it."
    )
    skip_special_tokens: bool = Field(
        True, description="Whether control tokens are left out of the text; otherwise it has their names."
    )
    spaces_between_special_tokens: bool = Field(
        True, description="Accepted for compatibility: there are never blanks between control tokens."
    )
    seed: Seed | None = Field(
        None, description="Seed of the random numbers: the same request with the same seed gives the same text."
    )
    stream: bool = Field(
        False,
        description="Respond with server-sent events while tokens are generated (over HTTP); in Python, use stream().",
    )


class CacheControlled(Strict):
    """A request that says how the response cache is used."""

    cache_control: str | None = Field(
        None,
        max_length=8192,
        description="Cache directives as in HTTP's Cache-Control (RFC 9111 section 5.2.1), which is the default. "
        "no-store: neither read nor write the response cache; no-cache: do not read it; max-age=SECONDS: use no "
        "response that is older.",
    )


class MessageLogprobs(Strict):
    """A request for a chat's message whose log-probabilities may be returned."""

    logprobs: bool = Field(False, description="Return the log-probability of each token.")
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        strict=False,
        description="Number of most likely alternatives to return for each token; requires logprobs to be true.",
    )

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        return check_needs(value, info, "logprobs")


class Cacheable(CacheControlled, Sampling):
    """A generating request whose response may be cached."""
