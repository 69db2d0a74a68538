"""Request models of OpenAI's Responses API."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator

from handlers.schemas.base import Cacheable
from handlers.schemas.fields import AnyText, branch_of_type
from handlers.schemas.function_tools import (
    AllowedTools,
    FunctionTool,
    NamedFunction,
    check_choice,
    check_hosted,
)
from handlers.schemas.responses_api_items import Items, text_or_list
from handlers.schemas.strict import Strict, check_needs, needs
from handlers.schemas.structured import JSONObjectFormat, NamedSchema, PlainFormat
from handlers.schemas.tools import MAX_TOOLS, TOOLS_NEEDED, ReasoningEffort
from handlers.schemas.unsupported import STREAM_OPTIONS, Unsupported

_NOT_KEPT = "conversations are not kept by this server: send previous_response_id, or the earlier items in input"


class SchemaFormat(NamedSchema):
    """JSON that is valid under a schema."""

    type: Literal["json_schema"]


TextFormat = Annotated[
    Annotated[PlainFormat, Tag("<text>")]
    | Annotated[JSONObjectFormat, Tag("<json_object>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")],
    Discriminator(
        branch_of_type,
        custom_error_type="text_format",
        custom_error_message="type should be text, json_object or json_schema",
    ),
]


class TextConfig(Strict):
    """The form of the answer's text."""

    unsupported = MappingProxyType({"verbosity": Unsupported("verbosity is not supported by this server", ("medium",))})

    format: TextFormat | None = Field(None, description="Any text, any JSON object, or JSON that a schema describes.")


class ReasoningConfig(Strict):
    """Options of reasoning models."""

    unsupported = MappingProxyType(
        {
            name: Unsupported("this server does not summarize reasoning; it returns the reasoning itself", ("auto",))
            for name in ("summary", "generate_summary")
        }
    )

    effort: ReasoningEffort | None = Field(None, description="As reasoning_effort of a chat completion.")


class ResponseStreamOptions(Strict):
    """Options of the stream."""

    unsupported = STREAM_OPTIONS


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedFunction, Tag("<function>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    Discriminator(
        lambda value: "<mode>" if isinstance(value, str) else branch_of_type(value),
        custom_error_type="tool_choice",
        custom_error_message="input should be none, auto, required, or an object of type function or allowed_tools",
    ),
]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class ResponseId(Strict):
    """A response that is kept."""

    response_id: str = Field(min_length=1, max_length=256, description="The response's id.")


class ResponsesRequest(Cacheable):
    """OpenAI's request for a response, plus the sampling fields of a chat completion and cache_control."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "What is the capital of France?", "temperature": 0},
                {
                    "instructions": "Answer in one word.",
                    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Name a colour."}]}],
                    "max_output_tokens": 16,
                },
            ],
            "allOf": [
                needs("stream_options", "object", "stream"),
                TOOLS_NEEDED,
            ],
        }
    )
    unsupported = MappingProxyType(
        {
            "conversation": Unsupported(_NOT_KEPT),
            "prompt": Unsupported("prompts are not kept by this server: send their text in instructions and input"),
            "background": Unsupported("answers in the background are not supported by this server", (False,)),
            "background_options": Unsupported("answers in the background are not supported by this server"),
            "truncation": Unsupported("this server does not shorten the input", ("disabled",)),
            "context_management": Unsupported("this server does not shorten the input", ([],)),
            "service_tier": Unsupported("service tiers are not supported by this server", ("auto", "default")),
            "moderation": Unsupported("moderation is not supported by this server"),
            "prompt_cache_options": Unsupported("options of the prompt cache are not supported by this server"),
            "prompt_cache_retention": Unsupported("the retention of cached prompts is not configurable"),
        }
    )

    input: Annotated[
        Annotated[AnyText, Tag("<text>")] | Annotated[Items, Tag("<list>")],
        Discriminator(
            text_or_list,
            custom_error_type="text_or_items",
            custom_error_message="input should be a text or a list of items",
        ),
    ] = Field(description="The user's message, or the conversation so far as a list of items.")
    instructions: AnyText | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        description="Maximum number of new tokens, reasoning included; the default is that of a chat completion.",
    )
    text: TextConfig | None = Field(None, description="The form of the answer's text.")
    tools: list[FunctionTool] | None = Field(
        None, max_length=MAX_TOOLS, description="Functions that the model may call."
    )
    tool_choice: ToolChoice | None = Field(None, description="Whether the model calls a function, and which.")
    parallel_tool_calls: bool = Field(True, description="Whether the model may make several calls at once.")
    max_tool_calls: int | None = Field(
        None, ge=1, strict=False, description="Accepted for compatibility: it limits hosted tools, and there are none."
    )
    top_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        strict=False,
        description="Return log-probabilities, with this many most likely alternatives for each token.",
    )
    include: list[Includable] | None = Field(
        None,
        max_length=64,
        description="message.output_text.logprobs returns log-probabilities; there is nothing behind the other values.",
    )
    reasoning: ReasoningConfig | None = Field(None, description="Options of reasoning models.")
    stream_options: ResponseStreamOptions | None = Field(
        None, description="Options of the stream; requires stream to be true."
    )
    store: bool = Field(
        True, description="Whether the response is kept, if the service keeps any (RESPONSES_STORE_BYTES)."
    )
    previous_response_id: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="A response that is kept, whose input and output the input continues; its instructions are not "
        "carried over.",
    )
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Returned with the response; not used.")
    user: str | None = Field(None, max_length=256, description="Returned with the response; not used.")
    safety_identifier: str | None = Field(None, max_length=256, description="Returned with the response; not used.")
    prompt_cache_key: str | None = Field(
        None, max_length=256, description="Returned with the response; not used: prefix caching is automatic."
    )

    @field_validator("tools", mode="before")
    @classmethod
    def _no_hosted_tools(cls, value: object) -> object:
        return check_hosted(value, ("function",))

    @field_validator("tool_choice")
    @classmethod
    def _known_functions(cls, value: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        if value == "required" or isinstance(value, NamedFunction | AllowedTools):
            named = value.tools if isinstance(value, AllowedTools) else [value] if value != "required" else []
            check_choice((function.name for function in named), info.data.get("tools"))
        return value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: ResponseStreamOptions | None, info: ValidationInfo) -> ResponseStreamOptions | None:
        return check_needs(value, info, "stream")
