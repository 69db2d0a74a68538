"""Models of a chat's messages, as OpenAI's clients send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import AnyText, only_text
from handlers.schemas.strict import Strict
from handlers.schemas.tools import MAX_TOOLS, FunctionName
from handlers.schemas.unsupported import MESSAGE


class PromptCaching(Strict):
    """Anthropic's cache breakpoint, accepted for compatibility. Prefix caching is automatic here."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


_REPEATED = "Accepted for compatibility; not used: OpenAI's Agents SDK for Node repeats the message's."


class TextPart(Strict):
    """A text part of a message's content, in OpenAI's form."""

    type: Literal["text"]
    text: AnyText
    role: Literal["assistant"] | None = Field(None, description=_REPEATED)
    tool_calls: Any = Field(None, description=_REPEATED)
    reasoning_content: Any = Field(None, description=_REPEATED)
    cache_control: PromptCaching | None = Field(None, description="Accepted for compatibility; not used.")


def _content_kind(value: object) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[AnyText, Tag("text")] | Annotated[list[Annotated[TextPart, BeforeValidator(only_text)]], Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="text_or_parts",
        custom_error_message="input should be a text or a list of text parts",
    ),
]
"""A message's content: a text or a list of text parts."""


class FunctionCall(Strict):
    """A function and its arguments."""

    name: FunctionName
    arguments: Annotated[AnyText, AfterValidator(lambda text: text or "{}")] = Field(
        description="The arguments: a JSON object, as text; or as far as the model wrote it."
    )
    parsed_arguments: Any = Field(None, description="Accepted for compatibility; not used.")


CallId = Annotated[str, Field(min_length=1, max_length=256)]


class MessageToolCall(Strict):
    """A call of a tool in an assistant's message."""

    id: CallId = Field(description="Id of the call, to which the tool's message refers.")
    type: Literal["function"]
    function: FunctionCall
    index: int | None = Field(None, description="Accepted for compatibility; not used.")


def of_an_assistant(value: Any, info: ValidationInfo) -> Any:
    """Return a field's value after checking that the field ``role`` allows it; for a validator of the field.

    Raises:
        PydanticCustomError: the message is not an assistant's, and has the field.
    """
    if value and info.data.get("role", "assistant") != "assistant":
        raise PydanticCustomError("wrong_role", "only an assistant's message has it")
    return value


_CALLS: dict[str, Any] = {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]}


class ChatMessage(Strict):
    """One message of a chat."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"role": {"const": "assistant"}}},
            "then": {"properties": {"tool_call_id": {"type": "null"}}},
            "else": {
                "required": ["content"],
                "properties": {
                    "content": {"not": {"type": "null"}},
                    "tool_calls": _CALLS,
                    "function_call": {"type": "null"},
                    "reasoning_content": {"enum": [None, ""]},
                    "reasoning": {"enum": [None, ""]},
                },
                "if": {"properties": {"role": {"const": "tool"}}},
                "then": {"required": ["tool_call_id"], "properties": {"tool_call_id": {"type": "string"}}},
                "else": {
                    "properties": {"tool_call_id": {"type": "null"}},
                    "if": {"properties": {"role": {"const": "function"}}},
                    "then": {"required": ["name"], "properties": {"name": {"type": "string"}}},
                },
            },
        }
    )
    unsupported = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool", "function"] = Field(
        description="Role of the author; developer is OpenAI's newer name of system, function its older one of tool."
    )
    content: Content | None = Field(
        None,
        validate_default=True,
        description="Content of the message; an assistant's may be null, which means empty.",
    )
    name: str | None = Field(
        None,
        max_length=64,
        validate_default=True,
        description="Of a function's message: the function. Of others: accepted for compatibility; not passed to the "
        "model.",
    )
    tool_calls: list[MessageToolCall] | None = Field(
        None, max_length=MAX_TOOLS, description="The tools that an assistant's message calls."
    )
    function_call: FunctionCall | None = Field(
        None, description="The function that an assistant's message calls, in OpenAI's older form."
    )
    tool_call_id: CallId | None = Field(
        None, validate_default=True, description="Of a tool's message: the id of the call whose result it is."
    )
    parsed: Any = Field(None, description="Accepted for compatibility; not used.")
    reasoning_content: AnyText | None = Field(
        None, description="The reasoning before an assistant's message; chat templates may leave it out."
    )
    reasoning: AnyText | None = Field(None, description="vLLM's name of reasoning_content, which comes first.")

    @field_validator("content")
    @classmethod
    def _something_said(cls, value: Content | None, info: ValidationInfo) -> Content:
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("missing", "field required")
        return "" if value is None else value

    @field_validator("name")
    @classmethod
    def _name_of_a_function(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("role") == "function":
            raise PydanticCustomError("missing", "field required")
        return value

    _of_an_assistant = field_validator("tool_calls", "function_call", "reasoning_content", "reasoning")(of_an_assistant)

    @field_validator("tool_call_id")
    @classmethod
    def _of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "role" in info.data and (value is None) == (info.data["role"] == "tool"):
            if value is None:
                raise PydanticCustomError("missing", "field required")
            raise PydanticCustomError("wrong_role", "only a tool's message has it")
        return value
