"""Fields that constrain the generated text, as OpenAI, vLLM and llama.cpp name them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.base import Cacheable
from handlers.schemas.fields import AnyText, Text, branch_of_type
from handlers.schemas.strict import Strict

_MAX_CHOICES = 1024


def _schema(value: object) -> object:
    """Accept a JSON Schema as an object, or as its JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PydanticCustomError("json_schema", "input is not JSON: {error}", {"error": str(error)}) from None
    if not isinstance(value, dict | bool):
        raise PydanticCustomError(
            "json_schema", "input should be a JSON Schema: an object, a boolean, or its JSON text"
        )
    return value


JSONSchema = Annotated[
    Any, BeforeValidator(_schema), WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "boolean"}]})
]
"""A JSON Schema; its JSON text is accepted, too."""

Choices = Annotated[list[Text], Field(min_length=1, max_length=_MAX_CHOICES)]


class PlainFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JSONObjectFormat(Strict):
    """Any JSON object, or JSON that is valid under a schema, which llama.cpp takes here, too."""

    model_config = ConfigDict(protected_namespaces=())

    type: Literal["json_object"]
    definition: JSONSchema | None = Field(None, alias="schema", description="A JSON Schema.")


class NamedSchema(Strict):
    """A JSON Schema with a name."""

    model_config = ConfigDict(protected_namespaces=(), populate_by_name=True, serialize_by_alias=True)

    name: Text | None = Field(None, max_length=64, description="Accepted for compatibility; not used.")
    description: str | None = Field(None, description="Accepted for compatibility; not used.")
    definition: JSONSchema = Field(alias="schema", description="The JSON Schema.")
    strict: bool | None = Field(None, description="Accepted for compatibility: a schema is always followed.")


class JSONSchemaFormat(Strict):
    """JSON that is valid under a schema, which is in ``json_schema``; llama.cpp takes it without a name, too."""

    model_config = ConfigDict(
        protected_namespaces=(),
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["json_schema"],
                    "properties": {"json_schema": {"type": "object"}, "schema": {"type": "null"}},
                },
                {
                    "required": ["schema"],
                    "properties": {"schema": {"not": {"type": "null"}}, "json_schema": {"type": "null"}},
                },
            ]
        },
    )

    type: Literal["json_schema"]
    json_schema: NamedSchema | None = Field(None, description="The JSON Schema with a name.")
    definition: JSONSchema | None = Field(None, alias="schema", description="The JSON Schema, if it has no name.")

    @model_validator(mode="after")
    def _one(self) -> JSONSchemaFormat:
        if (self.json_schema is None) == (self.definition is None):
            raise PydanticCustomError("one_schema", "json_schema: field required")
        return self


ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("<text>")]
    | Annotated[JSONObjectFormat, Tag("<json_object>")]
    | Annotated[JSONSchemaFormat, Tag("<json_schema>")],
    Discriminator(
        branch_of_type,
        custom_error_type="response_format",
        custom_error_message="type should be text, json_object or json_schema",
    ),
]
"""OpenAI's response format."""


_KINDS = ("json", "regex", "choice", "grammar", "json_object")


def _only(name: str) -> dict[str, Any]:
    given = {"const": True} if name == "json_object" else {"not": {"type": "null"}}
    others = {other: {"type": "null"} for other in _KINDS if other != name}
    return {"required": [name], "properties": {name: given} | others}


class StructuredOutputs(Strict):
    """vLLM's structured outputs: exactly one of the kinds."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_only(name) for name in _KINDS]})

    json_schema: JSONSchema | None = Field(None, alias="json", description="A JSON Schema that the text must match.")
    regex: Text | None = Field(None, description="A regular expression that the whole text must match.")
    choice: Choices | None = Field(None, description="The texts to choose from.")
    grammar: Text | None = Field(
        None, description="A grammar that the text must match, in Lark's syntax or llama.cpp's (GBNF)."
    )
    json_object: bool | None = Field(None, description="True for any JSON object.")

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1 or self.json_object is False:
            raise PydanticCustomError("structured_outputs", "give one of json, regex, choice, grammar, json_object")
        return self


_FIELDS = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "json_schema",
    "grammar",
)


class Structured(Cacheable):
    """A request whose text may be constrained, by one of the fields."""

    response_format: ResponseFormat | None = Field(
        None, description="Constrains the text to any JSON object, or to JSON that is valid under a schema."
    )
    guided_json: JSONSchema | None = Field(None, description="A JSON Schema that the text must match.")
    guided_regex: AnyText | None = Field(
        None, min_length=1, description="A regular expression that the whole text must match."
    )
    guided_choice: Choices | None = Field(None, description="The texts to choose from.")
    guided_grammar: AnyText | None = Field(
        None, min_length=1, description="A grammar that the text must match, in Lark's syntax or llama.cpp's (GBNF)."
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="The same in vLLM's newer form.")
    json_schema: JSONSchema | None = Field(None, description="llama.cpp's name of guided_json.")
    grammar: AnyText | None = Field(None, min_length=1, description="llama.cpp's name of guided_grammar.")

    @model_validator(mode="after")
    def _at_most_one(self) -> Structured:
        given = [name for name in _FIELDS if getattr(self, name) is not None]
        if isinstance(self.response_format, PlainFormat):
            given.remove("response_format")
        if len(given) > 1:
            raise PydanticCustomError("one_constraint", "give only one of {names}", {"names": ", ".join(given)})
        if given and self.ignore_eos:
            raise PydanticCustomError(
                "needs_end", "ignore_eos: a text that {name} constrains ends with an end token", {"name": given[0]}
            )
        return self
