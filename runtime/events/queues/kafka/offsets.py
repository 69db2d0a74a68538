"""Tracks which messages of a Kafka partition are settled while several are processed concurrently."""

from __future__ import annotations


class Offsets:
    """The offsets of one partition, for as long as it is assigned to this worker.

    A consumer group commits one offset per partition, and all messages before it count as settled. So the committed
    offset must not be greater than that of the first unsettled message. ``lost`` is set once the partition is no longer
    assigned to this worker, or was assigned to another in between.

    Args:
        committed: the group's committed offset; None if there is none yet.
        next: the offset of the first message to take.
    """

    def __init__(self, committed: int | None, next: int = 0) -> None:
        self.committed = committed
        self.next = next
        self.lost = False
        self._open: set[int] = set()

    def take(self, offset: int) -> bool:
        """Start a message, and return whether it is new: earlier offsets are in progress or settled."""
        if offset < self.next:
            return False
        self.next = offset + 1  # offsets have gaps: compacted messages and transaction markers
        self._open.add(offset)
        return True

    def settle(self, offset: int) -> None:
        """Mark a message as settled."""
        self._open.discard(offset)

    @property
    def safe(self) -> int:
        """The offset that may be committed: that of the first unsettled message, or else the next one."""
        return min(self._open, default=self.next)
