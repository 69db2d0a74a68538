"""Guesses of what comes next, taken from the text itself: what followed the same few tokens last time.

Prompt lookup, also known as LLMA (arXiv:2304.04487). The runner checks all guesses in one step and only right ones are
kept, so guessing changes how fast a text comes, never which.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

from runtime.engine.sequence import Row, Sequence

_LONGEST, _SHORTEST = 4, 2  # tokens that must have occurred before
_AT_ONCE = 1000  # positions to index per call, so that a long prompt does not hold a step up
_MAX_MISSES = 7  # a text that is never guessed right is tried every 2 ** 7 tokens


class Drafter:
    """Guesses for one sequence. It guesses less while guesses are wrong, and more again once they are right.

    Args:
        limit: tokens to guess at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = limit  # tokens to guess next time
        self._misses = 0  # guesses in a row of which not even the first token was right
        self._resume = 0  # length of the text before which nothing is guessed
        self._next: dict[tuple[int, ...], int] = {}  # a few tokens -> the position behind their last occurrence
        self._indexed = 0  # positions that have been looked at as such
        self._length = 0  # of the text at the last guess

    def draft(self, tokens: list[int], limit: int) -> list[int]:
        """Guess on.

        Args:
            tokens: the text so far: that of the last call, or a continuation of it.
            limit: tokens that are of use now, at least 1.

        Returns:
            What probably follows, often nothing.
        """
        end = len(tokens)
        if end < self._resume:
            return []
        self._length = end
        following = self._next
        start, self._indexed = self._indexed, min(end, self._indexed + _AT_ONCE)
        for position in range(max(start, _SHORTEST), self._indexed):
            for size in range(_SHORTEST, min(_LONGEST, position) + 1):
                following[tuple(tokens[position - size : position])] = position
        for size in range(min(_LONGEST, end), _SHORTEST - 1, -1):
            found = following.get(tuple(tokens[end - size :]))
            if found is not None:
                count = min(self._size, limit)
                period = end - found  # what follows may run into the end; a text that repeats itself goes round
                return [tokens[found + i % period] for i in range(count)]
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """Take how many of the tokens last guessed were right.

        Args:
            drafted: tokens guessed, at least 1.
            accepted: how many of them were right before the first wrong one.
        """
        if accepted:
            self._misses = 0
            self._size = min(max(self._size, 2 * accepted), self._limit) if accepted == drafted else accepted + 1
        else:
            self._size = 1
            self._misses = min(self._misses + 1, _MAX_MISSES)
            self._resume = self._length + 2**self._misses


class Speculation:
    """Guesses for all sequences of a scheduler.

    Args:
        limit: tokens to guess at most, per sequence and step; 0 for none.
        rows: guess only while no more sequences run than these, because only then are guesses cheap.
    """

    def __init__(self, limit: int, rows: int) -> None:
        self.drafted = 0  # tokens guessed
        self.accepted = 0  # of those, tokens that were right, each of which saved a step
        self._limit = limit
        self._rows = rows
        self._drafters: dict[Sequence, Drafter] = {}

    def reset(self) -> None:
        """Forget every sequence; the counters go on."""
        self._drafters.clear()

    def forget(self, sequence: Sequence) -> None:
        """Forget a sequence, if it is known."""
        self._drafters.pop(sequence, None)

    def draft(self, rows: Items[Row], most: int) -> None:
        """Append guesses to rows, all of which await their next token, up to so many tokens in all."""
        if not self._limit or len(rows) > self._rows:
            return
        room = most - sum(len(row.token_ids) for row in rows)
        for row in rows:
            sequence, params = row.sequence, row.sequence.params
            left = params.max_new_tokens - sequence.generated
            if row.banned:  # for all choices of a row or for none
                left = min(left, params.min_new_tokens - sequence.generated)
            limit = min(left - 1, self._limit, room)
            if sequence.penalized or sequence.forced or limit < 1:
                continue
            drafter = self._drafters.get(sequence)
            if drafter is None:
                drafter = self._drafters[sequence] = Drafter(self._limit)
            drafts = drafter.draft(sequence.tokens, limit)
            row.token_ids += drafts
            row.drafts = len(drafts)
            row.samples += len(drafts)
            room -= len(drafts)

    def learn(self, row: Row, kept: int) -> None:
        """Take how many tokens a step that is over gave a row."""
        drafter = self._drafters.get(row.sequence)
        if row.drafts and drafter is not None:  # else they were forced, and no guesses
            accepted = kept - 1
            self.drafted += row.drafts
            self.accepted += accepted
            drafter.learn(row.drafts, accepted)
