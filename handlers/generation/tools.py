"""The tools of a request, and how they may be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from handlers.schemas.tools import AllowedToolsChoice, FunctionChoice, FunctionDefinition, NamedToolChoice, ToolFields
from runtime.types import Tool

MAX_CALLS = 16
"""Maximum number of calls in one answer."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request and how they may be used.

    Args:
        tools: the tools that the model is told of; none if it may not call any.
        callable: indexes of the tools that it may call.
        required: whether it must call one.
        most: the maximum number of calls.
        field: the path of a tool's schema in the request, with ``{}`` in place of its index.
    """

    tools: tuple[Tool, ...] = ()
    callable: tuple[int, ...] = ()
    required: bool = False
    most: int = MAX_CALLS
    field: str = "tools.{}.function.parameters"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tools that may be called."""
        return tuple(self.tools[index].name for index in self.callable)


NO_TOOLS = ToolUse()
"""No tools."""


def told_tools(functions: Iterable[FunctionDefinition]) -> tuple[Tool, ...]:
    """Return the tools that a model is told of."""
    return tuple(Tool(function.name, function.description or "", function.parameters) for function in functions)


def older_form(part: dict[str, Any]) -> dict[str, Any]:
    """Return a message, or the delta of one, with ``function_call`` in place of its call of a tool."""
    calls = part.get("tool_calls")
    if not calls:
        return part
    return {name: value for name, value in part.items() if name != "tool_calls"} | {
        "function_call": calls[0]["function"]
    }


def requested_tools(request: ToolFields) -> ToolUse:
    """Return the tools of a request; none if ``tool_choice`` is none."""
    tools = told_tools(request.definitions)
    if not tools or (request.tool_choice if request.tools else request.function_call) == "none":
        return NO_TOOLS
    if not request.tools:
        chosen = request.function_call.name if isinstance(request.function_call, FunctionChoice) else None
        callable_ = tuple(i for i, tool in enumerate(tools) if chosen in (None, tool.name))
        return ToolUse(tools, callable_, required=chosen is not None, most=1, field="functions.{}.parameters")
    if isinstance(choice := request.tool_choice, NamedToolChoice):
        index = next(i for i, tool in enumerate(tools) if tool.name == choice.function.name)
        return ToolUse(tools, (index,), required=True, most=1)
    mode, allowed = choice, {tool.name for tool in tools}
    if isinstance(choice, AllowedToolsChoice):
        mode, allowed = choice.allowed_tools.mode, {tool.function.name for tool in choice.allowed_tools.tools}
    return ToolUse(
        tools,
        tuple(i for i, tool in enumerate(tools) if tool.name in allowed),
        required=mode == "required",
        most=MAX_CALLS if request.parallel_tool_calls else 1,
    )
