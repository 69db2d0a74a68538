"""Computes the token masks of a step's rows whose sequences have a grammar or a list of allowed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from runtime.engine.grammar import GrammarMatcher
from runtime.engine.sequence import Row
from runtime.host import usable_cores

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher


class TokenMasks:
    """Computes masks for all rows of a step at once, on several threads. Only the engine thread may call it."""

    @cached_property
    def _threads(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(usable_cores())  # by default it leaves some idle: one of two

    def fill(self, rows: Sequence[Row]) -> None:
        """Set ``Row.masks`` of the rows that sample a token which is limited, but not forced."""
        alone: list[tuple[LLMatcher, int]] = []
        drafting: list[tuple[LLMatcher, int, list[int]]] = []
        spans: list[tuple[Row, GrammarMatcher, int, int]] = []
        end = 0
        for row in rows:
            grammar, limits = row.sequence.grammar, row.sequence.limits
            if limits is not None and limits.mask is not None and row.samples and not row.sequence.forced:
                row.masks = np.broadcast_to(limits.mask, (row.samples, len(limits.mask)))
            free = 0 if grammar is None else row.samples - len(grammar.forced)  # the last choices of the row
            if grammar is None or free < 1:
                continue
            if free == 1:
                alone.append((grammar.matcher, end))
            else:
                drafting.append((grammar.matcher, end, row.token_ids[1 - free :]))
            spans.append((row, grammar, end, end + free))
            end += free
        if not spans:
            return
        words = spans[0][1].words
        masks = np.zeros((end, words), np.int32)
        address, size = masks.ctypes.data, words * 4
        if alone:
            self._threads.unsafe_compute_mask_ptr(alone, address, size, end)
        if drafting:
            self._threads.unsafe_compute_mask_ptr_with_draft_token(drafting, address, size, end)
        for row, grammar, start, stop in spans:
            row.masks = masks[start:stop, : grammar.used_words]
            sequence = row.sequence
            first = sequence.generated + len(grammar.forced)  # number of the generated token that the first mask is for
            for mask in row.masks[: max(0, sequence.params.min_new_tokens - first)]:
                grammar.ban(mask, sequence.end_ids)
