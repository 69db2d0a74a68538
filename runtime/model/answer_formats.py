"""Finds out how a model writes tool calls and reasoning, from its chat template and its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import astuple, replace
from typing import Literal

from runtime.answer_format import GENERIC, THINK, AnswerFormat, ToolSyntax
from runtime.errors import ServiceError
from runtime.model.chat_template import ChatTemplate
from runtime.model.tokenizer import Tokenizer
from runtime.types import Message, TemplateOptions

_LFM2 = ToolSyntax(
    "lfm2",
    begin="<|tool_call_start|>[",
    separator=", ",
    end="]<|tool_call_end|>",
    instruction="Output function calls as JSON.",
)
_SYNTAXES: tuple[tuple[tuple[str, ...], ToolSyntax], ...] = (
    # The texts that a template must contain, and the syntax; the first match counts.
    (
        ("[TOOL_CALLS]", "[ARGS]"),
        ToolSyntax(
            "mistral v11",
            begin="[TOOL_CALLS]",
            separator="[TOOL_CALLS]",
            end="",
            before_name="",
            before_arguments="[ARGS]",
            after_arguments="",
            id_length=9,
        ),
    ),
    (("[TOOL_CALLS] [",), ToolSyntax("mistral v3", begin="[TOOL_CALLS] [", separator=", ", end="]", id_length=9)),
    (("[TOOL_CALLS]",), ToolSyntax("mistral", begin="[TOOL_CALLS][", separator=", ", end="]", id_length=9)),
    (("<|tool_list_start|>",), _LFM2),
    (("<|tool_call_start|>",), _LFM2),
    (("<TOOLCALL>[",), ToolSyntax("nemotron", begin="<TOOLCALL>[", separator=", ", end="]</TOOLCALL>")),
    (
        ("<|/tool|>",),
        ToolSyntax("phi4", begin="<|tool_call|>[", separator=", ", end="]<|/tool_call|>", in_system=True),
    ),
    (
        ("<|start_of_role|>", "<|tool_call|>"),
        ToolSyntax("granite", begin="<|tool_call|>[", separator=", ", end="]"),
    ),
    (
        ("<|start_header_id|>", '"parameters"'),
        ToolSyntax(
            "llama3",
            begin="<|python_tag|>",
            separator="; ",
            end="",
            before_arguments='", "parameters": ',
            bare=True,
        ),
    ),
    (("<|start_of_role|>", "<tool_call>["), ToolSyntax("granite", begin="<tool_call>[", separator=", ", end="]")),
    (("<tool_call>", '"arguments"'), replace(GENERIC, name="hermes")),
)
_READS_TOOLS = re.compile(r"\btools\b")
_MARK = "Hello."


def answer_format(tokenizer: Tokenizer, template: ChatTemplate | None) -> AnswerFormat:
    """Return how a model writes its answers.

    Args:
        tokenizer: the model's tokenizer.
        template: the model's own chat template; None if it has none.
    """
    source = tokenizer.chat_template or ""
    syntax = tool_syntax(source)
    texts = [text for text in astuple(syntax) if isinstance(text, str)]
    found: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for token_id, token in tokenizer.added_tokens.items():
        if token.content and any(token.content in text for text in (*texts, *THINK)):
            found[token.special][token.content] = token_id
    reasoning, switchable = _reasoning(source, template)
    return AnswerFormat(syntax, hidden=found[True], visible=found[False], reasoning=reasoning, switchable=switchable)


def tool_syntax(source: str) -> ToolSyntax:
    """Return the syntax of tool calls of a chat template; ``GENERIC`` if it knows none of the table."""
    # Templates write JSON inside of quoted strings.
    text = source.replace('\\"', '"')
    if _READS_TOOLS.search(source):
        for required, syntax in _SYNTAXES:
            if all(part in text for part in required):
                return syntax
    return GENERIC


def syntaxes() -> Iterable[ToolSyntax]:
    """Return all syntaxes of tool calls."""
    return (*dict.fromkeys(syntax for _, syntax in _SYNTAXES), GENERIC)


def _reasoning(source: str, template: ChatTemplate | None) -> tuple[Literal["none", "optional", "open"], bool]:
    """Return the members ``reasoning`` and ``switchable`` of the format."""
    if template is None or THINK[1] not in source:
        return "none", False
    try:
        thinking_off = TemplateOptions(arguments='{"enable_thinking": false}')
        usual, off = (_prompt_end(template, options) for options in (TemplateOptions(), thinking_off))
    except ServiceError:  # a template that does not compile or refuses this chat
        return "optional", False
    _, begun, inside = usual.rpartition(THINK[0])
    return "open" if begun and THINK[1] not in inside else "optional", usual != off


def _prompt_end(template: ChatTemplate, options: TemplateOptions) -> str:
    """Return what a template writes behind the last message."""
    text: str = template.marks.unmark(template.render([Message("user", _MARK)], options=options))
    return text.rpartition(_MARK)[2]
