"""Encodes chats with the model's chat template so that the text of messages never becomes control tokens.

A template writes control tokens such as ``<|im_end|>`` around the messages. A message that contains the same text must
reach the model as plain text, or a user could end their own turn and speak as the system. So where the tokenizer finds
a control token with characters of a message, the prompt is cut inside it and the pieces are encoded separately, until
there are no more of them. A chat without such text is not cut and is encoded exactly as the tokenizer would.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace

from runtime.answer_format import AnswerFormat
from runtime.errors import InvalidRequest
from runtime.model.answer_formats import answer_format
from runtime.model.chat_template import ChatTemplate
from runtime.model.chat_turns import PLAIN_FORMS, TurnForm, is_object, tool_forms
from runtime.model.message_text import STAND_INS, Marks
from runtime.model.tokenizer import Encoding, Tokenizer
from runtime.types import Message, TemplateOptions, Tool

# For models without a chat template: readable by a base model, and documented in docs/serving-models.md.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")
_DEFAULTS = TemplateOptions()
_MOST_ROUNDS = 8  # of cutting; two are enough for every known tokenizer
_BATCH = 1024  # pieces of a prompt that are encoded in one call
_MOST_SHAPES = 256  # of chats for which the form of the content is cached
_PROBE = "7301948"  # prefix of the numbers that replace messages' texts, because filters leave digits unchanged
_SHOWN = re.compile(rf"(?<!['\"]text['\"]: ['\"]){_PROBE}\d{{9}}")  # not where a list of parts is printed verbatim


class ChatEncoder:
    """Encodes chats and plain texts for one model.

    Args:
        tokenizer: the model's tokenizer. Its ``chat_template`` is used, or ``PLAIN_TEMPLATE`` if it has none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.source = tokenizer.chat_template or None
        self.special_tokens = tokenizer.special_tokens
        self.own_template = self.source is not None
        self._template = ChatTemplate(tokenizer.chat_template or PLAIN_TEMPLATE, tokenizer.special_tokens)
        self._forms: dict[str, TurnForm] = {}
        # Added tokens that are runs of white space, or not special and a single character, are plain text.
        self._control = {
            i: token.content
            for i, token in tokenizer.added_tokens.items()
            if not token.content.isspace() and (token.special or len(token.content) > 1)
        }
        self._spelled = frozenset(self._control.values())
        self._openings = frozenset(text[:2] for text in self._spelled)
        self._lengths = sorted({len(text) for text in self._spelled})

    @functools.cached_property
    def answer_format(self) -> AnswerFormat:
        """How the model writes tool calls and reasoning."""
        return answer_format(self._tokenizer, self._template if self.own_template else None)

    def encode(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), options: TemplateOptions = _DEFAULTS
    ) -> tuple[int, ...]:
        """Return a chat's token ids, up to the start of the assistant's answer unless the options say otherwise.

        Args:
            messages: the chat's messages.
            tools: the tools that the model is told of.
            options: how the prompt ends, and further variables of the template.

        Raises:
            InvalidRequest: the template refuses these messages or drops one, or a message contains text that cannot be
                distinguished from a control token.
            ModelUnavailable: the template cannot be compiled.
        """
        prompt = self._rendered(messages, tools, options)
        # The plain template writes no BOS token, so the tokenizer adds its own, as for a raw prompt.
        add = not self.own_template if options.add_special_tokens is None else options.add_special_tokens
        return self._ids(prompt, self._template.marks, "messages", add_special_tokens=add)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), options: TemplateOptions = _DEFAULTS
    ) -> str:
        """Return a chat as the text that ``encode`` tokenizes. Arguments and errors as for ``encode``."""
        text: str = self._template.marks.unmark(self._rendered(messages, tools, options))
        return text

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Tool], options: TemplateOptions) -> str:
        for index, message in enumerate(messages):
            _check_unicode(message.content, f"messages.{index}.content")
            for call in message.tool_calls:
                values = call.arguments
                if is_object(values):
                    values = json.dumps(json.loads(values), ensure_ascii=False)
                _check_unicode(f"{call.id}{call.name}{values}", f"messages.{index}.tool_calls")
        _check_unicode(json.dumps([astuple(tool) for tool in tools], ensure_ascii=False), "tools")
        return self._template.render(
            messages,
            form=self._form(messages, tools, options),
            tools=tools,
            syntax=self.answer_format.tools,
            options=options,
        )

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text without a template, added tokens or control tokens.

        Raises:
            InvalidRequest: the text cannot be distinguished from a control token.
        """
        _check_unicode(text, "text")
        marks = Marks("")
        return self._ids(marks.mark(text), marks, "text", add_special_tokens=False)

    def _form(self, messages: Sequence[Message], tools: Sequence[Tool], options: TemplateOptions) -> TurnForm:
        """Return the form in which the template reads these messages and tools.

        The result is cached by the messages' roles, whether each has text, their calls' arguments are JSON objects or
        not (``{`` or ``-``), whether there are tools, and the template's arguments.

        Raises:
            InvalidRequest: the template drops a message that has text.
        """
        shape = "".join(
            (message.role[0].upper() if message.content.strip() else message.role[0])
            + "".join("{" if is_object(call.arguments) else "-" for call in message.tool_calls)
            for message in messages
        )
        shape += ("+" if tools else "") + options.arguments
        if shape not in self._forms:
            form = self._find_form(messages, tools, options)
            if len(self._forms) == _MOST_SHAPES:
                self._forms.clear()
            self._forms[shape] = form
        return self._forms[shape]

    def _find_form(self, messages: Sequence[Message], tools: Sequence[Tool], options: TemplateOptions) -> TurnForm:
        """Compute ``_form`` by rendering the chat in one form after the other. Raises the same error."""
        if tools or any(message.tool_calls or message.role == "tool" for message in messages):
            forms = tool_forms(self.answer_format.tools, messages)
        else:
            forms = PLAIN_FORMS
        dropped = None
        for form in forms:
            try:
                missing = self._first_dropped(messages, tools, form, options)
            except InvalidRequest:
                continue  # rendering the chat itself will report the reason
            if missing is None:
                return form
            dropped = missing if dropped is None else dropped
        if dropped is None:
            return forms[0]
        raise InvalidRequest(
            f"the model's chat template leaves out this {messages[dropped].role} message, and its text would be lost",
            param=f"messages.{dropped}",
        )

    def _first_dropped(
        self, messages: Sequence[Message], tools: Sequence[Tool], form: TurnForm, options: TemplateOptions
    ) -> int | None:
        """Return the index of the first message that the template does not render; None if it renders all.

        Each text is replaced by a number, which is searched in the rendered prompt. The text itself cannot be searched,
        because templates may change it, and drop the reasoning of earlier answers. Calls and tools are searched in the
        same way; missing tools count as the first message.
        """
        numbers = [f"{_PROBE}{i:09d}" if message.content.strip() else "" for i, message in enumerate(messages)]
        calls = [
            [f"{_PROBE}{1 + i:04d}{j:05d}" for j in range(len(message.tool_calls))]
            for i, message in enumerate(messages)
        ]
        probes = [
            replace(
                message,
                content=number,
                tool_calls=tuple(
                    replace(call, arguments=json.dumps({"value": probe}))
                    for call, probe in zip(message.tool_calls, probed, strict=True)
                ),
                reasoning="",
            )
            for message, number, probed in zip(messages, numbers, calls, strict=True)
        ]
        definitions = [Tool(f"{_PROBE}{9999:04d}00000", "", {})] if tools else []
        syntax = self.answer_format.tools
        plain = TemplateOptions(arguments=options.arguments)
        prompt = self._template.marks.unmark(
            self._template.render(probes, form=form, tools=definitions, syntax=syntax, options=plain)
        )
        shown = {"", *_SHOWN.findall(prompt)}
        if definitions and definitions[0].name not in shown:
            return 0
        return next(
            (i for i, number in enumerate(numbers) if number not in shown or not shown.issuperset(calls[i])), None
        )

    def _ids(self, prompt: str, marks: Marks, field: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Return the token ids of a rendered text, without control tokens that contain a message's character.

        Args:
            prompt: the rendered text, with stand-ins.
            marks: the stand-ins of messages' characters.
            field: name of the request's field, for errors.
            add_special_tokens: whether the tokenizer adds its own tokens around the text.

        Raises:
            InvalidRequest: a control token that contains a message's character cannot be cut.
        """
        text = marks.unmark(prompt)
        cuts = set[int]()
        for _ in range(_MOST_ROUNDS):
            ids, found = list[int](), set[int]()
            pieces = list(itertools.pairwise([0, *sorted(cuts), len(text)]))
            # The tokens that the tokenizer adds belong to the first piece. The others are encoded in batches, because
            # other threads are blocked while the library copies texts in and encodings out.
            for first, last in itertools.pairwise([0, *range(1, len(pieces), _BATCH), len(pieces)]):
                batch = pieces[first:last]
                encodings = self._tokenizer.encodings(
                    [text[start:end] for start, end in batch], add_special_tokens=add_special_tokens and first == 0
                )
                for (start, _), encoding in zip(batch, encodings, strict=True):
                    ids += encoding.ids
                    found.update(self._cuts(prompt, marks, text, encoding, start, field))
            if not found:
                return tuple(ids)
            cuts |= found
        raise _forged(field)

    def _cuts(self, prompt: str, marks: Marks, text: str, encoding: Encoding, offset: int, field: str) -> Iterator[int]:
        """Yield the positions at which to cut control tokens that contain a message's character.

        Args:
            prompt: the rendered text, with stand-ins.
            marks: the stand-ins of messages' characters.
            text: the same text with its original characters.
            encoding: the encoding of a piece of the text.
            offset: position of the piece in the text.
            field: name of the request's field, for errors.

        Raises:
            InvalidRequest: such a control token is a single character, which cannot be cut.
        """
        first_of_message = marks.first_of_message
        for index, token_id in enumerate(encoding.ids):
            if token_id not in self._control or (place := encoding.token_to_chars(index)) is None:
                continue
            span = offset + place[0], offset + place[1]
            if first_of_message(prompt, *span) is None:
                continue
            if token_id == self._tokenizer.unk_token_id and self._control[token_id] not in text[slice(*span)]:
                continue  # the unknown token, for characters that the model has no tokens for
            if span[1] - span[0] < 2:
                raise _forged(field)
            # Once this one is cut, the tokenizer could find others that overlap it.
            for start, end in (span, *self._spelled_in(text, *span)):
                first = first_of_message(prompt, start, end)
                if first is not None:
                    yield max(first, start + 1)

    def _spelled_in(self, text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the start and end of every control token's text that begins between two positions of a text."""
        for place in range(start, end):
            if text[place : place + 2] in self._openings:
                for length in self._lengths:
                    if text[place : place + length] in self._spelled:
                        yield place, place + length


def _forged(field: str) -> InvalidRequest:
    """Return the error for text that cannot be distinguished from a control token."""
    return InvalidRequest("contains text that reads as a control token", param=field)


def _check_unicode(text: str, field: str) -> None:
    """Refuse a text with surrogates, which are not characters and serve as stand-ins here."""
    if STAND_INS.search(text):
        raise InvalidRequest("contains half a surrogate pair, which is not a character", param=field)
