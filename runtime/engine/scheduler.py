"""The scheduler: chooses the tokens of each step by continuous batching with a token budget.

Sequences join and leave the batch between any two steps (iteration-level scheduling, Orca, OSDI 2022), and a long
prompt is computed in chunks alongside running sequences (chunked prefill, Sarathi-Serve, arXiv:2403.02310).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from runtime.engine.admission import Admission, SchedulingChanges
from runtime.engine.block_pool import BlockPool
from runtime.engine.sequence import Row, Sampled, Sequence
from runtime.engine.speculation import Speculation
from runtime.engine.step_result import StepResult, advance_grammar, append_sampled
from runtime.errors import ServiceError

MAX_PAUSES = 16
"""Maximum number of steps in a row without background sequences, while interactive prompts are computed."""


@dataclass(slots=True)
class StepPlan(SchedulingChanges):
    """The scheduler's output for one step.

    Args:
        rows: the rows to compute; empty if there is nothing to run.
        interruptible: whether an interactive request may interrupt the step, most of which is background work.
        resumed: whether this is the step that was interrupted last, which goes on.
    """

    rows: list[Row] = field(default_factory=list)
    interruptible: bool = False
    resumed: bool = False


class Scheduler:
    """Plans steps for the running sequences and applies their results. Only ``cancel`` is thread-safe.

    Every decoding interactive sequence is in every step. The rest of the token budget goes to prefills in order of
    arrival, interactive ones before background ones, and then to forced tokens. While interactive prompts are computed,
    background sequences pause, so that the first token does not wait for theirs; after ``MAX_PAUSES`` steps they are in
    one. For the same reason an interactive request may interrupt a step that is mostly background work, which goes on
    behind the prompt. If interactive sequences decode in it, it goes on behind the first chunk of the prompt, so that
    their streams do not wait for all of it. But for the pauses, every decoding background sequence is in every step
    too, and a partially computed prompt of either kind gets at least one token of it, regardless of the load.
    ``Admission`` decides which sequences run.

    Args:
        pool: the KV block pool.
        max_rows: maximum number of running sequences, at most ``max_tokens``.
        max_tokens: maximum tokens per step.
        token_budget: maximum tokens of a step that contains a decoding sequence; limits the latency that a long prefill
            adds to decoding.
        eos: the model's token ids that end a sequence, see ``SamplingParams.end_ids``.
        speculate: maximum draft tokens per sequence and step; 0 turns speculation off.
        speculate_rows: draft only while at most this many sequences run, because only then are drafts cheap.
        short_context: number of tokens above which a text uses other rotations, see ``DecoderConfig``; 0 for none.
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
        short_context: int = 0,
    ) -> None:
        if not 1 <= max_rows <= max_tokens:
            raise ValueError(f"{max_rows} rows do not fit a step of {max_tokens} tokens")
        self.speculation = Speculation(speculate, speculate_rows, short_context)
        self.preemptions = 0  # number of preemptions
        self._pool = pool
        self._admission = Admission(pool, max_rows)
        self.max_rows = max_rows
        self._max_tokens = max_tokens
        self._token_budget = min(token_budget, max_tokens)
        self._short_context = short_context
        self.eos = eos
        self._cancelled = False  # whether a sequence was cancelled since the last step
        self._interrupted: StepPlan | None = None  # the step that is to go on
        self._delayed = False  # whether other steps ran since it was interrupted
        self._pauses = 0  # steps without background sequences since the last one with them

    def reset(self) -> None:
        """Drop all sequences and the prefix cache, after the engine thread was restarted. The counters are kept."""
        self._admission.reset()
        self._interrupted = None
        self.speculation.reset()

    @property
    def running(self) -> int:
        """Number of running sequences."""
        return len(self._admission.running)

    @property
    def waiting(self) -> int:
        """Number of waiting sequences, interactive and background."""
        return len(self._admission.waiting)

    @property
    def kv_usage(self) -> float:
        """Fraction of the KV blocks that running sequences hold, 0 to 1."""
        return self._pool.used / self._pool.blocks

    @property
    def kv_touched(self) -> int:
        """Number of KV blocks whose memory may be resident, see ``BlockPool``."""
        return self._pool.touched

    @property
    def busy(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.running or self.waiting)

    def fits(self, sequence: Sequence) -> bool:
        """Whether a sequence fits the KV cache when it runs alone."""
        return self._pool.required_blocks(sequence) <= self._pool.blocks

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Add a leader before its followers; it may have ended when they are added.

        Raises:
            ValueError: the sequence does not fit the KV cache and would block the queue forever.
        """
        if not self.fits(sequence):
            raise ValueError(f"{sequence.capacity} positions do not fit the KV cache")
        sequence.long_text = self._is_long(sequence)
        sequence.end_ids = sequence.params.end_ids(self.eos)
        self._admission.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Cancel a running or waiting sequence; the next ``schedule`` frees its blocks. Any thread may call this."""
        sequence.cancelled = True
        self._cancelled = True

    def schedule(self) -> StepPlan:
        """Plan the next step. Every plan must be run, and committed or ``interrupted``, before the next call."""
        admission = self._admission
        if self._cancelled:
            self._cancelled = False  # reset before the scan, so that a concurrent ``cancel`` is seen by the next step
            self._remove([s for s in (*admission.running, *admission.waiting) if s.cancelled])
        plan = StepPlan()
        for sequence in [s for s in reversed(admission.running) if not s.long_text and self._is_long(s)]:
            admission.recompute(sequence, plan)
        admission.grow(plan)
        rows = plan.rows
        interrupted = self._interrupted_step()
        held = set() if interrupted is None else {row.sequence for row in interrupted.rows}
        streams = sum(not sequence.background for sequence in held)  # that wait for the interrupted step
        # Partly computed prompts, in order of admission: the one that used up the budget of its step, and all of a step
        # that was interrupted and does not go on.
        interactive: list[Sequence] = []
        background: list[Sequence] = []
        pausing: list[Row] = []  # of decoding background sequences
        for sequence in admission.running:
            if sequence in held:
                continue
            if len(sequence.tokens) - sequence.computed == 1:
                (pausing if sequence.background else rows).append(self._row(sequence, 1))
            else:
                (background if sequence.background else interactive).append(sequence)
        # A prompt of either kind gets a token however many sequences decode: rows never outnumber tokens of a step.
        reserved = int(bool(background) or admission.waiting.peek(background=True) is not None)
        prompts = bool(interactive) or admission.waiting.peek(background=False) is not None
        pause = self._pauses < MAX_PAUSES and prompts and not (streams and self._delayed)
        if not pause:
            rows += pausing
        decoding = len(rows)
        budget = self._budget(decoding + streams)
        used = 0
        if pause or interrupted is None:
            tokens = max(1, budget - (0 if pause else reserved))
            used = self._schedule_prefills(interactive, plan, tokens, background=False)
        for sequence in plan.preempted:
            self.preemptions += 1
            self.speculation.remove(sequence)
        if pause and used and (pausing or reserved or held):
            self._pauses += 1
            self._delayed = True
            rows[:] = [row for row in rows if row.sequence.blocks]
            return plan
        if interrupted is not None:
            self._interrupted = None
            plan.rows, plan.resumed = interrupted.rows, True
            plan.interruptible = not streams and self._may_be_interrupted()
            return plan
        if pause and not used:  # no interactive prompt can be computed now
            rows += pausing
            decoding = len(rows)
            budget = self._budget(decoding)
        budget -= used
        if plan.preempted:
            rows[:] = [row for row in rows if row.sequence.blocks]
            background = [sequence for sequence in background if sequence.blocks]
        budget -= self._schedule_prefills(background, plan, max(reserved, budget), background=True)
        self._add_forced_tokens(rows, max(0, min(budget, self._token_budget)))
        if not interactive and not background and not plan.admitted:
            self.speculation.draft(rows, self._max_tokens, self._feed_ahead)
        if not used and self._may_be_interrupted():
            tokens = sum(len(row.token_ids) for row in rows)
            plan.interruptible = 2 * sum(len(row.token_ids) for row in rows if row.sequence.background) > tokens
        return plan

    def _budget(self, decoding: int) -> int:
        """Return the number of tokens that a step may have beside this number of decoding sequences."""
        budget = self._max_tokens - decoding
        return min(budget, self._token_budget - decoding) if decoding else budget

    def _may_be_interrupted(self) -> bool:
        return self._pauses < MAX_PAUSES and not self._admission.waiting.interactive

    def _interrupted_step(self) -> StepPlan | None:
        """Return the step that is to go on. If a sequence has left it, there is none: its rows are planned again."""
        step = self._interrupted
        if step is not None and not all(row.sequence.blocks for row in step.rows):
            self._interrupted = step = None
        return step

    def interrupted(self, plan: StepPlan) -> None:
        """Note that an ``interruptible`` plan was interrupted; it goes on behind the prompt of what came."""
        self._interrupted = plan
        self._delayed = False

    def commit(self, rows: Items[Row], outputs: Items[list[Sampled] | ServiceError]) -> list[StepResult]:
        """Apply the outputs of a step.

        Args:
            rows: the plan's rows.
            outputs: the runner's outputs, one per row.

        Returns:
            One result per sequence that has new tokens or failed, without those cancelled in the meantime.
        """
        if any(row.sequence.background for row in rows):
            self._pauses = 0
        results: list[StepResult] = []
        ended: list[Sequence] = []
        failed: list[Sequence] = []
        size = self._pool.block_tokens
        for row, output in zip(rows, outputs, strict=True):
            sequence = row.sequence
            if sequence.cancelled:
                continue
            result = None
            if not isinstance(output, ServiceError) and row.samples:
                try:
                    result = append_sampled(row, output)
                    self.speculation.update(row, len(result.tokens))
                    advance_grammar(result, self.eos)
                except ServiceError as error:  # its grammar became too complex
                    output = error
            if isinstance(output, ServiceError):
                results.append(StepResult(sequence, [], error=output))
                failed.append(sequence)
                continue
            if result is not None:
                results.append(result)
                if result.reason is not None:
                    ended.append(sequence)
            else:
                sequence.computed = row.start + len(row.token_ids)
            if sequence.computed >= (sequence.num_cached_blocks + 1) * size:
                self._pool.cache_full_blocks(sequence)
        if failed:
            self._remove(failed, keep=False)
        if ended:
            self._remove(ended)
        return results

    def _is_long(self, sequence: Sequence) -> bool:
        return 0 < self._short_context < len(sequence.tokens)

    def _schedule_prefills(self, prompts: list[Sequence], plan: StepPlan, budget: int, *, background: bool) -> int:
        """Schedule prefills of one kind: first the partly computed prompts, then newly admitted ones.

        Args:
            prompts: the partly computed prompts.
            plan: the plan to add rows to.
            budget: maximum number of tokens.
            background: whether to admit background sequences or interactive ones.

        Returns:
            The number of tokens used.
        """
        remaining = budget
        for prompt in prompts:
            if remaining:
                plan.rows.append(self._row(prompt, remaining))
                remaining -= len(plan.rows[-1].token_ids)
        while remaining and (sequence := self._admission.admit(plan, background=background)) is not None:
            plan.rows.append(self._row(sequence, remaining))
            remaining -= len(plan.rows[-1].token_ids)
        return budget - remaining

    def _row(self, sequence: Sequence, max_tokens: int) -> Row:
        """Make a row of a sequence's next uncomputed tokens, at most ``max_tokens`` of them."""
        start, tokens, params = sequence.computed, sequence.tokens, sequence.params
        chunk = tokens[start : start + max_tokens]
        if start + len(chunk) < len(tokens):
            return Row(sequence, start, chunk, samples=0)
        ban_end_tokens = sequence.grammar is None and len(params.forced) <= sequence.generated < params.min_new_tokens
        banned = set(sequence.end_ids) if ban_end_tokens else set[int]()
        if sequence.limits is not None and not sequence.forced:
            banned |= sequence.limits.banned(tokens, sequence.generated)
        return Row(sequence, start, chunk, banned=tuple(sorted(banned)))

    def _remove(self, sequences: list[Sequence], *, keep: bool = True) -> None:
        self._admission.remove(sequences, keep=keep)
        for sequence in sequences:
            self.speculation.remove(sequence)

    def _feed_ahead(self, sequence: Sequence, count: int) -> int:
        """Allocate blocks for tokens that are fed ahead; return for how many of them there are blocks."""
        length = len(sequence.tokens)
        return min(count, self._pool.extend(sequence, length + count) - length)

    def _add_forced_tokens(self, rows: list[Row], budget: int) -> None:
        """Append forced tokens as drafts to rows that sample, several per step, since the model does not choose them.

        The last forced token is sampled instead of fed, so that a row's choices are either all forced or all free;
        behind tokens that a grammar forces, the next one is sampled in the same step, unless a penalty counts them.
        """
        for row in rows:
            sequence = row.sequence
            forced = sequence.forced
            if not (row.samples and forced):
                continue
            count = len(forced) - (sequence.grammar is None or sequence.penalized)
            remaining = sequence.params.max_new_tokens - sequence.generated
            count = min(count, budget, remaining - 1, self.speculation.room(sequence))
            drafts = forced[: self._feed_ahead(sequence, count)]
            row.token_ids += drafts
            row.drafts = row.forced = len(drafts)
            row.samples += len(drafts)
            budget -= len(drafts)
