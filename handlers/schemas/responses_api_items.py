"""Items of a conversation in OpenAI's Responses API: messages, function calls and their results, reasoning."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import AnyText, branch_of_type
from handlers.schemas.messages import CallId, FunctionCall
from handlers.schemas.strict import Strict
from handlers.schemas.unsupported import Unsupported

_CALLER = Unsupported("programmatic calls are not supported by this server", ({"type": "direct"},))
_NAMESPACE = Unsupported("namespaces of tools are not supported by this server")

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Strict):
    """A text part of a message."""

    type: Literal["input_text"]
    text: AnyText


class OutputText(Strict):
    """A text part of an assistant's message, as an earlier response had it."""

    unsupported = MappingProxyType({"annotations": Unsupported("annotations are not supported by this server", ([],))})

    type: Literal["output_text"]
    text: AnyText
    logprobs: list[Any] | None = Field(None, description="Accepted for compatibility; not used.")


def text_or_list(value: object) -> str | None:
    """Return the branch of a union of a text and a list."""
    return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None


Part = Annotated[
    Annotated[InputText, Tag("<input_text>")] | Annotated[OutputText, Tag("<output_text>")],
    Discriminator(
        branch_of_type,
        custom_error_type="text_part",
        custom_error_message="type should be input_text or output_text; this server takes no images, audio or files",
    ),
]
TextOrParts = Annotated[
    Annotated[AnyText, Tag("<text>")] | Annotated[list[Part], Tag("<list>")],
    Discriminator(
        text_or_list,
        custom_error_type="text_or_parts",
        custom_error_message="input should be a text or a list of text parts",
    ),
]


class MessageItem(Strict):
    """The fields of a message but its content."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    id: str | None = Field(None, description="Accepted for compatibility; not used.")
    status: Status | None = Field(None, description="Accepted for compatibility; not used.")
    phase: Literal["commentary", "final_answer"] | None = Field(
        None, description="Accepted for compatibility; not used."
    )


class InputMessage(MessageItem):
    """A message of the conversation: OpenAI's easy form, or the form of an earlier response's output."""

    content: TextOrParts


class FunctionCallItem(FunctionCall):
    """A function call that the model made."""

    unsupported = MappingProxyType(
        {
            "namespace": _NAMESPACE,
            "caller": _CALLER,
            "async": Unsupported("asynchronous calls are not supported by this server", (False,)),
        }
    )

    type: Literal["function_call"]
    call_id: CallId
    id: str | None = Field(None, description="Accepted for compatibility; not used.")
    status: Status | None = Field(None, description="Accepted for compatibility; not used.")


class FunctionCallOutputItem(Strict):
    """The result of a function call."""

    unsupported = MappingProxyType({"namespace": _NAMESPACE, "caller": _CALLER})

    type: Literal["function_call_output"]
    call_id: CallId
    output: TextOrParts
    id: str | None = Field(None, description="Accepted for compatibility; not used.")
    status: Status | None = Field(None, description="Accepted for compatibility; not used.")


class ReasoningItem(Strict):
    """Reasoning of an earlier answer; accepted and left out, because a model does not read its old reasoning."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: Status | None = None


def _grouped(value: object) -> object:
    """Put parts of a message that stand among the items into messages of the user, as OpenAI does."""
    if not isinstance(value, list):
        return value
    items: list[Any] = []
    last: list[Any] | None = None  # the parts of a message of this kind before
    for item in value:
        if branch_of_type(item) not in ("<input_text>", "<input_image>", "<input_file>", "<input_audio>"):
            items.append(item)
            last = None
        elif last is None:
            last = [item]
            items.append({"role": "user", "content": last})
        else:
            last.append(item)
    return items


def _item_kind(value: object) -> str | None:
    return "<message>" if isinstance(value, dict) and value.get("type") is None else branch_of_type(value)


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item_kind,
        custom_error_type="input_item",
        custom_error_message="type should be message, function_call, function_call_output or reasoning; "
        "this server has no hosted tools, and keeps no items to refer to",
    ),
]


def _not_only_reasoning(items: list[Item]) -> list[Item]:
    if all(isinstance(item, ReasoningItem) for item in items):
        raise PydanticCustomError("only_reasoning", "input should contain an item that is not reasoning")
    return items


_REASONING = {"required": ["type"], "properties": {"type": {"const": "reasoning"}}}
Items = Annotated[
    list[Item],
    Field(min_length=1, max_length=1024, json_schema_extra={"contains": {"not": _REASONING}}),
    AfterValidator(_not_only_reasoning),
    BeforeValidator(_grouped),
]
