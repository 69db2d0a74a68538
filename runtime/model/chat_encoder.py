"""Encodes chats with the model's chat template so that the text of messages never becomes control tokens.

A template writes control tokens such as ``<|im_end|>`` around the messages. A message that contains the same text must
reach the model as plain text, or a user could end their own turn and speak as the system. So where the tokenizer finds
a control token with characters of a message, the prompt is cut inside it and the pieces are encoded separately, until
there are no more of them. A chat without such text is not cut and is encoded exactly as the tokenizer would.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from runtime.errors import InvalidRequest
from runtime.model.chat_template import ChatTemplate
from runtime.model.message_text import STAND_INS, Marks
from runtime.model.tokenizer import Encoding, Tokenizer
from runtime.types import Message

# For models without a chat template: readable by a base model, and documented in the README.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")
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
        self.own_template = bool(tokenizer.chat_template)
        self._template = ChatTemplate(tokenizer.chat_template or PLAIN_TEMPLATE, tokenizer.special_tokens)
        self._forms: dict[str, bool] = {}
        # Added tokens that are runs of white space, or not special and a single character, are plain text.
        self._control = {
            i: token.content
            for i, token in tokenizer.added_tokens.items()
            if not token.content.isspace() and (token.special or len(token.content) > 1)
        }
        self._spelled = frozenset(self._control.values())
        self._openings = frozenset(text[:2] for text in self._spelled)
        self._lengths = sorted({len(text) for text in self._spelled})

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return a chat's token ids, up to the start of the assistant's answer.

        Raises:
            InvalidRequest: the template refuses these messages or drops one, or a message contains text that cannot be
                distinguished from a control token.
            ModelUnavailable: the template cannot be compiled.
        """
        for index, message in enumerate(messages):
            _check_unicode(message.content, f"messages.{index}.content")
        prompt = self._template.render(messages, parts=self._reads_parts(messages))
        # The plain template writes no BOS token, so the tokenizer adds its own, as for a raw prompt.
        return self._ids(prompt, self._template.marks, "messages", add_special_tokens=not self.own_template)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text without a template, added tokens or control tokens.

        Raises:
            InvalidRequest: the text cannot be distinguished from a control token.
        """
        _check_unicode(text, "text")
        marks = Marks("")
        return self._ids(marks.mark(text), marks, "text", add_special_tokens=False)

    def _reads_parts(self, messages: Sequence[Message]) -> bool:
        """Return whether the template needs these messages' content as a list of parts rather than as a string.

        The result is cached by the messages' roles and whether each has text.

        Raises:
            InvalidRequest: the template drops a message that has text.
        """
        shape = "".join(message.role[0].upper() if message.content.strip() else message.role[0] for message in messages)
        if shape not in self._forms:
            form = self._find_form(messages)
            if len(self._forms) == _MOST_SHAPES:
                self._forms.clear()
            self._forms[shape] = form
        return self._forms[shape]

    def _find_form(self, messages: Sequence[Message]) -> bool:
        """Compute ``_reads_parts`` by rendering the chat in both forms. Raises the same error."""
        dropped = None
        for parts in (False, True):
            try:
                missing = self._first_dropped(messages, parts)
            except InvalidRequest:
                continue  # rendering the chat itself will report the reason
            if missing is None:
                return parts
            dropped = missing if dropped is None else dropped
        if dropped is None:
            return False
        raise InvalidRequest(
            f"the model's chat template leaves out this {messages[dropped].role} message, and its text would be lost",
            param=f"messages.{dropped}",
        )

    def _first_dropped(self, messages: Sequence[Message], parts: bool) -> int | None:
        """Return the index of the first message that the template does not render; None if it renders all.

        Each text is replaced by a number, which is searched in the rendered prompt. The text itself cannot be searched,
        because templates may change it, and drop the reasoning of earlier answers.
        """
        numbers = [f"{_PROBE}{i:09d}" if message.content.strip() else "" for i, message in enumerate(messages)]
        probes = [Message(message.role, number) for message, number in zip(messages, numbers, strict=True)]
        prompt = self._template.marks.unmark(self._template.render(probes, parts=parts))
        shown = {"", *_SHOWN.findall(prompt)}
        return next((index for index, number in enumerate(numbers) if number not in shown), None)

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
