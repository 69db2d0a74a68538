"""The grammar of an answer that may begin with reasoning and may call tools."""

from __future__ import annotations

import json
import re
from typing import Literal

from handlers.generation.tools import ToolUse
from runtime.answer_format import THINK, AnswerFormat
from runtime.errors import InvalidRequest
from runtime.types import Grammar, ReasoningLimit, Tool

_ANY = "/(?s:.*)/"
# A schema with one of these may declare arguments elsewhere than in its properties.
_DECLARING = frozenset(
    "additionalProperties patternProperties unevaluatedProperties $ref allOf anyOf oneOf if".split()  # noqa: SIM905
)


def answer_grammar(
    use: ToolUse,
    form: AnswerFormat,
    reasoning: Literal["none", "optional", "open"],
    content: Grammar | None,
    budget: int | None = None,
) -> Grammar | None:
    """Return the grammar of an answer: reasoning, then free text up to the first call, then calls of tools.

    A call's arguments match the tool's own schema. Arguments that a schema does not declare are left out.

    Args:
        use: the tools.
        form: how the model writes answers.
        reasoning: as in ``AnswerFormat``; ``none`` also if it is turned off.
        content: the grammar of the content; None for any text.
        budget: maximum number of tokens of reasoning; None for no limit.

    Returns:
        The grammar; None for any text.

    Raises:
        InvalidRequest: the model's calls could not be distinguished from such a content, or the model's reasoning
            cannot be limited.
    """
    limit = None if budget is None or reasoning == "none" else _limit(budget, form, reasoning)
    if not use.tools and limit is None and (content is None or reasoning == "none"):
        return content
    builder = _Builder(form)
    bodies = [] if use.required else [builder.content(content)]
    if use.tools:
        bodies += builder.calls(use, content)
    field = use.field.partition(".")[0] if use.tools else "thinking_token_budget" if content is None else content.field
    definition = "\n".join([*builder.start(reasoning, " | ".join(bodies)), *builder.rules])
    return Grammar("lark", definition, field, tuple(builder.parts), limit)


def _limit(budget: int, form: AnswerFormat, reasoning: Literal["optional", "open"]) -> ReasoningLimit:
    begin, end = ({**form.hidden, **form.visible}.get(token) for token in THINK)
    if end is None or (begin is None and reasoning == "optional"):
        raise InvalidRequest(
            "thinking_token_budget: this model has no token that ends its reasoning", param="thinking_token_budget"
        )
    return ReasoningLimit(budget, None if reasoning == "open" else begin, end)


def _arguments(tool: Tool, field: str) -> Grammar:
    """Return the grammar of a tool's arguments."""
    closed = {} if _DECLARING & tool.parameters.keys() else {"additionalProperties": False}
    schema = {"type": "object", **tool.parameters, **closed}
    return Grammar("json_schema", json.dumps(schema), field)


class _Builder:
    """Builds a grammar in Lark's syntax.

    Args:
        form: how the model writes answers, with its control tokens.

    Attributes:
        rules: the rules so far.
        parts: the grammars that they refer to.
    """

    def __init__(self, form: AnswerFormat) -> None:
        self._form = form
        self._ids = {**form.hidden, **form.visible}
        names = sorted(self._ids, key=len, reverse=True)
        self._tokens = re.compile(f"({'|'.join(map(re.escape, names))})" if names else "((?!))")
        self.rules = [f"TEXT: {_ANY}"]
        self.parts: list[Grammar] = []

    def start(self, reasoning: Literal["none", "optional", "open"], body: str) -> list[str]:
        """Return the first rules: reasoning, then the body."""
        if reasoning == "none":
            return [f"start: {body}"]
        ends = " | ".join(self._until(THINK[1], "think"))
        first = "reasoning SPACE" if reasoning == "open" else f"({self._exactly(THINK[0])} reasoning SPACE)?"
        return [f"start: {first} body", f"reasoning: {ends}", "SPACE: /\\n{0,2}/", f"body: {body}"]

    def content(self, content: Grammar | None) -> str:
        """Return the expression for an answer without calls."""
        return "TEXT" if content is None else self._part(content)

    def calls(self, use: ToolUse, content: Grammar | None) -> list[str]:
        """Add the rules for calls, and return the expressions for an answer with calls.

        Args:
            use: the tools.
            content: the grammar of the content; None for any text.
        """
        syntax = self._form.tools
        heads = []
        for number, index in enumerate(use.callable):
            tool = use.tools[index]
            head = self._exactly(syntax.before_name + tool.name + syntax.before_arguments)
            part = self._part(_arguments(tool, use.field.format(index)))
            self.rules.append(f"call{number}: {head} {part} {self._exactly(syntax.after_arguments)}")
            heads.append(f"call{number}")
        others = f"({self._exactly(syntax.separator)} call){{0,{use.most - 1}}}" if use.most > 1 else ""
        self.rules += [f"call: {' | '.join(heads)}", f"calls: call {others} {self._exactly(syntax.end)}"]
        marked = not syntax.bare or syntax.begin in self._form.hidden
        if use.required or content is not None:
            begins = [self._exactly(syntax.begin)] if marked else []
            if syntax.bare and use.required:
                begins.append("")
            if not begins:
                raise InvalidRequest(
                    "tools: with this model they cannot be combined with a grammar of the content; "
                    "send tool_choice none or required",
                    param="tools",
                )
        else:
            begins = self._until(syntax.begin, "begin") if marked else []
            if syntax.bare:
                begins.append("")
                names = "|".join(use.names)
                call = f"{re.escape(syntax.before_name)}({names}){re.escape(syntax.before_arguments)}(?s:.*)"
                self.rules[0] = f"TEXT: {_ANY} & ~/{call}/"
        return [f"{begin} calls".lstrip() for begin in begins]

    def _part(self, grammar: Grammar) -> str:
        self.parts.append(grammar)
        return f"@part{len(self.parts) - 1}"

    def _exactly(self, text: str) -> str:
        """Return the expression for a text, with the control tokens in it."""
        return " ".join(
            f"<[{self._ids[piece]}]>" if piece in self._ids else json.dumps(piece)
            for piece in self._tokens.split(text)
            if piece
        )

    def _until(self, text: str, name: str) -> list[str]:
        """Return the expressions for any text that ends with ``text``, and contains it nowhere else.

        Args:
            text: the end; it begins with its control token if it has one.
            name: prefix of the names of new rules.
        """
        token = next((token for token in self._ids if text.startswith(token)), None)
        found = [] if token is None else [f"TEXT {self._exactly(text)}"]
        if token not in self._form.hidden:  # a token that has a text is the same in other tokens with this text
            spelled = re.escape(text if token is None else token).replace("/", "\\/")
            rest = "" if token is None else self._exactly(text[len(token) :])
            self.rules.append(f"{name}_text[lazy]: /(?s:.*){spelled}/")
            found.append(f"{name}_text {rest}".rstrip())
        return found
