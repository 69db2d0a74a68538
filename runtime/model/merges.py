"""Finds the merges of a vocabulary of byte pair encoding (arXiv:1508.07909) that has scores instead of merges."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Hashes = NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_FILTER_BITS = 24


def pairs_forming(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Return every pair of tokens that, joined, is a token, too.

    A quarter of a million tokens have some two million places to split them at. So both parts of each are looked up at
    once, by polynomial hashes modulo 2^64, and the pairs that remain are compared as text.

    Args:
        tokens: different texts, none of them empty.

    Returns:
        The pairs, in the order of the tokens that they form; of those that form the same one, the shortest left first.
    """
    try:
        codes = np.frombuffer("".join(tokens).encode("utf-32-le"), np.uint32)
    except UnicodeEncodeError:  # half of a surrogate pair
        return _pairs_one_by_one(tokens)
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    ends = np.cumsum(lengths)
    starts = ends - lengths
    # The hash of the characters from a to b is the sum of code * base^(position - a), so it does not depend on a.
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum((codes.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, len(codes)), out=sums[1:])
    shifts = _powers(_INVERSE, len(codes))
    hashes = (sums[ends] - sums[starts]) * shifts[starts]
    by_hash = np.argsort(hashes)
    ordered = hashes[by_hash]
    if (ordered[1:] == ordered[:-1]).any():
        return _pairs_one_by_one(tokens)
    likely = np.zeros(1 << _FILTER_BITS, bool)
    likely[_slots(hashes)] = True

    token = np.repeat(np.arange(len(tokens)), lengths)  # of each character
    splits = np.flatnonzero(np.arange(len(codes)) != starts[token])  # positions of a right part's first character
    left = (sums[splits] - sums[starts[token[splits]]]) * shifts[starts[token[splits]]]
    kept = likely[_slots(left)]
    splits, left = splits[kept], left[kept]
    right = (sums[ends[token[splits]]] - sums[splits]) * shifts[splits]
    kept = likely[_slots(right)]
    splits, left, right = splits[kept], left[kept], right[kept]
    left_at, right_at = (np.minimum(np.searchsorted(ordered, part), len(ordered) - 1) for part in (left, right))
    kept = (ordered[left_at] == left) & (ordered[right_at] == right)
    text = tokens.__getitem__
    lefts = list(map(text, by_hash[left_at[kept]].tolist()))
    rights = list(map(text, by_hash[right_at[kept]].tolist()))
    formed = map(text, token[splits[kept]].tolist())
    if not all(map(operator.eq, map(operator.add, lefts, rights), formed)):
        return _pairs_one_by_one(tokens)
    return list(zip(lefts, rights, strict=True))


def _pairs_one_by_one(tokens: Sequence[str]) -> list[tuple[str, str]]:
    """Return what ``pairs_forming`` returns, slowly; needed if hashes collide, which only happens on purpose."""
    known = set(tokens)
    pairs = []
    for text in tokens:
        halves = ((text[:at], text[at:]) for at in range(1, len(text)))
        pairs += [(left, right) for left, right in halves if left in known and right in known]
    return pairs


def _powers(base: int, count: int) -> _Hashes:
    """Return the powers of a base from 0 to count - 1, modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _slots(hashes: _Hashes) -> NDArray[np.uint64]:
    """Return the highest bits of hashes, mixed so that the last character is in them."""
    return ((hashes ^ (hashes >> np.uint64(29))) * np.uint64(_BASE)) >> np.uint64(64 - _FILTER_BITS)
