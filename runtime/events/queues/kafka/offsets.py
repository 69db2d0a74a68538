"""Which messages of a Kafka partition are settled, where several are worked on at once."""

from __future__ import annotations


class Offsets:
    """Of one partition, for as long as it is this worker's.

    Its group keeps one number: the offset to go on from. All before it count as settled, so it must not be more than
    that of the first message that is not.

    Args:
        committed: what the group has; None for nothing yet.
        next: offset of the first message to take.

    ``lost`` is set once the partition is another's.
    """

    def __init__(self, committed: int | None, next: int = 0) -> None:
        self.committed = committed
        self.next = next
        self.lost = False
        self._open: set[int] = set()

    def take(self, offset: int) -> bool:
        """Whether it is new: what was read before is being worked on, or settled."""
        if offset < self.next:
            return False
        self.next = offset + 1  # offsets have gaps: what was compacted away, and marks of transactions
        self._open.add(offset)
        return True

    def settle(self, offset: int) -> None:
        """It need not be delivered any more."""
        self._open.discard(offset)

    @property
    def safe(self) -> int:
        """What the group may go on from."""
        return min(self._open, default=self.next)
