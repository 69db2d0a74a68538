"""handlers.schemas.tools: tools and reasoning in a request, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from handlers.schemas.parsing import parse
from handlers.schemas.requests import ChatRequest
from runtime.errors import InvalidRequest

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]},
}


def tool(name: str = "get", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool(description="It gets.", parameters={"type": "object"}, strict=True)]},
        {"tools": [tool(description=None, parameters=None, strict=None)]},
        {"tools": [tool(f"f{i}") for i in range(128)], "tool_choice": "required"},
        {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "get"}}},
        {"tools": None, "tool_choice": "none", "parallel_tool_calls": True},
        {"tools": [], "tool_choice": "auto"},
        {"reasoning_effort": "high", "thinking_token_budget": 0},
    ],
)
def test_accepted(fields: dict[str, Any]) -> None:
    """All that OpenAI's clients send, nulls included."""
    parse(ChatRequest, HI | fields)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools", "128"),
        ({"tools": [tool(), tool()]}, "tools", "get is the name of two functions"),
        ({"tools": [tool("a b")]}, "tools.0.function.name", "match"),
        ({"tools": [tool("a" * 65)]}, "tools.0.function.name", "match"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "function"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools.0.function.parameters", "type object"),
        ({"tools": [tool(parameters=True)]}, "tools.0.function.parameters", "type object"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "needs tools"),
        (
            {"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "no tool is named x",
        ),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", "'required'"),
        (
            {"tools": [tool()], "tool_choice": {"type": "allowed_tools"}},
            "tool_choice.allowed_tools",
            "required",
        ),
        (
            {"tools": [tool()], "tool_choice": ALLOWED},
            "tool_choice",
            "no tool is named x",
        ),
        ({"tools": [tool()], "tool_choice": {"type": "any"}}, "tool_choice.type", "function"),
        ({"tools": [tool()], "tool_choice": 1}, "tool_choice", "none, auto, required, a function or allowed_tools"),
        ({"functions": [{"name": "x"}] * 2}, "functions", "x is the name of two functions"),
        ({"functions": [{"name": "x"}], "tools": [tool()]}, "functions", "cannot be combined with tools"),
        ({"functions": [{"name": "x", "parameters": {"type": "array"}}]}, "functions.0.parameters", "type object"),
        ({"function_call": {"name": "x"}}, "function_call", "needs functions"),
        ({"function_call": {"name": "y"}, "functions": [{"name": "x"}]}, "function_call", "no function is named y"),
        ({"function_call": "required", "functions": [{"name": "x"}]}, "function_call", "none"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "high"),
        ({"thinking_token_budget": -2}, "thinking_token_budget", "-1"),
    ],
)
def test_refused(fields: dict[str, Any], param: str, says: str) -> None:
    """The error names the field and what is wrong with it."""
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, HI | fields)
    assert caught.value.param == param
    assert says in caught.value.message


def test_effort_in_either_form() -> None:
    """reasoning_effort, or reasoning as the Responses API has it; not both."""
    for fields, effort in (({"reasoning_effort": "low"}, "low"), ({"reasoning": {"effort": "max"}}, "max"), ({}, None)):
        assert parse(ChatRequest, HI | fields).effort == effort
    with pytest.raises(InvalidRequest, match=r"^reasoning: cannot be combined with reasoning_effort$"):
        parse(ChatRequest, HI | {"reasoning_effort": "low", "reasoning": {"effort": "low"}})
