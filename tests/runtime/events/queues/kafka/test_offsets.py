"""Which offset a group may go on from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.events.queues.kafka.offsets import Offsets


@settings(max_examples=500)
@given(st.data())
def test_no_message_is_skipped_and_none_held_back(data: st.DataObject) -> None:
    """Whatever the gaps and the order: the offset is just that of the first that is not settled."""
    there = sorted(data.draw(st.sets(st.integers(0, 60), max_size=30)))
    offsets = Offsets(None)
    taken: list[int] = []
    settled: set[int] = set()
    for _ in range(data.draw(st.integers(0, 60))):
        left = [offset for offset in taken if offset not in settled]
        if left and data.draw(st.booleans()):
            offset = data.draw(st.sampled_from(left))
            offsets.settle(offset)
            settled.add(offset)
        elif len(taken) < len(there):
            taken.append(there[len(taken)])
            assert offsets.take(taken[-1])
        unsettled = [offset for offset in taken if offset not in settled]
        assert offsets.safe == (unsettled[0] if unsettled else taken[-1] + 1 if taken else 0)


@given(st.integers(0, 100), st.integers(0, 100))
def test_what_was_taken_before_is_not_new(first: int, second: int) -> None:
    """After partitions were shared out anew the same messages are read again; and settling twice changes nothing."""
    offsets = Offsets(5, 5)
    assert offsets.take(first) == (first >= 5)
    assert offsets.take(second) == (second >= max(5, first + 1))
    for _ in range(2):
        offsets.settle(first)
    assert offsets.safe == (second if second > max(4, first) else max(5, first + 1))
