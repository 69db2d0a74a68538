"""From token ids to text, token by token: whole characters only, and never past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Enough of the prompt's end for a decoder to know whether the next token starts a word.
_CONTEXT_TOKENS = 8
_WINDOW_TOKENS = 4  # decoded anew with each token: the text's end, so that a token's cost does not grow with the text
_INCOMPLETE = "\ufffd"
_MOST_PENDING = 8  # tokens; a character has four bytes at most: what is incomplete for so long is broken
_MOST_INCOMPLETE = 3  # characters that the bytes of an unfinished one show as


class TextStream:
    """The text of one sequence.

    Args:
        decode: token ids -> text, leaving control tokens out.
        prompt: the prompt's ids: some decoders drop a leading space unless they see what came before.
        stop: strings that end the sequence.
        min_new_tokens: a stop string counts only if it is complete no earlier than with this many tokens.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        min_new_tokens: int = 0,
    ) -> None:
        self._decode = decode
        self._stop = stop
        self._to_come = min_new_tokens
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._done = len(self._ids)  # the ids before this one are in the text already
        self._before = decode(self._ids)  # and this is what they say
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one more token.

        Returns:
            The text it releases: nothing while a character is half there or a stop string may be beginning. Sets
            ``stopped`` once a stop string is complete; the text then ends right before it.
        """
        self._to_come -= 1
        self._ids.append(token_id)
        text = self._decode(self._ids)
        pending = 0
        if text.endswith(_INCOMPLETE):
            if len(self._ids) - self._done < _MOST_PENDING:
                return ""
            pending = _MOST_INCOMPLETE  # the end of broken bytes may still begin a character
        elif text == self._before:
            self._ids.pop()  # a control token: no text, and no context for what follows
            return ""
        new = text[len(self._before) : len(text) - pending]
        if len(self._ids) > _WINDOW_TOKENS:
            del self._ids[: -4 * pending or self._done]  # of a character pending, all bytes
            text = self._decode(self._ids)
        self._before, self._done = text[: len(text) - pending], len(self._ids)
        return self._release(new)

    def flush(self) -> str:
        """The text still held back, when the sequence ended for another reason than a stop string."""
        text = self._release(self._decode(self._ids)[len(self._before) :].rstrip(_INCOMPLETE))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

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
