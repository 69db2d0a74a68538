"""runtime.engine.speculation: what is guessed, and when guessing pauses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.speculation import Drafter


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        pytest.param([1, 2, 3, 4, 5, 1, 2], 3, [3, 4, 5], id="what followed the last two tokens before"),
        pytest.param([1, 2, 3, 4, 5, 1, 2], 2, [3, 4], id="no more than is of use"),
        pytest.param([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], 8, [3, 4, 5, 6, 7], id="no more than the drafter's own limit"),
        pytest.param([1, 2, 3, 0, 1, 2, 4, 0, 1, 2], 1, [4], id="the most recent of several"),
        pytest.param([9, 1, 2, 3, 0, 1, 2, 4, 9, 1, 2], 1, [3], id="a longer match before a more recent one"),
        pytest.param([7, 5, 6, 5, 6], 5, [5, 6, 5, 6, 5], id="a repetition goes on"),
        pytest.param([5, 5, 5], 3, [5, 5, 5], id="a repetition of one token"),
        pytest.param([1, 2, 3, 4, 2], 3, [], id="one token is too little"),
        pytest.param([1, 2], 3, [], id="nothing before"),
        pytest.param([1], 3, [], id="one token"),
    ],
)
def test_draft(text: list[int], limit: int, expected: list[int]) -> None:
    """The guess is what followed the longest known end of the text at its most recent occurrence."""
    assert Drafter(5).draft(text, limit) == expected


@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.data())
def test_draft_of_a_growing_text(text: list[int], data: st.DataObject) -> None:
    """Guessing along a growing text, now and then, gives the same as reading the whole text anew."""
    growing = Drafter(4)
    for end in range(1, len(text) + 1):
        if data.draw(st.booleans()):
            drafts = growing.draft(text[:end], 4)
            assert drafts == Drafter(4).draft(text[:end], 4)
            assert drafts == _rescan(text[:end], 4)


def _rescan(text: list[int], limit: int) -> list[int]:
    for size in range(min(4, len(text)), 1, -1):
        for found in range(len(text) - 1, size - 1, -1):
            if text[found - size : found] == text[-size:]:
                longer = list(text)
                while len(longer) < found + len(text) + limit:
                    longer.append(longer[found + len(longer) - len(text)])
                return longer[found : found + limit]
    return []


def test_a_long_prompt_is_read_in_parts() -> None:
    """A text that is long from the start is taken in over several calls, from its beginning."""
    text = list(range(2500))
    drafter = Drafter(1)
    assert drafter.draft([*text, 1500, 1501], 1) == []
    assert drafter.draft([*text, 1500, 1501], 1) == [1502]
    assert drafter.draft([*text, 1500, 1501, 2400, 2401], 1) == [2402]


def test_fewer_while_wrong() -> None:
    """A guess that was wrong midway is followed by shorter ones, right ones by longer ones again."""
    text, drafter = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], Drafter(8)
    sizes = []
    for drafted, accepted in [(8, 2), (3, 3), (6, 6), (8, 8)]:
        sizes.append(len(drafter.draft(text, 100)))
        assert sizes[-1] == drafted
        drafter.update(drafted, accepted)
    assert len(drafter.draft(text, 100)) == 8


def test_pauses_while_nothing_is_right() -> None:
    """Each guess that was wrong from the start doubles the pause, up to 128 tokens; one right token ends that."""
    text, drafter = [1] * 10, Drafter(4)
    pauses: list[int] = []
    while len(pauses) < 9:
        length = len(text)
        while not (drafts := drafter.draft(text, 4)):
            text.append(1)
        pauses.append(len(text) - length)
        drafter.update(len(drafts), 0)
    assert pauses == [0, 2, 4, 8, 16, 32, 64, 128, 128]
    text += [1] * 128
    assert drafter.draft(text, 4) == [1]
    drafter.update(1, 1)
    assert drafter.draft(text, 4) == [1, 1]
    drafter.update(2, 0)
    assert drafter.draft([*text, 1], 4) == []
    assert drafter.draft([*text, 1, 1], 4) == [1]
