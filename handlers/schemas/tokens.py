"""Requests and responses of the operations that convert texts and chats to token ids and back."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.base import ModelChoice
from handlers.schemas.fields import AnyText, TokenIds
from handlers.schemas.messages import ChatMessage
from handlers.schemas.responses import LazyModel
from handlers.schemas.template import ONE_END, TemplateFields
from handlers.schemas.tools import MAX_TOOLS, FunctionDefinition, ToolDefinition

_INPUTS = {"prompt": "string", "content": "string", "messages": "array"}


class ChatFields(TemplateFields):
    """A request with a chat that is only formatted."""

    tools: list[ToolDefinition] | None = Field(
        None, max_length=MAX_TOOLS, description="Functions that the model is told of."
    )

    @property
    def functions(self) -> list[FunctionDefinition]:
        """The functions of the tools."""
        return [tool.function for tool in self.tools or ()]


def _one_of(name: str) -> dict[str, Any]:
    unused = [other for other in _INPUTS if other != name]
    if name != "messages":
        unused += ChatFields.model_fields
    return {
        "required": [name],
        "properties": {name: {"type": _INPUTS[name]}} | {other: {"type": "null"} for other in unused},
    }


def _not_both(one: str, value: bool | None, other: str, other_value: bool | None) -> dict[str, Any]:
    """Return a JSON Schema rule: two fields do not both have the values given; None stands for any but null."""
    wanted = {
        name: {"type": "boolean"} if wish is None else {"const": wish}
        for name, wish in ((one, value), (other, other_value))
    }
    return {"not": {"required": [one, other], "properties": wanted}}


class TokenizeRequest(ModelChoice, ChatFields):
    """Tokenize a text or a chat, with vLLM's fields or llama.cpp's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "Hello there", "return_token_strs": True},
                {"messages": [{"role": "user", "content": "Hello there"}]},
                {"content": "Hello there", "with_pieces": True},
            ],
            "oneOf": [_one_of(name) for name in _INPUTS],
            "allOf": [
                ONE_END,
                _not_both("add_special", None, "add_special_tokens", None),
                _not_both("parse_special", False, "add_special", True),
                _not_both("parse_special", False, "add_special_tokens", True),
            ],
        }
    )

    prompt: AnyText | None = Field(None, description="The text, which may be empty.")
    content: AnyText | None = Field(None, description="The text by llama.cpp's name.")
    messages: list[ChatMessage] | None = Field(
        None, min_length=1, max_length=1024, description="The messages of a chat."
    )
    add_special_tokens: bool | None = Field(
        None,
        description="Whether the tokenizer adds its own tokens, often a BOS token. By default it does around a prompt, "
        "not around content, and around a chat only if the model has no chat template.",
    )
    add_special: bool | None = Field(None, description="llama.cpp's name of add_special_tokens.")
    parse_special: bool = Field(
        True,
        description="Whether control tokens that are spelled in a text become control tokens. In a chat they never do.",
    )
    return_token_strs: bool = Field(False, description="Return the tokens as the vocabulary spells them, too.")
    with_pieces: bool = Field(False, description="Return each token as an object with its id and its text.")

    @model_validator(mode="after")
    def _agree(self) -> TokenizeRequest:
        if [self.prompt, self.content, self.messages].count(None) != 2:
            raise PydanticCustomError("one_of_three", "give one of prompt, content and messages")
        template = [name for name in ChatFields.model_fields if name in self.model_fields_set]
        if self.messages is None and template:
            raise PydanticCustomError("needs_messages", "{name}: needs messages", {"name": template[0]})
        if self.add_special is not None and self.add_special_tokens is not None:
            raise PydanticCustomError("one_name", "give add_special or add_special_tokens, not both")
        if self.special and not self.parse_special:
            raise PydanticCustomError("plain", "parse_special: needs add_special_tokens to be false")
        return self

    @property
    def special(self) -> bool | None:
        """Whether the tokenizer adds its own tokens; None for the default."""
        return self.add_special if self.add_special_tokens is None else self.add_special_tokens


class Piece(LazyModel):
    """A token in llama.cpp's form."""

    id: int
    piece: str | list[int] = Field(description="The token's text, or its bytes if they are not whole characters.")


class TokenizeResponse(LazyModel):
    """The tokens of a text or chat."""

    tokens: list[int] | list[Piece] = Field(description="Token ids; objects with with_pieces.")
    count: int
    max_model_len: int = Field(description="The model's context length in tokens.")
    token_strs: list[str] | None = Field(
        None, description="The tokens as the vocabulary spells them; null unless requested."
    )


class DetokenizeRequest(ModelChoice):
    """Convert token ids to text."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [19, 65]}]})

    tokens: TokenIds = Field(description="Token ids.")


class DetokenizeResponse(LazyModel):
    """The text of token ids, with the names of control tokens."""

    prompt: str = Field(description="The text.")
    content: str = Field(description="The same text by llama.cpp's name.")


class TokenizerInfoResponse(LazyModel):
    """A tokenizer's special tokens and chat template, by the names of a model's ``tokenizer_config.json``."""

    model_max_length: int | None = Field(description="The model's context length in tokens.")
    chat_template: str | None = Field(description="The source of the model's chat template, in Jinja.")
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None


class ApplyTemplateRequest(ModelChoice, ChatFields):
    """Format a chat as text with the model's chat template."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "Hello there"}]}],
            "allOf": [ONE_END],
        }
    )

    messages: list[ChatMessage] = Field(min_length=1, max_length=1024, description="The messages of the chat.")


class ApplyTemplateResponse(LazyModel):
    """A chat as text."""

    prompt: str = Field(description="The text that the model continues; its control tokens are spelled by their names.")
