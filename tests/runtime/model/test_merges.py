"""Merges of a vocabulary with scores: every pair of tokens that is a token, too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.model import merges
from runtime.model.merges import pairs_forming

TEXTS = st.lists(st.text("ab\u2581\u4e16\U0001f680\0", min_size=1, max_size=5), unique=True, max_size=40)


def expected(tokens: list[str]) -> list[tuple[str, str]]:
    halves = [(text[:at], text[at:]) for text in tokens for at in range(1, len(text))]
    return [(left, right) for left, right in halves if left in tokens and right in tokens]


@given(TEXTS)
def test_all_pairs_are_there_in_order(tokens: list[str]) -> None:
    """By the token that they form, then by the length of the left one; for any characters."""
    assert pairs_forming(tokens) == expected(tokens)


def test_half_a_character_and_colliding_hashes_only_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lone surrogates cannot be encoded; a base of 0 makes all tokens with the same first character collide."""
    assert pairs_forming(["\ud83d", "a", "\ud83da"]) == [("\ud83d", "a")]
    monkeypatch.setattr(merges, "_BASE", 0)
    assert pairs_forming(["a", "b", "ab", "ba", "aba"]) == [("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a")]
