"""Base classes of the request models: choice of model, sampling parameters, cache control."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from handlers.schemas.fields import (
    LogitBias,
    MinP,
    Penalty,
    RepetitionPenalty,
    Seed,
    Stops,
    Temperature,
    Text,
    TopK,
    TopP,
)
from handlers.schemas.strict import Strict


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
        0.9, description="Sample from the smallest set of tokens with this probability; 1 is all, 0 is greedy."
    )
    top_k: TopK = Field(50, description="Sample from the k likeliest tokens; 0 is all.")
    min_p: MinP = Field(0.0, description="Drop tokens less likely than this times the likeliest one; 0 is none.")
    repetition_penalty: RepetitionPenalty = Field(
        1.0, description="Above 1 makes tokens already seen, prompt included, less likely."
    )
    presence_penalty: Penalty = Field(0.0, description="Above 0 makes tokens already generated less likely.")
    frequency_penalty: Penalty = Field(0.0, description="The same, once for every time a token was generated.")
    logit_bias: LogitBias | None = Field(
        None, description="Token id to a number added to its logit: -100 all but bans a token, 100 all but forces it."
    )
    stop: Stops | None = Field(None, description="Strings that end the text; they are not part of it.")
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same text.")
    stream: bool = Field(False, description="Answer with server-sent events as tokens come (HTTP), or call stream().")


class Cacheable(Sampling):
    """A request whose response may be cached."""

    cache_control: str | None = Field(
        None,
        max_length=8192,
        description="As HTTP's Cache-Control (RFC 9111 section 5.2.1), which fills it where it is left out. no-store: "
        "keep no answer and give no kept one; no-cache: compute it anew; max-age=SECONDS: give none that is older.",
    )
