"""Incremental detokenization: returns whole characters only and stops before a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

# Enough of the prompt's end for a decoder to know whether the next token starts a word.
_CONTEXT_TOKENS = 8
_WINDOW_TOKENS = 4  # last tokens, decoded again with each new one, so that the cost per token does not grow


class Decoding(Protocol):
    """The tokenizer interface that detokenization needs, see ``runtime.model.tokenizer.Tokenizer``."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Return the text of token ids; an incomplete character becomes U+FFFD."""
        ...

    def has_text(self, token_id: int) -> bool:
        """Whether a token is visible in text, which control tokens are not."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text, possibly part of a UTF-8 character."""
        ...


class IncrementalDetokenizer:
    """Detokenizes one sequence token by token.

    The concatenated pieces equal ``decode`` of all tokens at once, up to a stop string or a character that the last
    tokens leave incomplete. Incomplete characters are detected by the tokens' bytes, not by a U+FFFD at the end of the
    text, which the model may also have generated.

    Args:
        tokenizer: the model's tokenizer.
        prompt: the prompt's token ids; some decoders drop a leading space unless they see the preceding tokens.
        stop: strings that end the sequence.
        min_new_tokens: a stop string that is complete before this many tokens is ignored.
        include_stop: whether the stop string or the token that ends the sequence is part of the text.
        skip_special_tokens: whether control tokens are left out of the text; otherwise it has their names.
    """

    def __init__(
        self,
        tokenizer: Decoding,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        min_new_tokens: int = 0,
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._remaining_min_tokens = min_new_tokens
        self._include_stop = include_stop
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = 0  # number of last ``_ids`` from the one in which an incomplete character begins
        for token_id in prompt[-_CONTEXT_TOKENS:]:
            self._append(token_id)
        self._before = self._text()
        self._held = ""
        self.stop_string: str | None = None  # the one that ended the sequence

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the sequence."""
        return self.stop_string is not None

    def push(self, token_id: int) -> str:
        """Append a token and return the text that is now final. Sets ``stopped`` once a stop string is complete.

        Returns:
            The new text: empty while a character is incomplete or a stop string may have begun. At a stop string it
            ends right before that string, or with it. All text before a control token is returned with it.
        """
        self._remaining_min_tokens -= 1
        if not self._tokenizer.has_text(token_id):  # they are no decoding context
            if self._skip_special_tokens:
                return self.flush()  # a stop string has no control token in it
            return self._release(self._tokenizer.token_bytes(token_id).decode("utf-8", "replace"))
        self._append(token_id)
        text = self._text()
        new = text[len(self._before) :]
        if len(self._ids) > _WINDOW_TOKENS:
            del self._ids[: -max(1, self._pending)]
            text = self._text()
        self._before = text
        return self._release(new)

    def end(self, token_id: int) -> str:
        """Return the last text of a sequence that a token ended."""
        return (self.push(token_id) if self._include_stop else "") + self.flush()

    def flush(self) -> str:
        """Return the text still held back, after the sequence ended for another reason than a stop string."""
        text, self._held = self._held, ""
        return text

    def _append(self, token_id: int) -> None:
        self._ids.append(token_id)
        self._utf8.decode(raw := self._tokenizer.token_bytes(token_id))
        rest = self._utf8.getstate()[0]
        if rest[:1] == b"\xed" and rest[1:] >= b"\xa0":  # Python waits for the third byte of a surrogate: not UTF-8
            self._utf8.reset()
            rest = b""
        incomplete = len(rest)
        if not incomplete:
            self._pending = 0
        else:
            self._pending = self._pending + 1 if incomplete > len(raw) else 1

    def _text(self) -> str:
        """Decode ``_ids`` without an incomplete last character."""
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text[:-1] if self._pending else text

    def _release(self, new: str) -> str:
        if not self._stop:
            return new
        text = self._held + new
        if self._remaining_min_tokens <= 0:
            # The held text may contain a stop string that was completed too early; a valid one ends in the new text.
            starts = [text.find(stop, max(0, len(self._held) - len(stop) + 1)) for stop in self._stop]
            found = [(start, stop) for start, stop in zip(starts, self._stop, strict=True) if start >= 0]
            if found:
                start, self.stop_string = min(found, key=lambda match: match[0])
                self._held = ""
                return text[: start + len(self.stop_string)] if self._include_stop else text[:start]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
