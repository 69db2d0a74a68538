"""Fields for tools and reasoning, as in OpenAI's chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from handlers.schemas.fields import AnyText
from handlers.schemas.strict import Strict

MAX_TOOLS = 128
"""Maximum number of tools, which is OpenAI's."""

FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


def _parameters(value: object) -> object:
    if not isinstance(value, dict) or value.get("type", "object") != "object":
        raise PydanticCustomError("parameters", "input should be a JSON Schema with type object")
    return value


Parameters = Annotated[
    dict[str, Any],
    BeforeValidator(_parameters),
    WithJsonSchema({"type": "object", "properties": {"type": {"const": "object"}}}),
]
"""A JSON Schema of a function's arguments, which are an object."""


class FunctionDefinition(Strict):
    """A function that the model may call."""

    name: FunctionName = Field(description="Up to 64 letters, digits, underscores and dashes.")
    description: AnyText | None = Field(None, description="What the function does; shown to the model.")
    parameters: Parameters = Field(
        {}, description="JSON Schema of the arguments, which are an object; no arguments if left out."
    )
    strict: bool | None = Field(None, description="Accepted for compatibility: the schema is always followed.")


class ToolDefinition(Strict):
    """A tool: always a function."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionChoice(Strict):
    """The name of a function."""

    name: FunctionName


FunctionMode = Annotated[
    Annotated[Literal["none", "auto"], Tag("<mode>")] | Annotated[FunctionChoice, Tag("<named>")],
    Discriminator(
        lambda value: "<mode>" if isinstance(value, str) else "<named>" if isinstance(value, dict) else None,
        custom_error_type="function_call",
        custom_error_message="input should be none, auto or the name of a function",
    ),
]
"""How functions may be used, in OpenAI's older form."""


class NamedToolChoice(Strict):
    """The function that the model must call."""

    type: Literal["function"]
    function: FunctionChoice


class AllowedFunctions(Strict):
    """The functions among ``tools`` that may be called in this answer."""

    mode: Literal["auto", "required"] = Field(description="As tool_choice.")
    tools: list[NamedToolChoice] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(Strict):
    """A choice of some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


def _choice_kind(value: object) -> str | None:
    if isinstance(value, dict):
        return "allowed" if value.get("type") == "allowed_tools" else "named"
    return "mode" if isinstance(value, str) else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedToolChoice, Tag("named")]
    | Annotated[AllowedToolsChoice, Tag("allowed")],
    Discriminator(
        _choice_kind,
        custom_error_type="tool_choice",
        custom_error_message="input should be none, auto, required, a function or allowed_tools",
    ),
]
"""How tools may be used."""


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

TOOLS_NEEDED: dict[str, Any] = {
    "if": {
        "required": ["tool_choice"],
        "properties": {"tool_choice": {"anyOf": [{"const": "required"}, {"type": "object"}]}},
    },
    "then": {"required": ["tools"], "properties": {"tools": {"type": "array", "minItems": 1}}},
}
"""JSON Schema rule: a tool can be required only if there are tools."""


class Reasoning(Strict):
    """Options of reasoning models, in the form that Ollama and others share with the Responses API."""

    effort: ReasoningEffort | None = Field(None, description="As reasoning_effort.")


class ToolFields(Strict):
    """A request that may have tools, and whose model may reason."""

    tools: list[ToolDefinition] | None = Field(
        None, max_length=MAX_TOOLS, description="Functions that the model may call."
    )
    tool_choice: ToolChoice | None = Field(
        None,
        description="none: the model is not told of the tools; auto (default): it may call them; required: it must; "
        "the function that it must call; or allowed_tools, the functions that it may or must call.",
    )
    functions: list[FunctionDefinition] | None = Field(
        None,
        max_length=MAX_TOOLS,
        description="OpenAI's older form of tools: an answer has one call at most, in function_call.",
    )
    function_call: FunctionMode | None = Field(
        None, description="OpenAI's older form of tool_choice: none, auto (default), or the function to call."
    )
    parallel_tool_calls: bool = Field(True, description="Whether an answer may have several calls, at most 16.")
    reasoning_effort: ReasoningEffort | None = Field(
        None,
        description="none: the model does not reason, if its chat template can turn it off. Others are passed to the "
        "chat template, and have no effect if it does not read them.",
    )
    reasoning: Reasoning | None = Field(None, description="Another form of reasoning_effort.")
    reasoning_format: Literal["auto", "deepseek", "none"] | None = Field(
        None,
        description="llama.cpp's: none leaves reasoning in the content; auto and deepseek, the default, return it as "
        "reasoning_content.",
    )
    thinking_token_budget: int | None = Field(
        None,
        ge=-1,
        le=10_000_000,
        strict=False,
        description="Maximum number of tokens of the model's reasoning, whose end is forced then; -1 for no limit; no "
        "effect on models that do not reason.",
    )

    @field_validator("thinking_token_budget")
    @classmethod
    def _no_limit(cls, value: int | None) -> int | None:
        return None if value == -1 else value

    @property
    def effort(self) -> ReasoningEffort | None:
        """The effort of either form."""
        return self.reasoning_effort or (None if self.reasoning is None else self.reasoning.effort)

    @field_validator("reasoning")
    @classmethod
    def _one_effort(cls, value: Reasoning | None, info: ValidationInfo) -> Reasoning | None:
        if value is not None and value.effort is not None and info.data.get("reasoning_effort") is not None:
            raise PydanticCustomError("two_forms", "cannot be combined with reasoning_effort")
        return value

    @property
    def definitions(self) -> list[FunctionDefinition]:
        """The functions of either form."""
        return [tool.function for tool in self.tools or ()] or self.functions or []

    @field_validator("tools", "functions")
    @classmethod
    def _unique_names(cls, value: list[Any] | None) -> list[Any] | None:
        names = [getattr(tool, "function", tool).name for tool in value or ()]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise PydanticCustomError(
                    "duplicate_tool",
                    "{name} is the name of two functions; the second is number {index}",
                    {"name": name, "index": index},
                )
        return value

    @field_validator("tool_choice")
    @classmethod
    def _known_tool(cls, value: Any, info: ValidationInfo) -> Any:
        if "tools" in info.data:
            names = {tool.function.name for tool in info.data["tools"] or ()}
            if not names and value not in (None, "none", "auto"):
                raise PydanticCustomError("needs_tools", "needs tools")
            chosen = value.allowed_tools.tools if isinstance(value, AllowedToolsChoice) else [value]
            for choice in chosen:
                if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
                    raise PydanticCustomError("unknown_tool", "no tool is named {name}", {"name": choice.function.name})
        return value

    @field_validator("functions")
    @classmethod
    def _one_form(cls, value: list[FunctionDefinition] | None, info: ValidationInfo) -> list[FunctionDefinition] | None:
        if value and info.data.get("tools"):
            raise PydanticCustomError("two_forms", "cannot be combined with tools")
        return value

    @field_validator("function_call")
    @classmethod
    def _known_function(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, FunctionChoice) and "functions" in info.data:
            names = {function.name for function in info.data["functions"] or ()}
            if not names:
                raise PydanticCustomError("needs_functions", "needs functions")
            if value.name not in names:
                raise PydanticCustomError("unknown_tool", "no function is named {name}", {"name": value.name})
        return value
