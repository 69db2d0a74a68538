"""Speculative decoding by n-gram prompt lookup: drafts the tokens that followed the last occurrence of the same n-gram.

Prompt lookup is also known as LLMA (arXiv:2304.04487). The runner verifies all drafts in one step and only right ones
are kept, so speculation changes the speed of generation, never its result.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items

from runtime.engine.sequence import Row, Sequence

_MAX_NGRAM, _MIN_NGRAM = 4, 2  # n-gram sizes to look up
_MAX_INDEXED = 1000  # positions to index per call, so that a long prompt does not delay a step
_MAX_MISSES = 7  # bounds the backoff: a sequence whose drafts are never right is tried every 2 ** 7 tokens


class Drafter:
    """Drafts tokens for one sequence: fewer while drafts are rejected, more again once they are accepted.

    Args:
        limit: maximum draft tokens per call.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = limit  # tokens to draft next time
        self._misses = 0  # consecutive drafts of which not even the first token was accepted
        self._resume = 0  # length in tokens below which nothing is drafted (backoff)
        self._next: dict[tuple[int, ...], int] = {}  # n-gram -> the position after its last occurrence
        self._indexed = 0  # number of positions already in ``_next``
        self._length = 0  # length in tokens at the last draft

    def draft(self, tokens: list[int], limit: int) -> list[int]:
        """Draft the next tokens.

        Args:
            tokens: the sequence's tokens: those of the last call, or a continuation of them.
            limit: maximum number of tokens, at least 1.

        Returns:
            The draft tokens, often none.
        """
        end = len(tokens)
        if end < self._resume:
            return []
        self._length = end
        following = self._next
        start, self._indexed = self._indexed, min(end, self._indexed + _MAX_INDEXED)
        for position in range(max(start, _MIN_NGRAM), self._indexed):
            for size in range(_MIN_NGRAM, min(_MAX_NGRAM, position) + 1):
                following[tuple(tokens[position - size : position])] = position
        for size in range(min(_MAX_NGRAM, end), _MIN_NGRAM - 1, -1):
            match = following.get(tuple(tokens[end - size :]))
            if match is not None:
                count = min(self._size, limit)
                period = end - match  # a draft that reaches the end of the tokens continues the repetition
                return [tokens[match + i % period] for i in range(count)]
        return []

    def update(self, drafted: int, accepted: int) -> None:
        """Adapt the draft length to the result of the last draft.

        Args:
            drafted: number of drafted tokens, at least 1.
            accepted: number of them before the first wrong one.
        """
        if accepted:
            self._misses = 0
            self._size = min(max(self._size, 2 * accepted), self._limit) if accepted == drafted else accepted + 1
        else:
            self._size = 1
            self._misses = min(self._misses + 1, _MAX_MISSES)
            self._resume = self._length + 2**self._misses


class Speculation:
    """Drafts tokens for all sequences of a scheduler.

    Args:
        limit: maximum draft tokens per sequence and step; 0 turns speculation off.
        rows: draft only while at most this many sequences run, because only then are drafts cheap.
        short_context: number of tokens above which a text uses other rotations; 0 for none.
    """

    def __init__(self, limit: int, rows: int, short_context: int = 0) -> None:
        self.drafted = 0  # draft tokens
        self.accepted = 0  # of those, accepted tokens, each of which saved a step
        self._limit = limit
        self._rows = rows
        self._short_context = short_context
        self._drafters: dict[Sequence, Drafter] = {}

    def reset(self) -> None:
        """Drop the state of all sequences; the counters are kept."""
        self._drafters.clear()

    def remove(self, sequence: Sequence) -> None:
        """Drop the state of a sequence, if there is any."""
        self._drafters.pop(sequence, None)

    def room(self, sequence: Sequence) -> int:
        """Return how many tokens may be fed ahead: all tokens of a step are rotated for a text of the same length."""
        if not self._short_context or sequence.long_text:
            return sequence.params.max_new_tokens
        return self._short_context - len(sequence.tokens)

    def draft(self, rows: Items[Row], max_tokens: int, feed_ahead: Callable[[Sequence, int], int]) -> None:
        """Append drafts to rows.

        Args:
            rows: rows of decoding sequences only.
            max_tokens: maximum tokens of the step, over all rows.
            feed_ahead: allocates KV blocks for a number of drafts of a sequence, and returns for how many there are
                blocks.
        """
        if not self._limit or len(rows) > self._rows:
            return
        budget = max_tokens - sum(len(row.token_ids) for row in rows)
        for row in rows:
            sequence, params = row.sequence, row.sequence.params
            remaining = params.max_new_tokens - sequence.generated
            if row.banned:  # bans apply to all choices of a row, so drafts must not reach beyond ``min_new_tokens``
                remaining = min(remaining, params.min_new_tokens - sequence.generated)
            limit = min(remaining - 1, self._limit, budget, self.room(sequence))
            if sequence.penalized or sequence.forced or limit < 1:
                continue
            drafter = self._drafters.get(sequence)
            if drafter is None:
                drafter = self._drafters[sequence] = Drafter(self._limit)
            drafts = drafter.draft(sequence.tokens, limit)
            if drafts and sequence.grammar is not None:
                drafts = drafts[: sequence.grammar.valid(drafts)]
            drafts = drafts[: feed_ahead(sequence, len(drafts))]
            row.token_ids += drafts
            row.drafts = len(drafts)
            row.samples += len(drafts)
            budget -= len(drafts)

    def update(self, row: Row, tokens: int) -> None:
        """Update the draft length and the counters from a finished step.

        Args:
            row: the row of the step.
            tokens: number of tokens that the step added to the sequence.
        """
        drafter = self._drafters.get(row.sequence)
        if row.drafts > row.forced and drafter is not None:
            accepted = tokens - 1
            self.drafted += row.drafts
            self.accepted += accepted
            drafter.update(row.drafts, accepted)
