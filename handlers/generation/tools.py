"""The tools of a request, and how they may be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from handlers.schemas.tools import NamedToolChoice, ToolDefinition, ToolFields
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
    """

    tools: tuple[Tool, ...] = ()
    callable: tuple[int, ...] = ()
    required: bool = False
    most: int = MAX_CALLS

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tools that may be called."""
        return tuple(self.tools[index].name for index in self.callable)


NO_TOOLS = ToolUse()
"""No tools."""


def told_tools(definitions: Iterable[ToolDefinition]) -> tuple[Tool, ...]:
    """Return the tools that a model is told of."""
    functions = (tool.function for tool in definitions)
    return tuple(Tool(function.name, function.description or "", function.parameters) for function in functions)


def requested_tools(request: ToolFields) -> ToolUse:
    """Return the tools of a request; none if ``tool_choice`` is none."""
    if not request.tools or request.tool_choice == "none":
        return NO_TOOLS
    tools = told_tools(request.tools)
    if isinstance(choice := request.tool_choice, NamedToolChoice):
        index = next(i for i, tool in enumerate(tools) if tool.name == choice.function.name)
        return ToolUse(tools, (index,), required=True, most=1)
    return ToolUse(
        tools,
        tuple(range(len(tools))),
        required=request.tool_choice == "required",
        most=MAX_CALLS if request.parallel_tool_calls else 1,
    )
