"""Renders chats as text with the Jinja templates that come with models, in jinja2's sandbox.

The environment is the one that transformers documents for chat templates, so that they render identically here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.exceptions import SecurityError

from runtime.answer_format import GENERIC, ToolSyntax
from runtime.errors import InvalidRequest, ModelUnavailable
from runtime.model.chat_turns import PLAIN_FORMS, TurnForm, definitions, turns
from runtime.model.message_text import Marks
from runtime.types import Message, TemplateOptions, Tool

_MOST_RENDERED = 1 << 26  # characters; far more than any context, and small enough for memory
_HIGHEST_POWER = 1000
_MOST_SHOWN = 300  # characters of a template's error message
_COMPARED = 64  # characters at the end of a message that is continued
_DEFAULTS = TemplateOptions()


class ChatTemplate:
    """A model's chat template, compiled at its first use.

    Args:
        source: the template's Jinja source.
        special_tokens: texts of special tokens by the names that templates use (``bos_token``, ``eos_token``, ...).
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = special_tokens

    @property
    def marks(self) -> Marks:
        """The stand-ins that distinguish messages' characters from the template's in the result of ``render``."""
        return self._compiled[1]

    def render(
        self,
        messages: Sequence[Message],
        *,
        form: TurnForm = PLAIN_FORMS[0],
        tools: Sequence[Tool] = (),
        syntax: ToolSyntax = GENERIC,
        options: TemplateOptions = _DEFAULTS,
    ) -> str:
        """Render a chat, with the stand-ins of ``marks`` for the text of messages and of the template's arguments.

        Args:
            messages: the chat's messages; their text may be anything.
            form: the form in which the template reads messages and tools.
            tools: the tools that the model is told of.
            syntax: how the model writes calls.
            options: how the prompt ends, and further variables of the template.

        Raises:
            InvalidRequest: the template refuses the messages or fails on them, or the last one cannot be continued.
            ModelUnavailable: the template cannot be compiled.
        """
        template, marks = self._compiled
        try:
            text = template.render(
                {
                    "documents": None,
                    **self._special_tokens,
                    **_marked(json.loads(options.arguments), marks),
                    "add_generation_prompt": options.add_generation_prompt and not options.continue_final_message,
                    "messages": turns(messages, tools, syntax, form, marks),
                    "tools": definitions(tools, marks.mark) if tools and form.tools == "template" else None,
                }
            )
        except Exception as error:  # a template is a program and may raise anything: TypeError, RecursionError, ...
            reason = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            raise InvalidRequest(
                f"the model's chat template does not take these messages: {marks.unmark(reason)[:_MOST_SHOWN]}",
                param="messages",
            ) from error
        if options.continue_final_message:
            text = _up_to_last_message(text, messages[-1], marks)
        return marks.recognize(text)

    @functools.cached_property
    def _compiled(self) -> tuple[jinja2.Template, Marks]:
        """The compiled template, and the stand-ins for the characters that it can write."""
        environment = _Environment()
        try:
            tree = environment.parse(self._source)
            texts = (node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str))
            environment.marks = Marks("".join([self._source, *texts, *map(str, self._special_tokens.values())]))
            code = environment.compile(tree)
        except Exception as error:  # jinja2's errors, and those of Python's compiler
            raise ModelUnavailable(
                f"the model's chat template cannot be compiled, so that it takes prompts, but no chats: {error}"
            ) from error
        template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        return template, environment.marks


def _up_to_last_message(text: str, last: Message, marks: Marks) -> str:
    """Return a rendered chat up to the end of its last message's text, without what the template writes behind it.

    Raises:
        InvalidRequest: the message has no text, or the template does not end it as it is written.
    """
    end = marks.end_of_messages(text)
    kept, content = str.__getitem__(text, slice(end)), last.content.rstrip()
    if not content or not marks.unmark(kept).endswith(content[-_COMPARED:]):
        reason = "the model's chat template changes its end" if content else "it has no text"
        raise InvalidRequest(f"the last message cannot be continued: {reason}", param="continue_final_message")
    blanks = last.content[len(content) :]
    return kept + blanks if text.startswith(blanks, end) else kept


def _marked(value: Any, marks: Marks) -> Any:
    """Return a JSON value with stand-ins in all strings but the names of the outermost object."""

    def inner(part: Any) -> Any:
        if isinstance(part, dict):
            return {marks.mark(name): inner(member) for name, member in part.items()}
        if isinstance(part, list):
            return [inner(member) for member in part]
        return marks.mark(part) if isinstance(part, str) else part

    return {name: inner(member) for name, member in value.items()}


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """A jinja2 sandbox with transformers' extensions, limits on size, and support for ``MessageText``."""

    marks: Marks
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self.filters["tojson"] = self._to_json
        functions: dict[str, Callable[..., Any]] = {
            "raise_exception": _raise,
            "strftime_now": _now,
            "namespace": _Namespace,
            "dict": _Dict(),
        }
        self.globals.update(functions)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute; the methods of a string see the original characters of messages."""
        return super().getattr(self.marks.recognize(obj) if type(obj) is str else obj, attribute)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join the pieces that a template, macro or block renders.

        Raises:
            jinja2.TemplateError: the result is longer than the limit.
        """
        kept, size = [], 0
        for piece in pieces:
            kept.append(piece)
            size += len(piece)
            if size > _MOST_RENDERED:
                raise jinja2.TemplateError(f"it renders more than {_MOST_RENDERED} characters")
        return self.marks.join(kept)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Compute a product or a power.

        Raises:
            jinja2.TemplateError: the result could use up the memory.
        """
        repeated = ((text, times) for text, times in ((left, right), (right, left)) if isinstance(times, int))
        if operator == "**":
            huge = isinstance(right, int) and right > _HIGHEST_POWER
        else:
            huge = any(isinstance(text, str | list | tuple) and len(text) * n > _MOST_RENDERED for text, n in repeated)
        if huge:
            raise jinja2.TemplateError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)

    def _to_json(self, value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        """Format a value as JSON, without the HTML escapes of jinja2's own filter."""
        text = json.dumps(value, ensure_ascii=False, **options)
        special = "[^\0-\x7f]" if ensure_ascii else f"[{self.marks.mark(chr(34))}{self.marks.mark(chr(92))}]"

        def escape(match: re.Match[str]) -> str:
            character = self.marks.unmark(match[0])
            return self.marks.mark(json.dumps(character, ensure_ascii=ensure_ascii)[1:-1])

        return self.marks.recognize(re.sub(special, escape, text))


class _Generation(jinja2.ext.Extension):
    """The tag ``{% generation %}``, which marks an assistant's answer for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's way)

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """A namespace that refuses names with a leading underscore, which could reach into the interpreter."""

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
    """Refuse a name with a leading underscore."""
    if name.startswith("_"):
        raise SecurityError(f"a chat template may not store {name!r}")


class _Dict:
    """The function ``dict`` for templates, without the attributes of Python's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
