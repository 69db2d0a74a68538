"""Response models of OpenAI's Decisions API, for OpenAPI and tests; the operation itself builds plain dicts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from handlers.schemas.responses import LazyModel
from handlers.schemas.responses_api_objects import InputTokensDetails, OutputTokensDetails

_CONFIDENCE = (
    "Probability of the most likely answer's label among all tokens; low if the model would say something else."
)


class PredicateAnswer(LazyModel):
    """How likely a statement is."""

    type: Literal["predicate"]
    name: str | None
    probability: float


class ChoiceProbability(LazyModel):
    """The probability of a choice."""

    value: str | bool
    probability: float


class ChoiceAnswer(LazyModel):
    """The most likely choice."""

    type: Literal["choice"]
    name: str | None
    choice: str | bool
    probabilities: list[ChoiceProbability] = Field(description="In order of the choices; their sum is 1.")
    confidence: float = Field(description=_CONFIDENCE)


class LevelProbability(LazyModel):
    """The probability of a level."""

    value: int = Field(description="The level's index, from 0.")
    label: str
    probability: float


class ScoreAnswer(LazyModel):
    """A position on the scale."""

    type: Literal["score"]
    name: str | None
    score: float = Field(description="The mean of the levels' indices, weighted by their probabilities.")
    probabilities: list[LevelProbability] = Field(description="In order of the levels; their sum is 1.")
    confidence: float = Field(description=_CONFIDENCE)


class DecisionUsage(LazyModel):
    """Counts of tokens: the prompts of all questions, and the labels that were scored."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class DecisionsResponse(LazyModel):
    """The answers, in order of the questions."""

    model: str
    answers: list[Annotated[PredicateAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]]
    usage: DecisionUsage
