"""From token ids to text, token by token: whole characters only, and never past a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# Enough of the prompt's end for a decoder to know whether the next token starts a word.
_CONTEXT_TOKENS = 8
_INCOMPLETE = "\ufffd"


class TextStream:
    """The text of one sequence.

    Args:
        decode: token ids -> text, leaving control tokens out.
        prompt: the prompt's ids: some decoders drop a leading space unless they see what came before.
        stop: strings that end the sequence.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._start = 0  # decoding starts here, so that its cost does not grow with the text
        self._done = len(self._ids)  # the ids before this one are in the text already
        self._held = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Take one more token.

        Returns:
            The text it releases: nothing while a character is half there or a stop string may be beginning. Sets
            ``stopped`` once a stop string is complete; the text then ends right before it.
        """
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._done])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(before) or text.endswith(_INCOMPLETE):
            return ""
        self._start, self._done = self._done, len(self._ids)
        return self._release(text[len(before) :])

    def flush(self) -> str:
        """The text still held back, when the sequence ended for another reason than a stop string."""
        before = self._decode(self._ids[self._start : self._done])
        rest = self._decode(self._ids[self._start :])[len(before) :].rstrip(_INCOMPLETE)
        text = self._release(rest)
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, delta: str) -> str:
        text = self._held + delta
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
