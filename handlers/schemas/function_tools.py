"""Functions that a model may call and the choice among them, as the Responses API and the Messages API share them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from handlers.schemas.strict import Strict
from handlers.schemas.tools import MAX_TOOLS, FunctionDefinition, FunctionName
from handlers.schemas.unsupported import Unsupported

DEFERRED = Unsupported("the definitions of tools cannot be loaded later", (False,))


class FunctionTool(FunctionDefinition):
    """A function in the form of the Responses API."""

    unsupported = MappingProxyType(
        {
            "defer_loading": DEFERRED,
            "allowed_callers": Unsupported("programmatic calls are not supported by this server", (["direct"],)),
            "async": Unsupported("asynchronous calls are not supported by this server", (False,)),
            "output_schema": Unsupported("schemas of results are not supported by this server"),
        }
    )

    type: Literal["function"]


class NamedFunction(Strict):
    """One function by its name."""

    type: Literal["function"]
    name: FunctionName


class AllowedTools(Strict):
    """The functions among ``tools`` that the model may call in this answer."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedFunction] = Field(min_length=1, max_length=MAX_TOOLS)


def check_hosted(value: object, kinds: Sequence[str | None]) -> object:
    """Refuse hosted tools by name; other mistakes are left to the validation of the tools.

    Args:
        value: the field ``tools`` before its validation.
        kinds: the types of tools that are supported; None for a tool without a type.
    """
    for tool in value if isinstance(value, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else kinds[0]
        if isinstance(kind, str) and kind not in kinds:
            raise PydanticCustomError(
                "hosted_tool",
                "{kind} is a hosted tool, and this server has none; functions are supported",
                {"kind": kind},
            )
    return value


def check_choice(names: Iterable[str], tools: Sequence[Any] | None) -> None:
    """Check that the functions that ``tool_choice`` names are among the tools.

    Args:
        names: the names in ``tool_choice``.
        tools: the request's tools, each with a ``name``; None if there are none.
    """
    known = {tool.name for tool in tools or ()}
    if not known:
        raise PydanticCustomError("choice_without_tools", "needs tools")
    for name in names:
        if name not in known:
            raise PydanticCustomError("unknown_tool", "there is no function {name} in tools", {"name": name})
