"""Which sequences have a place in the batch: who is let in when, and who gives way."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from runtime.engine.block_pool import BlockPool
from runtime.engine.request_queue import RequestQueue
from runtime.engine.sequence import Sequence


@dataclass(slots=True)
class SchedulingChanges:
    """What changed before a step.

    Args:
        copies: (source, target) blocks to copy before it, in this order.
        preempted: sequences that went back to the queue.
        admitted: sequences that left the queue, after those had gone there.
    """

    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)


class Admission:
    """The queue and the running sequences.

    A sequence is admitted when there is a row for it and the pool has all blocks that it may ever need. The first in
    the queue waits for that and the others of its kind wait behind it, so nobody starves.

    Queued sequences (see ``Job``) are admitted when no online one waits, and an online one that lacks a row or blocks
    takes those of queued ones, youngest first: they go back to the head of their queue with the tokens they have, and
    what they had computed stays in the prefix cache while there is room. They get on even so: while none of them runs,
    the first is overdue after ``waiting.PATIENCE`` online ones, and then nobody is admitted before it; and the oldest
    that runs is never interrupted.

    Args:
        pool: the KV blocks.
        max_rows: sequences that run at once.
    """

    def __init__(self, pool: BlockPool, max_rows: int) -> None:
        self._pool = pool
        self._max_rows = max_rows
        self.reset()

    def reset(self) -> None:
        """Forget every sequence and everything cached."""
        self.waiting = RequestQueue[Sequence]()
        self.running: list[Sequence] = []  # each kind in order of arrival
        self._stuck: Sequence | None = None  # it lacks a row or blocks, and will until somebody ends
        self._pool.reset()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. One whose leader has left the batch does without."""
        leader = sequence.leader
        if leader is not None and (leader.cancelled or (leader.generated and not leader.blocks)):
            sequence.leader = None
        self.waiting.add(sequence, queued=sequence.queued)

    def admit(self, moves: SchedulingChanges, *, queued: bool) -> Sequence | None:
        """Let in the first of a kind, if it is that kind's turn and there is a place.

        Args:
            moves: told of it.
            queued: the kind.
        """
        sequence = self.waiting.first(queued=queued)
        if sequence is None or sequence is self._stuck:
            return None
        leader = sequence.leader
        if leader is not None and not leader.generated:
            return None  # their prompt is being computed
        if not self._place(sequence, moves):
            self._stuck = sequence
            return None
        if leader is not None and sequence.computed < len(sequence.prompt) - 1:
            # All but the prompt's last token is in the cache; behind a part of a block the two go on differently.
            index = sequence.computed // self._pool.block_tokens
            moves.copies.append((leader.blocks[index], sequence.blocks[index]))
            sequence.computed = len(sequence.prompt) - 1
        self.waiting.admitted(queued=queued, starving=not any(s.queued for s in self.running))
        self.running.append(sequence)
        moves.admitted.append(sequence)
        return sequence

    def end(self, ended: Items[Sequence], *, keep: bool = True) -> None:
        """Take sequences out, wherever they are, and their blocks back.

        Args:
            ended: whatever became of them.
            keep: whether what they computed stays cached.
        """
        gone = set(ended)
        self.running = [s for s in self.running if s not in gone]
        self.waiting.drop(gone)
        for sequence in ended:
            self._succeed(sequence)
            self._pool.release(sequence, keep=keep)
        self._stuck = None

    def _place(self, sequence: Sequence, moves: SchedulingChanges) -> bool:
        """Give a sequence a row and its blocks, if there are such or queued ones have them; whether that worked."""
        if len(self.running) < self._max_rows and self._pool.reserve(sequence):
            return True
        victims = [] if sequence.queued else [s for s in self.running if s.queued][1:]
        if not victims or not self._pool.within_reach(sequence, victims):
            return False
        while len(self.running) == self._max_rows or not self._pool.reserve(sequence):
            self._preempt(victims.pop(), moves)
        return True

    def _preempt(self, sequence: Sequence, moves: SchedulingChanges) -> None:
        """Put a queued sequence back, to go on with the tokens that it has."""
        self.running.remove(sequence)
        if sequence.generated:  # else followers wait behind it, as they did
            self._succeed(sequence)
        self._pool.release(sequence)
        sequence.leader, sequence.computed, sequence.preempted = None, 0, True
        self.waiting.put_back(sequence)
        moves.preempted.append(sequence)

    def _succeed(self, leader: Sequence) -> None:
        """Let the followers in the queue do without a leader. If it has not computed their prompt, the next of them
        leads the others; else they find it in the prefix cache.
        """
        if leader.params.n == 1:
            return
        heir: Sequence | None = None
        for sequence in self.waiting:
            if sequence.leader is leader:
                sequence.leader = heir
                if heir is None and not leader.generated:
                    heir = sequence
