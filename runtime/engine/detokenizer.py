"""From token ids to text, token by token: whole characters only, and never past a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

# Enough of the prompt's end for a decoder to know whether the next token starts a word.
_CONTEXT_TOKENS = 8
_WINDOW_TOKENS = 4  # decoded anew with each token: the text's end, so that a token's cost does not grow with the text


class Decoding(Protocol):
    """What a text needs of a tokenizer, see ``runtime.model.tokenizer.Tokenizer``."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids, half a character as U+FFFD."""
        ...

    def has_text(self, token_id: int) -> bool:
        """Whether a token is seen in a text: control tokens are not."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, which may be a part of a character."""
        ...


class IncrementalDetokenizer:
    """The text of one sequence.

    The pieces, joined, are what ``decode`` makes of all tokens at once, up to a stop string or to a character that the
    last tokens leave incomplete. Whether one is incomplete is told by the bytes of the tokens, not by a U+FFFD at the
    end of the text, which a model may also have written.

    Args:
        tokenizer: of the model.
        prompt: the prompt's ids: some decoders drop a leading space unless they see what came before.
        stop: strings that end the sequence.
        min_new_tokens: a stop string counts only if it is complete no earlier than with this many tokens.
    """

    def __init__(
        self, tokenizer: Decoding, prompt: Sequence[int], stop: Sequence[str] = (), min_new_tokens: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._to_come = min_new_tokens
        self._ids: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = 0  # the last of ``_ids``, from the one in which an incomplete character begins
        for token_id in prompt[-_CONTEXT_TOKENS:]:
            self._append(token_id)
        self._before = self._text()
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one more token.

        Returns:
            The text it releases: nothing while a character is half there or a stop string may be beginning. Sets
            ``stopped`` once a stop string is complete; the text then ends right before it.
        """
        self._to_come -= 1
        if not self._tokenizer.has_text(token_id):
            return ""  # and no context for what follows
        self._append(token_id)
        text = self._text()
        new = text[len(self._before) :]
        if len(self._ids) > _WINDOW_TOKENS:
            del self._ids[: -max(1, self._pending)]
            text = self._text()
        self._before = text
        return self._release(new)

    def flush(self) -> str:
        """The text still held back, when the sequence ended for another reason than a stop string."""
        text, self._held = self._held, ""
        return text

    def _append(self, token_id: int) -> None:
        self._ids.append(token_id)
        self._utf8.decode(raw := self._tokenizer.token_bytes(token_id))
        incomplete = len(self._utf8.getstate()[0])  # bytes
        if not incomplete:
            self._pending = 0
        else:
            self._pending = self._pending + 1 if incomplete > len(raw) else 1

    def _text(self) -> str:
        """Of ``_ids``, without a character that is incomplete."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text[:-1] if self._pending else text

    def _release(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        if self._to_come <= 0:
            # What is held back may contain a stop string that came too early: one that counts ends in the new text.
            found = [at for at in (text.find(s, max(0, len(self._held) - len(s) + 1)) for s in self._stop) if at >= 0]
            if found:
                self.stopped, self._held = True, ""
                return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
