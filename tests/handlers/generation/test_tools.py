"""handlers.generation.tools: what the fields of a request say about the use of its tools."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.generation.tools import MAX_CALLS, ToolUse, requested_tools
from handlers.schemas.parsing import parse
from handlers.schemas.requests import ChatRequest
from runtime.types import Tool

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
FOUND = (Tool("a", "", {}), Tool("b", "", {}))
NAMED = {"type": "function", "function": {"name": "b"}}


def allowed(mode: str) -> dict[str, Any]:
    """The choice of one of the tools."""
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED]}}


@pytest.mark.parametrize(
    ("fields", "use"),
    [
        ({}, ToolUse()),
        ({"tools": []}, ToolUse()),
        ({"tools": TOOLS}, ToolUse(FOUND, (0, 1))),
        ({"tools": TOOLS, "tool_choice": "auto"}, ToolUse(FOUND, (0, 1))),
        ({"tools": TOOLS, "tool_choice": "none"}, ToolUse()),
        ({"tools": TOOLS, "tool_choice": "required"}, ToolUse(FOUND, (0, 1), required=True, most=MAX_CALLS)),
        ({"tools": TOOLS, "parallel_tool_calls": False}, ToolUse(FOUND, (0, 1), most=1)),
        ({"tools": TOOLS, "tool_choice": NAMED}, ToolUse(FOUND, (1,), required=True, most=1)),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, ToolUse(FOUND, (1,))),
        ({"tools": TOOLS, "tool_choice": allowed("required")}, ToolUse(FOUND, (1,), required=True)),
    ],
)
def test_use(fields: dict[str, Any], use: ToolUse) -> None:
    """none tells the model of no tool, required and a function leave no choice, and a function is called once; of
    allowed_tools only those may be called, though the model is told of all.
    """
    assert requested_tools(parse(ChatRequest, {"messages": [{"role": "user", "content": "x"}]} | fields)) == use


def test_names() -> None:
    """The names are those of the tools that may be called."""
    assert ToolUse(FOUND, (1,)).names == ("b",)
