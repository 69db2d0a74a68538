"""How a model writes the parts of an answer that are not content: tool calls and reasoning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class ToolSyntax:
    """How a model writes tool calls.

    All calls of an answer are: ``begin``, one or more calls with ``separator`` between them, ``end``. A call is
    ``before_name``, the function's name, ``before_arguments``, the arguments as a JSON object, ``after_arguments``.

    Args:
        name: name of the family of models.
        begin: starts the calls.
        separator: stands between two calls.
        end: ends the calls.
        before_name, before_arguments, after_arguments: see above.
        bare: whether calls at the start of an answer need no ``begin``.
        instruction: sentence for the system message without which the model would use another syntax.
        in_system: whether the template reads the tools from the system's message, as JSON.
        id_length: the length of a call's id that the model's template accepts; 0 for any.
    """

    name: str
    begin: str
    separator: str
    end: str
    before_name: str = '{"name": "'
    before_arguments: str = '", "arguments": '
    after_arguments: str = "}"
    bare: bool = False
    instruction: str = ""
    in_system: bool = False
    id_length: int = 0


GENERIC = ToolSyntax(
    "generic",
    begin="<tool_call>",
    separator="\n<tool_call>",
    end="",
    before_name='\n{"name": "',
    after_arguments="}\n</tool_call>",
)
"""The syntax for models whose template knows no tools; that of Hermes and Qwen."""

THINK = ("<think>", "</think>")
"""The start and the end of reasoning."""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How a model writes its answers, found from its chat template and its tokenizer.

    Args:
        tools: the syntax of tool calls.
        hidden: tokens that occur in the syntax and are not part of decoded text: their names and ids.
        visible: the same for tokens that are part of decoded text.
        reasoning: ``none``: the model does not reason; ``optional``: an answer may start with reasoning; ``open``: the
            prompt ends inside of reasoning.
        switchable: whether the template can be told that the model shall not reason (``enable_thinking``).
    """

    tools: ToolSyntax = GENERIC
    hidden: Mapping[str, int] = field(default_factory=dict)
    visible: Mapping[str, int] = field(default_factory=dict)
    reasoning: Literal["none", "optional", "open"] = "none"
    switchable: bool = False
