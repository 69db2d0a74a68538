"""Admission of waiting sequences to the batch, and preemption of running ones."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from operator import attrgetter

from runtime.engine.block_pool import BlockPool
from runtime.engine.request_queue import RequestQueue
from runtime.engine.sequence import Sequence


@dataclass(slots=True)
class SchedulingChanges:
    """Changes to the batch before a step.

    Args:
        copies: (source, target) KV blocks to copy before the step, in this order.
        preempted: sequences that were moved back to the queue.
        admitted: sequences that were taken from the queue, after the preemptions.
    """

    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)


class Admission:
    """The waiting queue and the running sequences.

    A sequence is admitted when a row is free and the pool has blocks for the tokens that it has and one more for each
    sequence that may still grow. It gets further blocks as its text grows. If none is available, the sequence that was
    admitted last is preempted, a background one first (see ``Job``): it returns to its queue, in order of arrival,
    with its tokens, and its computed blocks stay in the prefix cache while there is space. It fits again only after
    another one has ended, so no more is computed again than fits the blocks which that one held. The queue is first
    in, first out within each kind: the others wait behind the first. The first admitted sequence is never preempted
    for its blocks, so it ends, and none starves.

    Background sequences are admitted when no interactive one waits. A waiting interactive sequence that lacks a row or
    blocks preempts background ones, youngest first. Background sequences do not starve: while none of them runs, the
    first is overdue after ``request_queue.MAX_BYPASSES`` interactive admissions and is then admitted before all others;
    and the oldest running one is preempted only when a sequence admitted earlier needs its blocks, as if it was
    interactive.

    Args:
        pool: the KV block pool.
        max_rows: maximum number of running sequences.
    """

    def __init__(self, pool: BlockPool, max_rows: int) -> None:
        self._pool = pool
        self._max_rows = max_rows
        self._arrivals = 0  # number of sequences so far
        self.reset()

    def reset(self) -> None:
        """Drop all sequences and the prefix cache."""
        self.waiting = RequestQueue[Sequence]()
        self.running: list[Sequence] = []  # in order of admission
        self._blocked: Sequence | None = None  # lacks a row or blocks until a running sequence ends
        self._pool.reset()

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It is detached from a leader that has already left the batch."""
        leader = sequence.leader
        if leader is not None and (leader.cancelled or (leader.generated and not leader.blocks)):
            sequence.leader = None
        self._arrivals += 1
        sequence.arrival = self._arrivals
        self.waiting.add(sequence, background=sequence.background)

    def admit(self, changes: SchedulingChanges, *, background: bool) -> Sequence | None:
        """Admit the first waiting sequence of a kind, if that kind is next and a row and blocks are available.

        Args:
            changes: receives the changes.
            background: True for background sequences, False for interactive ones.

        Returns:
            The admitted sequence, or None.
        """
        sequence = self.waiting.peek(background=background)
        if sequence is None or sequence is self._blocked:
            return None
        leader = sequence.leader
        if leader is not None and leader.computed < len(leader.prompt) - 1:
            return None  # wait until the leader has computed the shared prompt
        if not self._allocate(sequence, changes):
            self._blocked = sequence
            return None
        if leader is not None and sequence.computed < len(sequence.prompt) - 1:
            # The leader's blocks hold the whole prompt. The partly filled last block is copied, since the two sequences
            # continue differently in it; the prompt's last token is computed again.
            index = sequence.computed // self._pool.block_tokens
            changes.copies.append((leader.blocks[index], sequence.blocks[index]))
            sequence.computed = len(sequence.prompt) - 1
        self.waiting.pop(background=background, starving=not any(s.background for s in self.running))
        self.running.append(sequence)
        changes.admitted.append(sequence)
        return sequence

    def remove(self, sequences: Items[Sequence], *, keep: bool = True) -> None:
        """Remove running or waiting sequences and release their blocks.

        The first waiting follower of a leader that has computed their prompt takes over its row and the prompt's
        blocks, unless interactive work waits for a background row. So the prompt is not computed again, however early
        its sequences end.

        Args:
            sequences: finished, failed or cancelled sequences.
            keep: whether their computed blocks stay in the prefix cache.
        """
        removed = set(sequences)
        self.waiting.remove(removed)
        for sequence in sequences:
            self._promote_follower(sequence, keep=keep)
            self._pool.release(sequence, keep=keep)
        self.running = [s for s in self.running if s not in removed]
        self._blocked = None

    def grow(self, changes: SchedulingChanges) -> None:
        """Allocate a block for each running sequence that has filled its last one, preempting others if needed."""
        for sequence in [*self.running]:
            # A preempted one has no blocks, also if it was preempted for itself.
            while sequence.blocks and self._pool.extend(sequence, len(sequence.tokens)) < len(sequence.tokens):
                background = [s for s in self.running if s.background]
                self._preempt(background[-1] if len(background) > 1 else self.running[-1], changes)

    def recompute(self, sequence: Sequence, changes: SchedulingChanges) -> None:
        """Preempt a sequence that has become a long text: its keys must be computed again, rotated differently."""
        self._preempt(sequence, changes)
        sequence.long_text = True

    def _allocate(self, sequence: Sequence, changes: SchedulingChanges) -> bool:
        """Allocate a row and blocks, preempting background sequences if needed. Returns whether that succeeded."""
        if len(self.running) < self._max_rows and self._pool.reserve(sequence, self._spare(sequence)):
            return True
        victims = [] if sequence.background else [s for s in self.running if s.background][1:]
        if not victims or not self._pool.can_reserve_after_release(sequence, victims, self._spare(sequence, victims)):
            return False
        while len(self.running) == self._max_rows or not self._pool.reserve(sequence, self._spare(sequence)):
            self._preempt(victims.pop(), changes)
        return True

    def _spare(self, sequence: Sequence, victims: Items[Sequence] = ()) -> int:
        """Return the number of sequences that may grow after an admission: one block stays available for each."""
        return sum(map(self._pool.grows, (sequence, *self.running))) - sum(map(self._pool.grows, victims))

    def _preempt(self, sequence: Sequence, changes: SchedulingChanges) -> None:
        """Preempt a sequence: release its blocks and requeue it with the tokens that it has."""
        self.running.remove(sequence)
        if sequence.generated:  # otherwise its followers keep waiting for it
            self._promote_follower(sequence, keep=False)
        self._pool.release(sequence)
        sequence.leader, sequence.computed = None, 0
        sequence.preemptions += 1
        self.waiting.put_back(sequence, background=sequence.background, arrival=attrgetter("arrival"))
        self._blocked = None
        changes.preempted.append(sequence)

    def _promote_follower(self, leader: Sequence, *, keep: bool) -> None:
        """Detach the waiting followers of a leader that leaves the batch. The first becomes the leader of the others if
        it takes over the prompt's blocks, or if nothing was generated; else they find the prompt in the prefix cache.

        Args:
            leader: the sequence that leaves.
            keep: whether a follower may take over its blocks.
        """
        if leader.params.n == 1:
            return
        followers = [sequence for sequence in self.waiting if sequence.leader is leader]
        if not followers:
            return
        first = followers[0]
        computed = bool(leader.blocks) and leader.computed >= len(leader.prompt) - 1
        turn = not (leader.background and self.waiting.interactive)  # of background work
        taken_over = keep and turn and computed and self._pool.hand_over(leader, first)
        if taken_over:
            self.waiting.remove({first})
            self.running.insert(self.running.index(leader), first)  # it is as old as the leader
        for sequence in followers:
            sequence.leader = first if taken_over or not leader.generated else None
        first.leader = None
