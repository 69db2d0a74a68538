"""A chat's token ids: the model's own template, with every message's text kept from becoming control tokens.

A template writes control tokens such as ``<|im_end|>`` around the messages. A message that contains that very text must
reach the model as plain text, or a user could end his own turn and speak as the system. So the text of each message is
cut inside every control token it spells; the rendered prompt is split at the cuts and the pieces are encoded apart, in
which no control token can match. A chat without such text has no cuts and is encoded exactly as the tokenizer would.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from jinja2.exceptions import TemplateError

from runtime.chat_template import render_chat
from runtime.errors import InvalidRequest
from runtime.tokenizer import Tokenizer
from runtime.types import Message

# For models that bring no chat template: readable by a base model, and documented in the README.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\nUser:", "\nSystem:", "\nAssistant:")


class ChatEncoder:
    """Encodes chats for one tokenizer.

    Args:
        tokenizer: its ``chat_template`` is used; without one, ``PLAIN_TEMPLATE``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.own_template = bool(tokenizer.chat_template)
        self._template = tokenizer.chat_template or PLAIN_TEMPLATE
        # Added tokens that are not control tokens are runs of white space: cutting them would change plain text.
        control = {i: t.content for i, t in tokenizer.added_tokens.items() if t.special or not t.content.isspace()}
        longest_first = sorted((text for text in control.values() if len(text) > 1), key=len, reverse=True)
        self._control = re.compile(f"(?={'|'.join(map(re.escape, longest_first))})(.)", re.S) if longest_first else None
        self._control_ids = frozenset(control)

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids up to where the assistant speaks.

        Raises:
            InvalidRequest: the template refuses these messages, or a message spells a control token in a way that
                cannot be told from one.
        """
        cut = _absent_marker([message.content for message in messages])
        contents = [self._cut(message.content, cut) for message in messages]
        # A normalizer may fold other characters into a control token's text, where no search for the text sees it.
        if self._tokenizer.normalizes:
            for index, content in enumerate(contents):
                self._refuse_disguised(content, cut, f"messages.{index}.content")
        turns = [{"role": message.role, "content": text} for message, text in zip(messages, contents, strict=True)]
        try:
            prompt = render_chat(self._template, turns, self._tokenizer.special_tokens)
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None
        # The plain template writes no beginning-of-text token itself, so the tokenizer adds its own, as for raw text.
        ids = self._ids(prompt.split(cut), add_special_tokens=not self.own_template)
        return tuple(ids)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Token ids of a text by itself, with nothing added and no control token among them.

        Raises:
            InvalidRequest: it spells a control token in a way that cannot be told from one.
        """
        cut = _absent_marker([text])
        content = self._cut(text, cut)
        if self._tokenizer.normalizes:
            self._refuse_disguised(content, cut, "text")
        return tuple(self._ids(content.split(cut), add_special_tokens=False))

    def _cut(self, text: str, cut: str) -> str:
        return self._control.sub(lambda match: match.group(1) + cut, text) if self._control else text

    def _ids(self, pieces: Sequence[str], *, add_special_tokens: bool) -> list[int]:
        ids = self._tokenizer.encode(pieces[0], add_special_tokens=add_special_tokens)
        for piece in pieces[1:]:
            ids += self._tokenizer.encode(piece, add_special_tokens=False)
        return ids

    def _refuse_disguised(self, content: str, cut: str, field: str) -> None:
        if not self._control_ids.isdisjoint(self._ids(content.split(cut), add_special_tokens=False)):
            raise InvalidRequest("contains text that reads as a control token", param=field)


def _absent_marker(texts: Sequence[str]) -> str:
    """A string that occurs in no text: private-use characters around a number nobody can guess."""
    while True:
        marker = f"\ue000{secrets.token_hex(8)}\ue001"
        if not any(marker in text for text in texts):
            return marker
