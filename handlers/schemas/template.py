"""Fields that say how a chat is formatted with the model's template, as vLLM names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import AnyText
from handlers.schemas.strict import Strict
from runtime.types import TemplateOptions

_MAX_ARGUMENT_CHARS = 16_384
_OWN_NAMES = ("messages", "tools", "documents", "add_generation_prompt")


def _arguments(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse names of variables that have other fields, values that are no text, and too many of them."""
    for name in _OWN_NAMES:
        if name in value:
            raise PydanticCustomError("own_name", "{name} cannot be set here", {"name": name})
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("lone_surrogate", "input should not contain half of a surrogate pair") from None
    if len(text) > _MAX_ARGUMENT_CHARS:
        raise PydanticCustomError(
            "too_long",
            "{size} characters of JSON exceed the limit of {limit}",
            {"size": len(text), "limit": _MAX_ARGUMENT_CHARS},
        )
    return value


TemplateArguments = Annotated[
    dict[AnyText, Any],
    AfterValidator(_arguments),
    Field(max_length=64, json_schema_extra={"propertyNames": {"not": {"enum": list(_OWN_NAMES)}}}),
]
"""Variables of a chat template by name, bounded in size."""

ONE_END: dict[str, Any] = {
    "not": {
        "required": ["add_generation_prompt", "continue_final_message"],
        "properties": {"add_generation_prompt": {"const": True}, "continue_final_message": {"const": True}},
    }
}
"""JSON Schema rule: a chat ends with the start of an answer or with the last message, not both."""


class TemplateFields(Strict):
    """A request with a chat that the model's template formats."""

    add_generation_prompt: bool | None = Field(
        None,
        description="Whether the prompt ends with the start of the assistant's next message; true by default, unless "
        "continue_final_message is true.",
    )
    continue_final_message: bool = Field(
        False, description="Whether the prompt ends with the last message's text, which the model continues."
    )
    chat_template_kwargs: TemplateArguments | None = Field(
        None, description="Further variables of the chat template, for example enable_thinking."
    )

    @field_validator("continue_final_message")
    @classmethod
    def _one_end(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("add_generation_prompt"):
            raise PydanticCustomError("one_end", "needs add_generation_prompt to be false or left out")
        return value

    def template_options(
        self, more: Mapping[str, Any] | None = None, *, add_special_tokens: bool | None = None
    ) -> TemplateOptions:
        """Return the options for the template.

        Args:
            more: variables of the template that ``chat_template_kwargs`` may replace.
            add_special_tokens: see ``TemplateOptions``.
        """
        return TemplateOptions(
            add_generation_prompt=self.add_generation_prompt is not False,
            continue_final_message=self.continue_final_message,
            arguments=json.dumps({**(more or {}), **(self.chat_template_kwargs or {})}, sort_keys=True),
            add_special_tokens=add_special_tokens,
        )
