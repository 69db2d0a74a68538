"""Request models of OpenAI's Decisions API: an input, and typed questions about it."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag, WithJsonSchema
from pydantic_core import PydanticCustomError

from handlers.schemas.base import ModelChoice
from handlers.schemas.fields import AnyText, branch_of_type
from handlers.schemas.responses_api_items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputText,
    MessageItem,
    OutputText,
    text_or_list,
)
from handlers.schemas.strict import Strict
from handlers.schemas.unsupported import Unsupported

_OBJECTS = {"anyOf": [{"type": "object"}, {"type": "array", "items": {"type": "object"}}]}


def _objects(value: Any) -> Any:
    if isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        return value
    raise PydanticCustomError("json_objects", "input should be a JSON object or a list of objects")


class InputJSON(Strict):
    """JSON, which the model reads as text."""

    type: Literal["input_json"]
    data: Annotated[Any, AfterValidator(_objects), WithJsonSchema(_OBJECTS)]

    @property
    def text(self) -> str:
        """The JSON in its shortest form."""
        return json.dumps(self.data, ensure_ascii=False, separators=(",", ":"))


_PART = "type should be input_text, output_text or input_json; this server takes no images"
DecisionPart = Annotated[
    Annotated[InputText, Tag("<input_text>")]
    | Annotated[OutputText, Tag("<output_text>")]
    | Annotated[InputJSON, Tag("<input_json>")],
    Discriminator(branch_of_type, custom_error_type="decision_part", custom_error_message=_PART),
]
DecisionText = Annotated[
    Annotated[AnyText, Tag("<text>")] | Annotated[list[DecisionPart], Tag("<list>")],
    Discriminator(
        text_or_list,
        custom_error_type="text_or_parts",
        custom_error_message="input should be a text or a list of parts",
    ),
]


class DecisionMessage(MessageItem):
    """A message of the input."""

    content: DecisionText


def _item_kind(value: object) -> str | None:
    return "<message>" if isinstance(value, dict) and value.get("type") is None else branch_of_type(value)


DecisionItem = Annotated[
    Annotated[DecisionMessage, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")],
    Discriminator(
        _item_kind,
        custom_error_type="decision_item",
        custom_error_message="type should be message, function_call or function_call_output",
    ),
]


def _choice_value(value: object) -> str | bool:
    if isinstance(value, str | bool):
        return value
    raise PydanticCustomError("choice_value", "input should be a text or a boolean")


class DecisionChoice(Strict):
    """One of the choices of a question."""

    value: Annotated[
        str | bool, PlainValidator(_choice_value), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "boolean"}]})
    ] = Field(description="The choice, as the answer has it.")
    description: AnyText | None = Field(None, description="What the model is told about it.")


class ScoreLevel(Strict):
    """One of the levels of a score."""

    label: AnyText = Field(description="The level's name.")
    description: AnyText | None = Field(None, description="What the model is told about it.")


class _Question(Strict):
    instructions: DecisionText = Field(description="The question, or for a predicate the statement.")
    name: AnyText | None = Field(None, max_length=1024, description="Returned with the answer.")


class PredicateQuestion(_Question):
    """Asks how likely it is that a statement about the input is true."""

    type: Literal["predicate"]


def _distinct(choices: list[DecisionChoice]) -> list[DecisionChoice]:
    if len({(type(choice.value), choice.value) for choice in choices}) < len(choices):
        raise PydanticCustomError("distinct_choices", "input should not contain the same value twice")
    return choices


class ChoiceQuestion(_Question):
    """Asks for one of several choices."""

    type: Literal["choice"]
    choices: Annotated[list[DecisionChoice], AfterValidator(_distinct)] = Field(
        min_length=2, max_length=255, description="The choices, each with another value."
    )


class ScoreQuestion(_Question):
    """Asks for a level on an ordered scale."""

    type: Literal["score"]
    levels: list[ScoreLevel] = Field(min_length=2, max_length=10, description="The levels, in order.")


DecisionQuestion = Annotated[
    Annotated[PredicateQuestion, Tag("<predicate>")]
    | Annotated[ChoiceQuestion, Tag("<choice>")]
    | Annotated[ScoreQuestion, Tag("<score>")],
    Discriminator(
        branch_of_type,
        custom_error_type="decision_question",
        custom_error_message="type should be predicate, choice or score",
    ),
]


class DecisionsRequest(ModelChoice):
    """OpenAI's request for decisions about an input."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input": "The package arrived with a broken screen.",
                    "questions": [
                        {"type": "predicate", "name": "damaged", "instructions": "The item is damaged."},
                        {
                            "type": "choice",
                            "instructions": "Which department should answer?",
                            "choices": [{"value": "returns"}, {"value": "billing", "description": "Payments"}],
                        },
                        {
                            "type": "score",
                            "instructions": "How severe is the damage?",
                            "levels": [{"label": "cosmetic"}, {"label": "broken"}],
                        },
                    ],
                }
            ]
        }
    )
    unsupported = MappingProxyType(
        {"prompt_cache_options": Unsupported("options of the prompt cache are not supported by this server")}
    )

    input: Annotated[
        Annotated[AnyText, Tag("<text>")]
        | Annotated[list[DecisionItem], Field(min_length=1, max_length=1024), Tag("<list>")],
        Discriminator(
            text_or_list,
            custom_error_type="text_or_items",
            custom_error_message="input should be a text or a list of items",
        ),
    ] = Field(description="What the questions are about: a text, or a conversation as a list of items.")
    questions: list[DecisionQuestion] = Field(
        min_length=1, max_length=400, description="The questions, answered in order."
    )
    prompt_cache_key: str | None = Field(
        None, max_length=256, description="Accepted for compatibility; not used: prefix caching is automatic."
    )
    safety_identifier: str | None = Field(None, max_length=256, description="Accepted for compatibility; not used.")
