"""Turns of a conversation in Anthropic's Messages API and the blocks of their content."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import AnyText, branch_of_type, only_text
from handlers.schemas.messages import CallId, PromptCaching
from handlers.schemas.responses_api_items import text_or_list
from handlers.schemas.strict import Strict
from handlers.schemas.tools import FunctionName
from handlers.schemas.unsupported import Unsupported

CACHING = "Accepted for compatibility; not used: prefix caching is automatic."
_CALLER = Unsupported("programmatic calls are not supported by this server", ({"type": "direct"},))
_TOOLSET = Unsupported("sets of tools are not supported by this server")


class Markable(Strict):
    """What may have a cache breakpoint."""

    cache_control: PromptCaching | None = Field(None, description=CACHING)


class TextBlock(Markable):
    """A text."""

    unsupported = MappingProxyType({"citations": Unsupported("citations are not supported by this server", ([],))})

    type: Literal["text"]
    text: AnyText


class ToolUseBlock(Markable):
    """A call of a tool that the model made."""

    unsupported = MappingProxyType({"caller": _CALLER, "toolset_name": _TOOLSET})

    type: Literal["tool_use"]
    id: CallId
    name: FunctionName
    input: dict[str, Any]


class ThinkingBlock(Markable):
    """Reasoning of an earlier answer; that of a ``redacted_thinking`` block is left out."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


def _block_type(value: object) -> str | None:
    branch = branch_of_type(value)
    return "<thinking>" if branch == "<redacted_thinking>" else branch


_TEXT_OR_BLOCKS = Discriminator(
    text_or_list,
    custom_error_type="text_or_blocks",
    custom_error_message="input should be a text or a list of blocks",
)
TextOrTextBlocks = Annotated[
    Annotated[AnyText, Tag("<text>")]
    | Annotated[list[Annotated[TextBlock, BeforeValidator(only_text)]], Tag("<list>")],
    _TEXT_OR_BLOCKS,
]


class ToolResultBlock(Markable):
    """The result of a tool; ``is_error`` puts ``Error:`` before its text."""

    unsupported = MappingProxyType({"toolset_name": _TOOLSET})

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: TextOrTextBlocks | None = None
    is_error: bool = False


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")],
    Discriminator(
        _block_type,
        custom_error_type="block",
        custom_error_message="type should be text, tool_use, tool_result, thinking or redacted_thinking; "
        "this server takes no images or documents, and has no tools of its own",
    ),
]
_BLOCKS_BY_ROLE: dict[str, tuple[type[Markable], ...]] = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ToolUseBlock, ThinkingBlock),
    "system": (TextBlock,),
}
_TYPES_BY_ROLE = {
    "user": ["text", "tool_result"],
    "assistant": ["text", "tool_use", "thinking", "redacted_thinking"],
    "system": ["text"],
}


def _blocks_of(role: str) -> dict[str, Any]:
    blocks = {"items": {"properties": {"type": {"enum": _TYPES_BY_ROLE[role]}}}}
    return {
        "if": {"properties": {"role": {"const": role}}},
        "then": {"properties": {"content": blocks}},
    }


class InputTurn(Strict):
    """One turn of the conversation."""

    model_config = ConfigDict(json_schema_extra={"allOf": [_blocks_of(role) for role in _TYPES_BY_ROLE]})

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[AnyText, Tag("<text>")] | Annotated[list[Block], Field(min_length=1), Tag("<list>")],
        _TEXT_OR_BLOCKS,
    ]

    @field_validator("content")
    @classmethod
    def _blocks_fit_the_role(cls, value: str | list[Markable], info: ValidationInfo) -> str | list[Markable]:
        allowed = _BLOCKS_BY_ROLE.get(info.data.get("role", ""), (Markable,))
        for block in value if isinstance(value, list) else ():
            if not isinstance(block, allowed):
                raise PydanticCustomError(
                    "block_of_role",
                    "a turn of this role has no block of type {kind}",
                    {"kind": getattr(block, "type", "")},
                )
        return value
