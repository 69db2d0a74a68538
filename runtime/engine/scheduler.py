"""Which tokens of which sequences the next step computes: continuous batching with a token budget.

Sequences join and leave between any two steps (iteration-level scheduling, Orca, OSDI 2022), and a long prompt is
computed in chunks beside the running ones (Sarathi-Serve, arXiv:2403.02310).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from runtime.engine.admission import Admission, SchedulingChanges
from runtime.engine.block_pool import BlockPool
from runtime.engine.sequence import Row, Sampled, Sequence
from runtime.engine.speculation import Speculation
from runtime.errors import ServiceError
from runtime.types import FinishReason


@dataclass(slots=True)
class StepPlan(SchedulingChanges):
    """One step.

    Args:
        rows: what to compute; may be empty, and then there is nothing to run.
    """

    rows: list[Row] = field(default_factory=list)


@dataclass(slots=True)
class StepResult:
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
    """Steps for the sequences in the batch, see ``Admission``. One thread calls it, ``cancel`` aside.

    Every running sequence that awaits its next token is in every step. What is left of the budget goes to prompts, in
    the order of their arrival, those of queued sequences last, and then to forced tokens. However many others there
    are, a prompt of either kind that is half computed gets a token of every step.

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
        self.speculation = Speculation(speculate, speculate_rows)
        self.preemptions = 0  # times that a sequence was interrupted
        self._pool = pool
        self._admission = Admission(pool, max_rows)
        self.max_rows = max_rows
        self._max_tokens = max_tokens
        self._token_budget = min(token_budget, max_tokens)
        self._eos = eos
        self._banned = tuple(sorted(eos))
        self._cancelled = False  # whether some sequence was

    def reset(self) -> None:
        """Forget every sequence and everything cached, after the runner was started anew."""
        self._admission.reset()
        self.speculation.reset()

    @property
    def running(self) -> int:
        """Sequences admitted."""
        return len(self._admission.running)

    @property
    def waiting(self) -> int:
        """Sequences that wait, of both kinds."""
        return len(self._admission.waiting)

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
        return bool(self.running or self.waiting)

    def fits(self, sequence: Sequence) -> bool:
        """Whether a sequence could run if it were alone."""
        return self._pool.needed(sequence) <= self._pool.blocks

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. A leader comes before its followers; it may have ended when they come.

        Raises:
            ValueError: it does not fit, and would block the queue for ever.
        """
        if not self.fits(sequence):
            raise ValueError(f"{sequence.capacity} positions do not fit the KV cache")
        self._admission.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence, wherever it is: the next ``schedule`` takes its blocks back. Any thread may call this."""
        sequence.cancelled = True
        self._cancelled = True

    def schedule(self) -> StepPlan:
        """Choose the next step. Every plan is run and committed before the next one is made."""
        admission = self._admission
        if self._cancelled:
            self._cancelled = False  # before the look, so that a later call is seen next time
            self._end([s for s in (*admission.running, *admission.waiting) if s.cancelled])
        plan = StepPlan()
        rows = plan.rows
        prompt: Sequence | None = None  # half computed: it took all the room, so that none of its kind came behind it
        queued: Sequence | None = None  # the same
        for sequence in admission.running:
            if len(sequence.tokens) - sequence.computed == 1:
                rows.append(self._row(sequence, 1))
            elif sequence.queued:
                queued = sequence
            else:
                prompt = sequence
        decoding = len(rows)
        room = self._max_tokens - decoding
        if decoding:
            room = min(room, self._token_budget - decoding)
        # However many decode, a prompt of either kind gets on: there are no more rows than tokens of a step.
        held = int(queued is not None or admission.waiting.first(queued=True) is not None)
        room -= self._prefill(prompt, plan, max(1, room - held), queued=False)
        for sequence in plan.preempted:
            self.preemptions += 1
            self.speculation.forget(sequence)
        if plan.preempted:
            rows[:] = [row for row in rows if row.sequence.blocks]
            queued = queued if queued is not None and queued.blocks else None
        room -= self._prefill(queued, plan, max(held, room), queued=True)
        self._force(rows, max(0, min(room, self._token_budget)))
        if prompt is queued is None and not plan.admitted:
            self.speculation.draft(rows, self._max_tokens)
        return plan

    def commit(self, rows: Items[Row], results: Items[list[Sampled] | ServiceError]) -> list[StepResult]:
        """Take over what a step gave.

        Args:
            rows: of the plan.
            results: of the runner, one per row.

        Returns:
            For each sequence that has new tokens or failed, and was not cancelled meanwhile, what it got.
        """
        outcomes: list[StepResult] = []
        ended: list[Sequence] = []
        failed: list[Sequence] = []
        size = self._pool.block_tokens
        for row, result in zip(rows, results, strict=True):
            sequence = row.sequence
            if sequence.cancelled:
                continue
            if isinstance(result, ServiceError):
                outcomes.append(StepResult(sequence, [], error=result))
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

    def _keep(self, row: Row, choices: list[Sampled]) -> StepResult:
        """Extend a sequence by the choices that hold: up to the first draft that is wrong, or its end."""
        sequence, params = row.sequence, row.sequence.params
        tokens, limit = sequence.tokens, len(sequence.prompt) + params.max_new_tokens
        drafts = row.token_ids[len(row.token_ids) - row.drafts :]
        outcome = StepResult(sequence, [])
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
        self.speculation.learn(row, len(outcome.kept))
        return outcome

    def _prefill(self, prompt: Sequence | None, plan: StepPlan, room: int, *, queued: bool) -> int:
        """Give prompts of one kind a share of the step: the one that is half computed, and then those that wait.

        Returns:
            How many tokens of it.
        """
        left = room
        if prompt is not None:
            plan.rows.append(self._row(prompt, left))
            left -= len(plan.rows[-1].token_ids)
        while left and (sequence := self._admission.admit(plan, queued=queued)) is not None:
            plan.rows.append(self._row(sequence, left))
            left -= len(plan.rows[-1].token_ids)
        return room - left

    def _row(self, sequence: Sequence, room: int) -> Row:
        """As many of a sequence's tokens that are not computed yet as there is room for."""
        start, tokens, params = sequence.computed, sequence.tokens, sequence.params
        chunk = tokens[start : start + room]
        if start + len(chunk) < len(tokens):
            return Row(sequence, start, chunk, samples=0)
        early = len(params.forced) <= sequence.generated < params.min_new_tokens
        return Row(sequence, start, chunk, banned=self._banned if early else ())

    def _end(self, ended: list[Sequence], *, keep: bool = True) -> None:
        self._admission.end(ended, keep=keep)
        for sequence in ended:
            self.speculation.forget(sequence)

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
