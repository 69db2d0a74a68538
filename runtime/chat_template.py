"""Chats as text: Jinja templates that come with models, run in jinja2's sandbox.

The environment is the one that transformers documents for chat templates, so that they render the same here.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.exceptions import SecurityError


def render_chat(template: str, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
    """A chat as text, up to where the assistant speaks.

    Args:
        template: in Jinja.
        messages: each with ``role`` and ``content``.
        special_tokens: names for the template (``bos_token``, ``eos_token``, ...) and their text.

    Raises:
        jinja2.TemplateError: the template is wrong or refuses the messages.
    """
    return _compile(template).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=True, **special_tokens
    )


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise,
        "strftime_now": _now,
        "namespace": _Namespace,
        "dict": _Dict(),
    }
    environment.globals.update(functions)
    return environment.from_string(template)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant said, for training; here it only says its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's way)

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Refuses names with an underscore in front, which could reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # as in jinja2, so that "self" may be a name
        own, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _public(name)
        jinja2.utils.Namespace.__init__(own, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)


def _public(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a chat template may not store {name!r}")


class _Dict:
    """``dict`` for templates, without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Without the escapes for HTML that jinja2's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
