"""Models of a chat's messages, as OpenAI's clients send them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import AnyText
from handlers.schemas.strict import Strict
from handlers.schemas.unsupported import MESSAGE


class PromptCaching(Strict):
    """Anthropic's cache breakpoint, accepted for compatibility. Prefix caching is automatic here."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextPart(Strict):
    """A text part of a message's content, in OpenAI's form."""

    type: Literal["text"]
    text: AnyText
    cache_control: PromptCaching | None = Field(None, description="Accepted for compatibility; not used.")


def _content_kind(value: object) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[AnyText, Tag("text")] | Annotated[list[TextPart], Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="text_or_parts",
        custom_error_message="input should be a text or a list of text parts",
    ),
]
"""A message's content: a text or a list of text parts."""


class ChatMessage(Strict):
    """One message of a chat."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"role": {"const": "assistant"}}},
            "else": {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
        }
    )
    unsupported = MESSAGE

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="Role of the author; developer is OpenAI's newer name of system."
    )
    content: Content | None = Field(
        None,
        validate_default=True,
        description="Content of the message; an assistant's may be null, which means empty.",
    )
    name: str | None = Field(None, max_length=64, description="Accepted for compatibility; not passed to the model.")

    @field_validator("content")
    @classmethod
    def _something_said(cls, value: Content | None, info: ValidationInfo) -> Content:
        if value is None and info.data.get("role", "assistant") != "assistant":
            raise PydanticCustomError("missing", "field required")
        return "" if value is None else value
