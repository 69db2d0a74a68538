"""The grammar that a request's fields ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from handlers.schemas.structured import JSONObjectFormat, JSONSchemaFormat, Structured
from runtime.types import Grammar

_ANY_OBJECT = {"type": "object"}
_GBNF = re.compile(r"^[ \t]*[\w-]+\s*::=", re.MULTILINE)  # the start of a rule, which Lark writes with a colon


def requested_grammar(request: Structured) -> Grammar | None:
    """Return the grammar that a request's text must match; None for any text."""
    form = request.response_format
    if isinstance(form, JSONObjectFormat):
        if form.definition is not None:
            return _json(form.definition, "response_format.schema")
        return _json(_ANY_OBJECT, "response_format")
    if isinstance(form, JSONSchemaFormat):
        if form.json_schema is None:
            return _json(form.definition, "response_format.schema")
        return _json(form.json_schema.definition, "response_format.json_schema.schema")
    if request.json_schema is not None:
        return _json(request.json_schema, "json_schema")
    if request.grammar is not None:
        return _grammar(request.grammar, "grammar")
    if request.guided_json is not None:
        return _json(request.guided_json, "guided_json")
    if request.guided_regex is not None:
        return Grammar("regex", request.guided_regex, "guided_regex")
    if request.guided_choice is not None:
        return _choice(request.guided_choice, "guided_choice")
    if request.guided_grammar is not None:
        return _grammar(request.guided_grammar, "guided_grammar")
    options = request.structured_outputs
    if options is None:
        return None
    if options.regex is not None:
        return Grammar("regex", options.regex, "structured_outputs.regex")
    if options.choice is not None:
        return _choice(options.choice, "structured_outputs.choice")
    if options.grammar is not None:
        return _grammar(options.grammar, "structured_outputs.grammar")
    if options.json_object:
        return _json(_ANY_OBJECT, "structured_outputs.json_object")
    return _json(options.json_schema, "structured_outputs.json")


def _json(schema: Any, field: str) -> Grammar:
    return Grammar("json_schema", json.dumps(schema), field)


def _grammar(text: str, field: str) -> Grammar:
    return Grammar("gbnf" if _GBNF.search(text) else "lark", text, field)


def _choice(texts: Sequence[str], field: str) -> Grammar:
    return Grammar("regex", "|".join(f"({re.escape(text)})" for text in dict.fromkeys(texts)), field)
