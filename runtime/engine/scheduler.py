"""Which tokens of which sequences the next step computes: continuous batching with a token budget.

Sequences join and leave between any two steps (iteration-level scheduling, Orca, OSDI 2022), and a long prompt is
computed in chunks beside the running ones (Sarathi-Serve, arXiv:2403.02310).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from runtime.engine.sequence import Row, Sampled, Sequence
from runtime.engine.slots import BlockPool
from runtime.engine.speculation import Drafter
from runtime.errors import ServiceError
from runtime.types import FinishReason


@dataclass(slots=True)
class Plan:
    """One step.

    Args:
        rows: what to compute; may be empty, and then there is nothing to run.
        copies: (source, target) blocks to copy before that, in this order.
        admitted: sequences that left the queue.
    """

    rows: list[Row]
    copies: list[tuple[int, int]] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What a step gave one sequence.

    Args:
        sequence: whose; its tokens have been extended already.
        kept: its new tokens, at least one unless it failed.
        reason: why it ended, if it did. Stop strings are found elsewhere.
        error: why it failed, if it did. It has left the scheduler then, as it has with a reason.
    """

    sequence: Sequence
    kept: list[Sampled]
    reason: FinishReason | None = None
    error: ServiceError | None = None


class Scheduler:
    """The queue and the running sequences. One thread calls it, ``cancel`` aside.

    Every running sequence that awaits its next token is in every step. What is left of the budget goes to prompts, in
    the order of their arrival, and then to forced tokens. A sequence is admitted when the pool has all blocks that it
    may ever need; the first in the queue waits for that and the others wait behind it, so nobody starves.

    Args:
        pool: the KV blocks.
        max_rows: sequences that run at once, at most ``max_tokens``.
        max_tokens: most tokens of a step.
        token_budget: tokens of a step in which some sequence awaits its next token, so that a long prompt does not
            keep it waiting.
        eos: ids that end a sequence.
        speculate: tokens to guess at most, per sequence and step; 0 for none.
        speculate_rows: guess only while no more sequences run than these, because only then are guesses cheap.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_rows: int,
        max_tokens: int,
        token_budget: int,
        eos: frozenset[int],
        speculate: int = 0,
        speculate_rows: int = 1,
    ) -> None:
        if not 1 <= max_rows <= max_tokens:
            raise ValueError(f"{max_rows} rows do not fit a step of {max_tokens} tokens")
        self.drafted = 0  # tokens guessed
        self.accepted = 0  # of those, tokens that were right, each of which saved a step
        self._pool = pool
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._token_budget = min(token_budget, max_tokens)
        self._eos = eos
        self._banned = tuple(sorted(eos))
        self._speculate = speculate
        self._speculate_rows = speculate_rows
        self.reset()

    def reset(self) -> None:
        """Forget every sequence and everything cached, after the runner was started anew."""
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # admitted, in order of arrival
        self._drafters: dict[Sequence, Drafter] = {}
        self._cancelled = False  # whether some sequence was
        self._full = False  # whether the first in the queue waits for blocks
        self._pool.reset()

    @property
    def running(self) -> int:
        """Sequences admitted."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks that running sequences hold, 0 to 1."""
        return self._pool.used / self._pool.blocks

    @property
    def kv_touched(self) -> int:
        """KV blocks whose memory has been taken up."""
        return self._pool.touched

    @property
    def busy(self) -> bool:
        """Whether ``schedule`` has anything to do."""
        return bool(self._running or self._waiting)

    def fits(self, sequence: Sequence) -> bool:
        """Whether a sequence could run if it were alone."""
        return self._pool.needed(sequence) <= self._pool.blocks

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. A leader comes before its followers, and those right behind it.

        Raises:
            ValueError: it does not fit, and would block the queue for ever.
        """
        if not self.fits(sequence):
            raise ValueError(f"{sequence.capacity} positions do not fit the KV cache")
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence, wherever it is: the next ``schedule`` takes its blocks back. Any thread may call this."""
        sequence.cancelled = True
        self._cancelled = True

    def schedule(self) -> Plan:
        """Choose the next step. Every plan is run and committed before the next one is made."""
        if self._cancelled:
            self._cancelled = False  # before the look, so that a later call is seen next time
            self._end([s for s in (*self._running, *self._waiting) if s.cancelled])
        rows: list[Row] = []
        plan = Plan(rows)
        prompt: Sequence | None = None  # the one that is half computed: it took all the room there was
        for sequence in self._running:
            if len(sequence.tokens) - sequence.computed > 1:
                prompt = sequence
            else:
                rows.append(self._row(sequence, 1))
        decoding = len(rows)
        room = self._max_tokens - decoding
        if decoding:
            room = min(room, max(1, self._token_budget - decoding))  # a prompt gets on, however many decode
        if prompt is not None:
            rows.append(self._row(prompt, room))
            room -= len(rows[-1].token_ids)
        while room and self._waiting and len(self._running) < self._max_rows and not self._full:
            sequence = self._waiting[0]
            if sequence.leader is not None and not sequence.leader.generated:
                break  # their prompt is computed in this step
            if not self._pool.reserve(sequence):
                self._full = True
                break
            if sequence.leader is not None:
                self._follow(sequence, sequence.leader, plan)
            self._running.append(self._waiting.popleft())
            plan.admitted.append(sequence)
            rows.append(self._row(sequence, room))
            room -= len(rows[-1].token_ids)
        self._force(rows, min(room, self._token_budget))
        if self._speculate and 0 < len(rows) == decoding <= self._speculate_rows:
            self._draft(rows)
        return plan

    def commit(self, rows: Items[Row], results: Items[list[Sampled] | ServiceError]) -> list[Outcome]:
        """Take over what a step gave.

        Args:
            rows: of the plan.
            results: of the runner, one per row.

        Returns:
            For each sequence that has new tokens or failed, and was not cancelled meanwhile, what it got.
        """
        outcomes: list[Outcome] = []
        ended: list[Sequence] = []
        failed: list[Sequence] = []
        size = self._pool.block_tokens
        for row, result in zip(rows, results, strict=True):
            sequence = row.sequence
            if sequence.cancelled:
                continue
            if isinstance(result, ServiceError):
                outcomes.append(Outcome(sequence, [], error=result))
                failed.append(sequence)
                continue
            if row.samples:
                outcome = self._keep(row, result)
                outcomes.append(outcome)
                sequence.computed = len(sequence.tokens) - 1
                if outcome.reason is not None:
                    ended.append(sequence)
            else:
                sequence.computed = row.start + len(row.token_ids)
            if sequence.computed >= (sequence.shareable + 1) * size:
                self._pool.publish(sequence)
        if failed:
            self._end(failed, keep=False)
        if ended:
            self._end(ended)
        return outcomes

    def _keep(self, row: Row, choices: list[Sampled]) -> Outcome:
        """Extend a sequence by the choices that hold: up to the first draft that is wrong, or its end."""
        sequence, params = row.sequence, row.sequence.params
        tokens, limit = sequence.tokens, len(sequence.prompt) + params.max_new_tokens
        drafts = row.token_ids[len(row.token_ids) - row.drafts :]
        outcome = Outcome(sequence, [])
        for choice, draft in zip(choices, (*drafts, None), strict=False):  # none behind one that failed
            tokens.append(choice.id)
            outcome.kept.append(choice)
            if choice.id in self._eos and sequence.generated > len(params.forced):
                outcome.reason = "stop"
            elif len(tokens) >= limit:
                outcome.reason = "length"
            if outcome.reason is not None or choice.id != draft:
                break
        if sequence.penalized:
            sequence.counts.update(choice.id for choice in outcome.kept)
        drafter = self._drafters.get(sequence)
        if row.drafts and drafter is not None:  # else they were forced, and no guesses
            accepted = len(outcome.kept) - 1
            self.drafted += row.drafts
            self.accepted += accepted
            drafter.learn(row.drafts, accepted)
        return outcome

    def _row(self, sequence: Sequence, room: int) -> Row:
        """As many of a sequence's tokens that are not computed yet as there is room for."""
        start, tokens, params = sequence.computed, sequence.tokens, sequence.params
        chunk = tokens[start : start + room]
        if start + len(chunk) < len(tokens):
            return Row(sequence, start, chunk, samples=0)
        early = len(params.forced) <= sequence.generated < params.min_new_tokens
        return Row(sequence, start, chunk, banned=self._banned if early else ())

    def _follow(self, follower: Sequence, leader: Sequence, plan: Plan) -> None:
        """Start a follower behind the prompt that its leader has computed: all but its last token is in the cache."""
        if follower.computed < len(follower.prompt) - 1:  # a part of a block, on which the two go on differently
            index = follower.computed // self._pool.block_tokens
            plan.copies.append((leader.blocks[index], follower.blocks[index]))
            follower.computed = len(follower.prompt) - 1

    def _end(self, ended: list[Sequence], *, keep: bool = True) -> None:
        """Take sequences out, wherever they are, and their blocks back."""
        gone = set(ended)
        self._running = [s for s in self._running if s not in gone]
        if any(s in gone for s in self._waiting):
            self._waiting = deque(s for s in self._waiting if s not in gone)
        for sequence in ended:
            if sequence.params.n > 1:
                self._succeed(sequence)
            self._pool.release(sequence, keep=keep)
            self._drafters.pop(sequence, None)
        self._full = False

    def _succeed(self, leader: Sequence) -> None:
        """Let the followers in the queue do without a leader that ended. If it has not computed their prompt, the next
        of them leads the others; else they find it in the prefix cache.
        """
        heir: Sequence | None = None
        for sequence in self._waiting:
            if sequence.leader is leader:
                sequence.leader = heir
                if heir is None and not leader.generated:
                    heir = sequence

    def _force(self, rows: list[Row], room: int) -> None:
        """Append forced tokens to rows that await them, without waiting for each: the model has no say in them.

        The last one is not fed but chosen, so that a row's choices are all forced or all free.
        """
        for row in rows:
            if not (row.samples and row.sequence.params.forced):
                continue
            drafts = row.sequence.forced[:-1][:room]
            row.token_ids += drafts
            row.drafts = len(drafts)
            row.samples += len(drafts)
            room -= len(drafts)

    def _draft(self, rows: list[Row]) -> None:
        """Append guesses to rows that await their next token."""
        room = self._max_tokens - sum(len(row.token_ids) for row in rows)
        for row in rows:
            sequence, params = row.sequence, row.sequence.params
            left = params.max_new_tokens - sequence.generated
            if row.banned:  # for all choices of a row or for none
                left = min(left, params.min_new_tokens - sequence.generated)
            limit = min(left - 1, self._speculate, room)
            if sequence.penalized or sequence.forced or limit < 1:
                continue
            drafter = self._drafters.get(sequence)
            if drafter is None:
                drafter = self._drafters[sequence] = Drafter(self._speculate)
            drafts = drafter.draft(sequence.tokens, limit)
            row.token_ids += drafts
            row.drafts = len(drafts)
            row.samples += len(drafts)
            room -= len(drafts)
