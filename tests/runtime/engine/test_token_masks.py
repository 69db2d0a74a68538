"""The masks of a step's rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.engine.grammar import GrammarMatcher
from runtime.engine.sequence import Row, Sequence
from runtime.engine.token_masks import TokenMasks
from runtime.types import Grammar, SamplingParams
from tests.support.grammars import END, TOKENIZER, VOCABULARY, allowed, compiler, schema


def sequence(matcher: GrammarMatcher, **params: Any) -> Sequence:
    return Sequence((5,), SamplingParams(max_new_tokens=9, **params), 0, grammar=matcher)


def test_each_choice_of_a_row_has_its_mask() -> None:
    """Behind each draft; choices that are forced have none, and rows without a grammar have none."""
    number = {"abc": {"enum": [5, 77]}}
    grammar = schema({"type": "object", "properties": number, "required": ["abc"], "additionalProperties": False})
    matcher = compiler().compile(grammar)
    forced, five = [*matcher.forced], TOKENIZER.encode("5")
    assert len(forced) > 1
    row = Row(sequence(matcher), 0, [5, *forced, *five], drafts=len(forced) + 1, samples=len(forced) + 2)
    row.forced = len(forced)
    others = [
        Row(sequence(compiler().compile(grammar)), 0, [5], samples=1),
        Row(Sequence((5,), SamplingParams(max_new_tokens=9), 0), 0, [5], samples=1),
        Row(sequence(compiler().compile(grammar)), 0, [5], samples=0),
    ]
    TokenMasks().fill([*others, row])
    assert [other.masks for other in others] == [None] * 3
    assert row.mask(len(forced) - 1) is None
    first, second = row.mask(len(forced)), row.mask(len(forced) + 1)
    assert first is not None
    assert second is not None
    assert five[0] in allowed(first)
    assert five[0] not in allowed(second)


def test_no_end_before_the_least_number_of_tokens() -> None:
    """Unless the grammar allows nothing else."""
    grammar = Grammar("regex", "[ab]{1,2}", "guided_regex")
    a = TOKENIZER.encode("a")[0]
    matcher = compiler().compile(grammar)
    matcher.accept([a])
    for least, ends in ((0, True), (1, True), (2, False)):
        made = sequence(matcher, min_new_tokens=least)
        made.end_ids = frozenset({END})
        made.tokens.append(a)
        row = Row(made, 1, [a])
        TokenMasks().fill([row])
        mask = row.mask(0)
        assert mask is not None
        assert (END in allowed(mask)) == ends
    mask = np.zeros(-(-VOCABULARY // 32), np.int32)
    mask[END // 32] = 1 << (END % 32)
    matcher.ban(mask, [END])
    assert allowed(mask) == [END]
