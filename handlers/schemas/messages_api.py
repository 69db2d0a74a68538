"""Request models of Anthropic's Messages API."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.base import ModelChoice
from handlers.schemas.fields import AnyText, Seed, Stops, TopK, TopP
from handlers.schemas.function_tools import DEFERRED, check_choice, check_hosted
from handlers.schemas.messages import PromptCaching
from handlers.schemas.messages_api_blocks import InputTurn, Markable, TextOrTextBlocks, ToolUseBlock
from handlers.schemas.strict import Strict
from handlers.schemas.structured import JSONSchema
from handlers.schemas.tools import MAX_TOOLS, TOOLS_NEEDED, FunctionName, Parameters, ReasoningEffort
from handlers.schemas.unsupported import Unsupported
from runtime.errors import ThreadUnsupported


class CustomTool(Markable):
    """A tool that the client runs."""

    unsupported = MappingProxyType(
        {
            "defer_loading": DEFERRED,
            "allowed_callers": Unsupported("programmatic calls are not supported by this server", (["direct"],)),
            "input_examples": Unsupported("examples of a tool's input are not supported by this server", ([],)),
        }
    )

    type: Literal["custom"] | None = None
    name: FunctionName
    description: AnyText | None = None
    input_schema: Parameters = Field(description="JSON Schema of the tool's input.")
    strict: bool | None = Field(None, description="Accepted for compatibility: the schema is always followed.")
    eager_input_streaming: bool | None = Field(None, description="Accepted: inputs are always streamed at once.")


class ToolChoice(Strict):
    """Whether the model uses a tool, and which."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "tool"}}},
            "then": {"required": ["name"], "properties": {"name": {"type": "string"}}},
            "else": {"properties": {"name": {"type": "null"}}},
        }
    )

    type: Literal["auto", "any", "tool", "none"]
    disable_parallel_tool_use: bool = Field(False, description="Whether the model makes at most one call.")
    name: FunctionName | None = Field(None, validate_default=True, description="The tool, if type is tool.")

    @field_validator("name")
    @classmethod
    def _name_of_a_tool(cls, value: str | None, info: ValidationInfo) -> str | None:
        if (value is None) == (info.data.get("type") == "tool"):
            raise PydanticCustomError("tool_name", "goes with the type tool")
        return value


CacheControl = Annotated[
    Annotated[str, Field(max_length=8192), Tag("<text>")] | Annotated[PromptCaching, Tag("<object>")],
    Discriminator(
        lambda value: "<text>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None,
        custom_error_type="cache_control",
        custom_error_message="input should be a text or an object",
    ),
]


class Metadata(Strict):
    """Data about the request."""

    user_id: str | None = Field(None, max_length=512, description="Accepted for compatibility; not used.")


class Thinking(Strict):
    """Options of reasoning models."""

    unsupported = MappingProxyType(
        {
            "display": Unsupported(
                "this server does not summarize reasoning; it returns the reasoning itself", ("summarized",)
            ),
            "block_binding": Unsupported("blocks of reasoning are not bound by this server"),
        }
    )
    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "enabled"}}},
            "then": {"required": ["budget_tokens"], "properties": {"budget_tokens": {"type": "integer"}}},
            "else": {"properties": {"budget_tokens": {"type": "null"}}},
        }
    )

    type: Literal["enabled", "disabled", "adaptive"] = Field(
        description="disabled: the model does not reason, if its chat template can turn it off; adaptive leaves it to "
        "the model."
    )
    budget_tokens: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        strict=False,
        validate_default=True,
        description="Maximum number of tokens of reasoning, if type is enabled.",
    )

    @field_validator("budget_tokens")
    @classmethod
    def _budget_if_enabled(cls, value: int | None, info: ValidationInfo) -> int | None:
        if "type" in info.data and (value is None) == (info.data["type"] == "enabled"):
            raise PydanticCustomError("budget", "goes with the type enabled")
        return value


class OutputFormat(Strict):
    """JSON that is valid under a schema."""

    model_config = ConfigDict(protected_namespaces=())

    type: Literal["json_schema"]
    definition: JSONSchema = Field(alias="schema", description="The JSON Schema.")


class OutputConfig(Strict):
    """The form of the answer's text."""

    unsupported = MappingProxyType({"task_budget": Unsupported("budgets of tasks are not supported by this server")})

    format: OutputFormat | None = Field(None, description="The answer's JSON Schema.")
    effort: ReasoningEffort | None = Field(None, description="As reasoning_effort of a chat completion.")


_REQUIRED = {"type": "object", "properties": {"type": {"enum": ["any", "tool"]}}, "required": ["type"]}
_NEEDS_TOOLS = {
    "if": {"required": ["tool_choice"], "properties": {"tool_choice": _REQUIRED}},
    "then": TOOLS_NEEDED["then"],
}


class CountTokensRequest(ModelChoice):
    """Anthropic's request for the number of tokens of a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "What is the capital of France?"}]}],
            "allOf": [_NEEDS_TOOLS],
        }
    )
    unsupported = MappingProxyType(
        {
            "billing_policy": Unsupported("nothing is billed by this server"),
            "compaction": Unsupported("this server does not shorten the conversation"),
            "container": Unsupported("containers are not supported by this server"),
            "context_management": Unsupported("this server does not shorten the conversation"),
            "diagnostics": Unsupported("diagnostics are not supported by this server"),
            "fallback_credit_token": Unsupported("fallbacks are not supported by this server"),
            "fallbacks": Unsupported("fallbacks are not supported by this server", ([],)),
            "inference_geo": Unsupported("this server runs in one place"),
            "mcp_servers": Unsupported("MCP servers are not supported by this server", ([],)),
            "speed": Unsupported("speeds are not supported by this server", ("standard",)),
            "thread": Unsupported("conversations are not kept by this server", code=ThreadUnsupported.code),
        }
    )

    messages: list[InputTurn] = Field(
        min_length=1,
        max_length=1024,
        description="The turns so far; if the last one is the assistant's, the answer continues its text.",
    )
    system: TextOrTextBlocks | None = Field(None, description="The system prompt.")
    tools: list[CustomTool] | None = Field(None, max_length=MAX_TOOLS, description="Tools that the model may use.")
    tool_choice: ToolChoice | None = Field(None, description="Whether the model uses a tool, and which.")
    thinking: Thinking | None = Field(None, description="Options of reasoning models.")
    output_config: OutputConfig | None = Field(None, description="The form of the answer's text.")
    output_format: OutputFormat | None = Field(None, description="The older name of output_config.format.")
    cache_control: CacheControl | None = Field(
        None,
        description="An object is accepted for compatibility; not used: prefix caching is automatic. A text is as in a "
        "chat completion: directives for the response cache.",
    )

    @field_validator("messages")
    @classmethod
    def _no_call_to_continue(cls, value: list[InputTurn]) -> list[InputTurn]:
        last = value[-1]
        if last.role == "assistant" and any(isinstance(block, ToolUseBlock) for block in last.content):
            raise PydanticCustomError("prefill", "the last turn should have the results of the uses of tools before it")
        return value

    @field_validator("output_format")
    @classmethod
    def _one_form(cls, value: OutputFormat | None, info: ValidationInfo) -> OutputFormat | None:
        config = info.data.get("output_config")
        if value is not None and config is not None and config.format is not None:
            raise PydanticCustomError("two_forms", "give output_config.format or output_format, not both")
        return value

    @field_validator("tools", mode="before")
    @classmethod
    def _no_hosted_tools(cls, value: object) -> object:
        return check_hosted(value, ("custom", None))

    @field_validator("tool_choice")
    @classmethod
    def _known_tools(cls, value: ToolChoice | None, info: ValidationInfo) -> ToolChoice | None:
        if value is not None and value.type in ("any", "tool"):
            check_choice([] if value.name is None else [value.name], info.data.get("tools"))
        return value


class MessagesRequest(CountTokensRequest):
    """Anthropic's request for a message, plus seed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 16, "temperature": 0}
            ],
            "allOf": [_NEEDS_TOOLS],
        }
    )

    max_tokens: int = Field(ge=1, le=10_000_000, strict=False, description="Maximum number of new tokens.")
    temperature: float | None = Field(
        None, ge=0, le=1, strict=False, description="0 is greedy (always the most likely token)."
    )
    top_p: TopP | None = Field(None, description="Sample from the most likely tokens with this total probability.")
    top_k: TopK | None = Field(None, description="Sample from the k most likely tokens; 0 is all.")
    stop_sequences: Stops | None = Field(None, description="Strings that end the text; they are not included in it.")
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same text.")
    stream: bool = Field(False, description="Respond with server-sent events while tokens are generated.")
    metadata: Metadata | None = Field(None, description="Data about the request.")
    service_tier: Literal["auto", "standard_only"] | None = Field(
        None, description="Accepted for compatibility: there is one tier."
    )
