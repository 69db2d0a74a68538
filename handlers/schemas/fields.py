"""Types of request fields: texts, texts or lists of texts, sampling parameters, logit biases."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError


def encodable(value: str) -> str:
    """Refuse a text with half of a surrogate pair."""
    # pydantic refuses a lone surrogate only in a string whose length it checks, and no tokenizer accepts one.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("lone_surrogate", "input should not contain half of a surrogate pair") from None
    return value


def branch_of_type(value: object) -> str | None:
    """Return the branch of a union of objects whose member ``type`` tells them apart.

    Branches are written in angle brackets, which keeps them out of the field names of errors.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if isinstance(kind, str) else None


def only_text(value: object) -> object:
    """Refuse a part or block of a message that is no text, before its members are."""
    kind = value.get("type") if isinstance(value, dict) else "text"
    if isinstance(kind, str) and kind != "text":
        raise PydanticCustomError("only_text", "type should be text; this server takes no images, audio or files")
    return value


Text = Annotated[str, Field(min_length=1)]
AnyText = Annotated[str, AfterValidator(encodable)]


def _listed(value: object) -> object:
    if not isinstance(value, str | list):
        raise PydanticCustomError("one_or_many", "input should be a text or a list of texts")
    return [value] if isinstance(value, str) else value


def _one_or_many(text: dict[str, Any], min_items: int, max_items: int) -> WithJsonSchema:
    return WithJsonSchema(
        {"anyOf": [text, {"type": "array", "items": text, "minItems": min_items, "maxItems": max_items}]}
    )


MAX_PROMPTS = 2048  # the limit of OpenAI's completions

MAX_ID = 2**31 - 1


def _whole(value: object) -> object:
    # 5.0 is an integer in JSON Schema. The test is quick, because a prompt may have a hundred thousand ids.
    if isinstance(value, list) and float in set(map(type, value)):
        return [int(item) if isinstance(item, float) and item.is_integer() else item for item in value]
    return value


TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_ID)]], BeforeValidator(_whole)]
"""Token ids; whether the model has them is checked by its engine."""


def _prompts(value: object) -> object:
    if isinstance(value, str) or (isinstance(value, list) and value and set(map(type, value)) <= {int, float}):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("prompts", "input should be a text, a list of texts, or token ids")
    return value


def _prompt_kind(value: object) -> str | None:
    return "<text>" if isinstance(value, str) else "<ids>" if isinstance(value, list) else None


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": MAX_ID}, "minItems": 1}

Prompts = Annotated[
    list[
        Annotated[
            Annotated[AnyText, Tag("<text>")] | Annotated[TokenIds, Field(min_length=1), Tag("<ids>")],
            Discriminator(
                _prompt_kind,
                custom_error_type="text_or_ids",
                custom_error_message="input should be a text or a list of token ids",
            ),
        ]
    ],
    BeforeValidator(_prompts),
    Field(min_length=1, max_length=MAX_PROMPTS),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, _IDS]},
                    "minItems": 1,
                    "maxItems": MAX_PROMPTS,
                },
                _IDS,
            ]
        }
    ),
]
"""A text, token ids, or a list of either; validation makes it a list."""

Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    BeforeValidator(_listed),
    Field(max_length=16),
    _one_or_many({"type": "string", "minLength": 1, "maxLength": 256}, 0, 16),
]
"""A stop string or a list of them, possibly empty; validation makes it a list. An empty string is refused, because it
would end every text at its start.
"""

Texts = Annotated[list[AnyText], BeforeValidator(_listed), _one_or_many({"type": "string"}, 0, MAX_PROMPTS)]
"""A text or a list of texts, possibly empty; validation makes it a list."""

BadWords = Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=128)]

MAX_TOKENS = 10_000_000
"""The greatest number of tokens that a request may set."""


def _not_zero(value: int) -> int:
    if value == 0:
        raise PydanticCustomError("zero", "should be -1 or greater than 0")
    return value


TokensOrAll = Annotated[
    int,
    Field(ge=-1, le=MAX_TOKENS, strict=False),
    AfterValidator(_not_zero),
    WithJsonSchema({"type": "integer", "minimum": -1, "maximum": MAX_TOKENS, "not": {"const": 0}}),
]
"""A number of tokens; -1 for as many as the model's context has space for."""

Temperature = Annotated[float, Field(ge=0, le=2, strict=False)]
TopP = Annotated[float, Field(ge=0, le=1, strict=False)]
TopK = Annotated[int, Field(ge=-1, le=1_000_000, strict=False), AfterValidator(lambda value: max(0, value))]
"""OpenAI's clients of vLLM send -1 for all tokens; validation makes it 0."""
MinP = Annotated[float, Field(ge=0, le=1, strict=False)]
RepetitionPenalty = Annotated[float, Field(gt=0, le=10, strict=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, strict=False)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1, strict=False)]

_TOKEN_ID = r"0|[1-9][0-9]{0,9}"  # noqa: S105 - a pattern


def _token_id(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch(_TOKEN_ID, value):
        raise PydanticCustomError("token_id", "keys should be token ids in decimal digits")
    return int(value)


LogitBias = Annotated[
    dict[Annotated[int, BeforeValidator(_token_id)], Annotated[float, Field(ge=-100, le=100)]],
    Field(max_length=300),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": f"^({_TOKEN_ID})$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "maxProperties": 300,
        }
    ),
]
"""Token ids and the numbers added to their logits; JSON has the ids as strings, validation makes them integers."""
