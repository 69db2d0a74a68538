"""runtime.engine.scheduler: who computes what in which step, on a runner that knows what its cache must hold."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime.engine.block_pool import BlockPool
from runtime.engine.request_queue import MAX_BYPASSES
from runtime.engine.scheduler import MAX_PAUSES, Scheduler, StepPlan
from runtime.engine.sequence import Row, Sampled, Sequence
from runtime.engine.step_result import StepResult
from runtime.errors import InternalError, ServiceError
from runtime.types import SamplingParams
from tests.support.fakes import FakeRunner, check_pool, fake_choice, fake_text

EOS = frozenset({7, 8})
PARAMS = SamplingParams(max_new_tokens=4, temperature=0)


def group(
    prompt: tuple[int, ...], params: SamplingParams = PARAMS, seed: int = 0, *, background: bool = False
) -> list[Sequence]:
    """The sequences of one prompt."""
    first = Sequence(prompt, params, seed, background=background)
    return [first, *(Sequence(prompt, params, seed, number, first, background) for number in range(1, params.n))]


def prompt(length: int, first: int = 0) -> tuple[int, ...]:
    return tuple(20 + (first * 100) + i for i in range(length))


@dataclass
class Machine:
    """A scheduler on a fake runner, whose books are checked in every step."""

    runner: FakeRunner
    scheduler: Scheduler
    pool: BlockPool
    budget: int
    sequences: list[Sequence] = field(default_factory=list)
    ended: dict[Sequence, str | ServiceError] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)
    given: dict[Sequence, list[Sampled]] = field(default_factory=dict)
    scheduled: list[Sequence] = field(default_factory=list)  # those that ran in the last step
    passed: int = 0  # interactive sequences that were admitted since a background one was, and none of those runs

    def add(self, sequences: list[Sequence]) -> list[Sequence]:
        self.sequences += sequences
        for sequence in sequences:
            self.scheduler.add(sequence)
        return sequences

    def step(self, between: Callable[[], None] = lambda: None, *, interrupt: bool = False) -> StepPlan:
        """One step; ``between`` runs while the runner does. If it may be interrupted, ``interrupt`` does so."""
        before, short = self.running, [s for s in self.running if not s.long_text]
        held = {s: len(s.blocks) for s in before}
        plan = self.scheduler.schedule()
        self.plans.append(plan)
        self.scheduled = self.running
        self.check()
        recomputed = {s for s in short if s.long_text}
        assert recomputed <= set(plan.preempted)
        self.check_turns(plan, [s for s in before if not s.cancelled and s not in recomputed], held)
        if plan.rows:
            for source, target in plan.copies:
                self.runner.copy_block(source, target)
            results = self.runner.step(plan.rows, resume=plan.resumed)
            between()
            if plan.interruptible and interrupt:
                self.scheduler.interrupted(plan)
                return plan
            for result in self.scheduler.commit(plan.rows, results):
                self.note(result)
            self.check()
        return plan

    def note(self, result: StepResult) -> None:
        sequence = result.sequence
        assert sequence not in self.ended
        assert not sequence.cancelled
        self.given.setdefault(sequence, []).extend(result.tokens)
        assert [sampled.id for sampled in result.tokens] == sequence.tokens[len(sequence.tokens) - len(result.tokens) :]
        assert bool(result.tokens) == (result.error is None)
        if end := result.reason or result.error:
            self.ended[sequence] = end

    def check(self) -> None:
        check_pool(self.pool, self.sequences)
        assert not any(sequence.blocks for sequence in self.ended)

    @property
    def running(self) -> list[Sequence]:
        return list(self.scheduler._admission.running)

    def check_turns(self, plan: StepPlan, running: list[Sequence], held: dict[Sequence, int]) -> None:
        """Who gave way and who was let in, by the rules of ``Admission``.

        Args:
            running: before the step, in order of admission, without texts that became long.
            held: each one's number of blocks before the step.
        """
        preempted = [s for s in plan.preempted if s in running]
        full = [s for s in running if len(s.tokens) > held[s] * self.pool.block_tokens]
        for sequence in preempted:
            assert sequence is not running[0], "the first admitted gives way"
            background = [s for s in running if s.background]
            last = background[-1] if len(background) > 1 else running[-1]
            assert sequence is last, "not the last admitted, background work first"
            running.remove(sequence)
        assert not preempted or full or any(not s.background for s in plan.admitted), "somebody gave way for nobody"
        waiting = self.scheduler._admission.waiting
        for sequence in plan.admitted:
            if sequence.background:
                assert self.passed >= MAX_BYPASSES or not waiting.interactive, (
                    "background work goes before interactive work"
                )
                self.passed = 0
            elif not any(s.background for s in running):
                self.passed += 1
            running.append(sequence)
        for queue in (waiting.interactive, waiting.background):
            assert list(queue) == sorted(queue, key=self.sequences.index), "not in order of arrival"

    def finish(self) -> None:
        """Run until nothing is left to do; fails when that does not come."""
        for _ in range(2000):
            if not self.scheduler.busy:
                assert self.pool.used == 0
                assert not self.scheduler.speculation._drafters
                assert self.scheduler.running == self.scheduler.waiting == self.scheduler.kv_usage == 0
                return
            plan = self.step()
            assert plan.rows or not self.scheduler.busy, "there is work, and nothing is done"
        pytest.fail("it never ends")


def machine(**changes: Any) -> Machine:
    options: dict[str, Any] = {
        "blocks": 64,
        "block_tokens": 4,
        "cache_blocks": 64,
        "max_rows": 8,
        "max_tokens": 32,
        "token_budget": 8,
        "eos": EOS,
        "fail": lambda row: None,
        **changes,
    }
    runner = FakeRunner(
        **{name: options.pop(name) for name in ("blocks", "block_tokens", "fail")},
        max_tokens=options["max_tokens"],
        short_context=options.get("short_context", 0),
    )
    pool = BlockPool(runner.blocks, runner.block_tokens, cache_blocks=options.pop("cache_blocks"))
    return Machine(runner, Scheduler(pool, **options), pool, options["token_budget"])


def fed(plan: StepPlan) -> list[int]:
    """Tokens per row."""
    return [len(row.token_ids) for row in plan.rows]


def expected(sequence: Sequence) -> list[int]:
    return fake_text(sequence, EOS, FakeRunner.vocabulary)


def choices(sequence: Sequence) -> list[Sampled]:
    """What it must be given for the tokens that it has, log-probabilities included."""
    params, found = sequence.params, list[Sampled]()
    for place in range(sequence.generated):
        banned = sorted(EOS) if len(params.forced) <= place < params.min_new_tokens else []
        before = sequence.tokens[: len(sequence.prompt) + place]
        found.append(fake_choice(sequence, before, banned, FakeRunner.vocabulary))
    return found


def generated(sequence: Sequence) -> list[int]:
    return sequence.tokens[len(sequence.prompt) :]


def test_rows_fit_the_runner() -> None:
    """More rows than tokens in a step cannot be scheduled, and are refused at once."""
    with pytest.raises(ValueError, match="33 rows do not fit a step of 32 tokens"):
        machine(max_rows=33)


def test_chunks_are_packed() -> None:
    """With nobody waiting for a next token, prompts fill the whole step, several in one, the last one cut."""
    m = machine()
    for first in range(3):
        m.add(group(prompt(20, first)))
    assert fed(m.step()) == [20, 12]
    assert fed(m.step()) == [1, 7]  # the budget of 8, now that one decodes
    assert fed(m.step()) == [1, 1, 6]  # the second prompt's last token, then the third prompt
    m.finish()


def test_decodes_come_first() -> None:
    """A long prompt gets what the running sequences leave of the budget, and never holds them up."""
    m = machine(token_budget=5, max_rows=4)
    for first in range(3):
        m.add(group(prompt(2, first), replace(PARAMS, max_new_tokens=30, min_new_tokens=30)))
    m.step()
    m.add(group(prompt(11, 9)))
    assert [fed(m.step()) for _ in range(3)] == [[1, 1, 1, 2]] * 3
    m.finish()


def test_a_prompt_gets_on_whatever_decodes() -> None:
    """A budget that the running sequences use up still leaves one token to a prompt."""
    m = machine(token_budget=1)
    m.add([*group(prompt(2)), *group(prompt(2, 1))])
    m.step()
    m.add(group(prompt(3, 2)))
    assert fed(m.step()) == [1, 1, 1]
    m.finish()


def test_order_of_arrival() -> None:
    """The first in the queue waits for blocks, and those behind it wait with it even where they would fit."""
    m = machine(blocks=4)
    (running,) = m.add(group(prompt(9)))
    m.step()
    large, small = m.add([*group(prompt(8, 1)), *group(prompt(1, 2))])
    m.step()
    assert (m.scheduler.running, m.scheduler.waiting, m.scheduler.kv_usage) == (1, 2, 0.75)
    assert not large.blocks
    assert not small.blocks
    m.scheduler.cancel(running)
    assert m.step().admitted == [large, small]
    m.finish()


def test_rows_are_bounded() -> None:
    """No more than ``max_rows`` run at once."""
    m = machine(max_rows=2)
    m.add([sequence for first in range(5) for sequence in group(prompt(2, first))])
    m.step()
    assert (m.scheduler.running, m.scheduler.waiting) == (2, 3)
    m.finish()
    assert len(m.ended) == 5


def test_what_never_fits() -> None:
    """A sequence longer than all blocks together is told apart, and refused rather than queued for ever."""
    m = machine(blocks=2)
    fitting, too_long = (Sequence(prompt(length), replace(PARAMS, max_new_tokens=1), 0) for length in (8, 9))
    assert m.scheduler.fits(fitting)
    assert not m.scheduler.fits(too_long)
    with pytest.raises(ValueError, match="9 positions do not fit"):
        m.scheduler.add(too_long)


def choosing(*ids: int) -> Callable[[Row], list[Sampled]]:
    return lambda row: [Sampled(i) for i in ids[row.sequence.generated :][: row.samples]]


@pytest.mark.parametrize(
    ("ids", "new", "end", "reason"),
    [
        pytest.param((1, 2, 7, 3), 4, [1, 2, 7], "stop", id="an end token"),
        pytest.param((1, 2, 3, 4), 3, [1, 2, 3], "length", id="the limit"),
        pytest.param((1, 2, 7), 3, [1, 2, 7], "stop", id="both at once"),
        pytest.param((1,), 1, [1], "length", id="one token"),
    ],
)
def test_ends(ids: tuple[int, ...], new: int, end: list[int], reason: str) -> None:
    """An end token ends a sequence with stop, its limit with length."""
    m = machine()
    m.runner._choices = choosing(*ids)  # type: ignore[method-assign]
    (sequence,) = m.add(group(prompt(3), replace(PARAMS, max_new_tokens=new)))
    m.finish()
    assert generated(sequence) == end
    assert m.ended == {sequence: reason}


def test_end_tokens_are_banned_before_the_minimum() -> None:
    """Up to ``min_new_tokens`` the rows that choose say which ids may not be chosen, later ones do not."""
    m = machine(max_tokens=8)
    m.add(group(prompt(9), replace(PARAMS, min_new_tokens=2)))
    assert [m.step().rows[0].banned for _ in range(4)] == [(), (7, 8), (7, 8), ()]
    m.finish()


@pytest.mark.parametrize(
    ("params", "end", "reason"),
    [
        pytest.param({"stop_token_ids": (3,)}, [1, 2, 3], "stop", id="a stop token"),
        pytest.param({"ignore_eos": True}, [1, 2, 3, 7, 4], "length", id="no end token"),
        pytest.param({"ignore_eos": True, "stop_token_ids": (7,)}, [1, 2, 3, 7], "stop", id="an end token asked for"),
    ],
)
def test_ends_as_asked(params: dict[str, Any], end: list[int], reason: str) -> None:
    """A request's own stop tokens end a sequence like end tokens, which it may ignore."""
    m = machine()
    m.runner._choices = choosing(1, 2, 3, 7, 4)  # type: ignore[method-assign]
    (sequence,) = m.add(group(prompt(3), replace(PARAMS, max_new_tokens=5, **params)))
    m.finish()
    assert generated(sequence) == end
    assert m.ended == {sequence: reason}


def test_stop_tokens_are_banned_before_the_minimum() -> None:
    """So are end tokens, unless they do not end the sequence."""
    m = machine()
    m.add(group(prompt(3), replace(PARAMS, min_new_tokens=1, stop_token_ids=(3,))))
    m.add(group(prompt(3), replace(PARAMS, min_new_tokens=1, stop_token_ids=(3,), ignore_eos=True)))
    assert [row.banned for row in m.step().rows] == [(3, 7, 8), (3,)]
    m.finish()


def test_penalties_count_what_was_generated() -> None:
    """A sequence with a penalty counts its generated tokens, others do not bother."""
    m = machine()
    counted, plain = m.add([*group(prompt(3), replace(PARAMS, presence_penalty=1)), *group(prompt(3))])
    m.finish()
    assert sorted(counted.counts.elements()) == sorted(generated(counted))
    assert not plain.counts


def test_a_prefix_is_computed_once() -> None:
    """A prompt with the same beginning computes only its rest, from the step after the one that computed it."""
    m = machine()
    m.add(group(prompt(12), replace(PARAMS, max_new_tokens=20, min_new_tokens=20)))
    m.step()
    (second,) = m.add(group((*prompt(8), 1, 2, 3)))
    assert fed(m.step()) == [1, 3]
    assert second.cached == 8
    m.finish()


def test_n_sequences_share_a_prefill() -> None:
    """Of n sequences of a prompt the first computes it, the others feed its last token only, on blocks of their own
    from there on.
    """
    m = machine()
    sequences = m.add(group(prompt(10), replace(PARAMS, n=3, temperature=1, max_new_tokens=9, min_new_tokens=9)))
    assert fed(m.step()) == [10]
    plan = m.step()
    assert fed(plan) == [1, 1, 1]
    assert [row.start for row in plan.rows] == [10, 9, 9]
    assert plan.copies == [(2, 3), (2, 4)]
    m.finish()
    assert [generated(sequence) for sequence in sequences] == [expected(sequence) for sequence in sequences]
    assert len({tuple(generated(sequence)) for sequence in sequences}) == 3, "each has random numbers of its own"


def test_a_late_follower() -> None:
    """A follower that is admitted while its leader decodes shares its prompt, one that comes later finds it cached."""
    m = machine(max_rows=2)
    long, short = (replace(PARAMS, n=3, max_new_tokens=new, min_new_tokens=new) for new in (9, 1))
    first, second, third = sequences = group(prompt(10), long)
    second.params = short
    m.add(sequences)
    m.step()
    m.step()
    assert m.ended == {second: "length"}
    plan = m.step()
    assert plan.admitted == [third]
    assert plan.copies == [(first.blocks[2], third.blocks[2])]
    m.finish()
    (again,) = m.add(group(prompt(10)))
    assert fed(m.step()) == [2]
    m.finish()
    assert again in m.ended


@pytest.mark.parametrize("cached", [64, 0])
def test_a_follower_succeeds_its_leader(cached: int) -> None:
    """When a leader goes before its prompt is computed, the next follower computes it for the others."""
    m = machine(max_tokens=8, cache_blocks=cached)
    leader, second, third = m.add(group(prompt(14), replace(PARAMS, n=3, temperature=1)))
    m.step()
    m.scheduler.cancel(leader)
    plan = m.step()
    assert [row.sequence for row in plan.rows] == [second]
    assert second.cached == (8 if cached else 0)
    m.finish()
    assert set(m.ended) == {second, third}
    assert [generated(sequence) for sequence in (second, third)] == [expected(second), expected(third)]
    assert sum(len(plan.copies) for plan in m.plans) == 1


@pytest.mark.parametrize("length", [9, 10, 12, 13])
@pytest.mark.parametrize("cached", [64, 0])
def test_a_leader_that_ends_at_once(length: int, cached: int) -> None:
    """A follower of a leader whose first token was its last takes over the blocks of their prompt, and shares them with
    the others: each computes the prompt's last token only, with or without a prefix cache.
    """
    m = machine(cache_blocks=cached)
    sequences = m.add(group(prompt(length), replace(PARAMS, n=4, max_new_tokens=1)))
    assert fed(m.step()) == [length]
    assert list(m.ended) == sequences[:1]
    assert fed(m.step()) == [1, 1, 1]
    assert list(m.ended) == sequences
    assert m.scheduler.preemptions == 0 == m.pool.used
    assert [sequence.cached for sequence in sequences] == [0] * 4
    assert [generated(sequence) for sequence in sequences] == [expected(sequence) for sequence in sequences]


def test_interactive_work_comes_before_a_follower_in_the_background() -> None:
    """A background follower takes over the row of its leader, but not while interactive work waits."""
    m = machine(max_rows=1)
    pair = replace(PARAMS, n=2, max_new_tokens=1)
    first, second = m.add(group(prompt(10), pair, background=True))
    m.step()
    assert m.running == [second]
    m.finish()
    third, fourth = m.add(group(prompt(10, 2), pair, background=True))
    later = group(prompt(3, 3), PARAMS)

    def arrive() -> None:
        m.add(later)

    m.step(arrive)
    assert m.running == []
    m.finish()
    assert list(m.ended) == [first, second, third, *later, fourth]


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["queued", "prefilling", "decoding"])
def test_cancelled_within_one_step(steps: int) -> None:
    """Wherever a sequence is, the next step is without it and its blocks are free."""
    m = machine(max_tokens=8)
    (gone,) = m.add(group(prompt(12), replace(PARAMS, max_new_tokens=9, min_new_tokens=9)))
    for _ in range(steps):
        m.step()
    m.scheduler.cancel(gone)
    assert m.step() == StepPlan([])
    assert not m.scheduler.busy
    assert m.pool.used == 0


def test_cancelled_during_a_step() -> None:
    """What a step gives a sequence that was cancelled meanwhile is dropped; the others get theirs."""
    m = machine()
    gone, other = m.add([*group(prompt(3)), *group(prompt(3, 1))])
    m.step(lambda: m.scheduler.cancel(gone))
    assert (generated(gone), len(generated(other))) == ([], 1)
    m.finish()
    assert set(m.ended) == {other}


def test_a_failing_row_fails_alone() -> None:
    """A sequence whose row fails ends with that error; what it computed is not kept for others."""
    error = InternalError("planted")
    m = machine(fail=lambda row: error if row.sequence.prompt[0] == 20 and row.start > 8 else None)
    bad, good = m.add([*group(prompt(9)), *group(prompt(9, 1))])
    m.finish()
    assert m.ended[bad] is error
    assert generated(good) == expected(good)
    again, tokens = m.add([*group(prompt(9)), *group(prompt(9, 1))])
    m.step()
    assert (again.cached, tokens.cached) == (0, 8)


def test_guesses_are_checked() -> None:
    """Repetitive text comes in fewer steps than it has tokens, and is the same as without guesses."""
    text = replace(PARAMS, max_new_tokens=40, min_new_tokens=40)
    plain, guessing = machine(), machine(speculate=4)
    for m in (plain, guessing):
        (sequence,) = m.add(group(prompt(3), text))
        m.finish()
        assert generated(sequence) == expected(sequence)
    assert (plain.scheduler.speculation.drafted, plain.scheduler.speculation.accepted, len(plain.plans)) == (0, 0, 40)
    assert 0 < guessing.scheduler.speculation.accepted < guessing.scheduler.speculation.drafted
    assert len(guessing.plans) == 40 - guessing.scheduler.speculation.accepted


def test_an_end_token_that_was_guessed() -> None:
    """Nothing is kept behind an end token, however right the guesses behind it were."""
    m = machine(speculate=3)
    m.runner._choices = choosing(2, 7, 3, 9)  # type: ignore[method-assign]
    (sequence,) = m.add(group((1, 2, 7, 3, 9, 1), replace(PARAMS, max_new_tokens=9)))
    m.finish()
    assert m.plans[1].rows[0].token_ids == [2, 7, 3, 9]
    assert (generated(sequence), m.ended[sequence]) == ([2, 7], "stop")


def guesses(m: Machine) -> list[list[int]]:
    """Drafts of each row of each step."""
    return [[row.drafts for row in plan.rows] for plan in m.plans]


@pytest.mark.parametrize(
    ("changes", "drafts"),
    [
        pytest.param({}, [0, 3, 1], id="never past the limit"),
        pytest.param({"min_new_tokens": 3}, [0, 1, 3], id="never past the ban on end tokens"),
        pytest.param({"repetition_penalty": 1.1}, [0] * 7, id="not where a penalty reads the text"),
    ],
)
def test_where_guesses_end(changes: dict[str, Any], drafts: list[int]) -> None:
    """Guesses stay within what a sequence may still generate, and within tokens to which the same rules apply."""
    m = machine(speculate=3)
    m.runner._choices = lambda row: [Sampled(5)] * row.samples  # type: ignore[method-assign]
    (sequence,) = m.add(group((5, 5, 5), replace(PARAMS, max_new_tokens=7, **changes)))
    m.finish()
    assert guesses(m) == [[d] for d in drafts]
    assert generated(sequence) == [5] * 7


def test_no_guesses_where_they_cost() -> None:
    """Nothing is guessed beside a prompt, with many rows, or beyond the runner's step."""
    repetitive = replace(PARAMS, max_new_tokens=30, min_new_tokens=30)
    m = machine(speculate=3, speculate_rows=2, max_tokens=4, max_rows=3, token_budget=4)
    m.runner._choices = lambda row: [Sampled(5)] * row.samples  # type: ignore[method-assign]
    m.add([*group((5, 5), repetitive), *group((5, 5), repetitive)])
    m.step()
    assert [row.drafts for row in m.step().rows] == [2, 0], "four tokens are all the runner takes"
    m.add(group((5, 5, 5, 5, 5), repetitive))
    assert [row.drafts for row in m.step().rows] == [0, 0, 0], "a prompt is under way"
    for _ in range(3):
        m.step()
    assert [row.drafts for row in m.step().rows] == [0, 0, 0], "three rows decode"
    m.finish()


def test_forced_tokens_come_many_at_once() -> None:
    """A text to be scored takes the steps that its tokens fill, not one each: with its prompt, and in what is left of
    the budget beside others. An end token in it does not end it, and none of it counts as guessed.
    """
    text = (1, 7, 3, 9, 8, 2, 2, 8, 5, 1, 4, 7)
    m = machine(max_tokens=8, speculate=4, speculate_rows=2)
    (scored,) = m.add(group(prompt(3), SamplingParams(max_new_tokens=12, temperature=0, min_new_tokens=5, forced=text)))
    assert fed(m.step()) == [8]
    assert generated(scored) == list(text[:6])
    (other,) = m.add(group(prompt(4, 1), replace(PARAMS, max_new_tokens=9, min_new_tokens=9)))
    assert [(len(row.token_ids), row.drafts) for row in m.step().rows] == [(1 + 3, 3), (4, 0)], "prompts come first"
    m.step()
    assert (generated(scored), m.ended[scored]) == (list(text), "length")
    assert all(not row.banned for plan in m.plans for row in plan.rows if row.sequence is scored)
    assert (m.scheduler.speculation.drafted, m.scheduler.speculation.accepted) == (0, 0)
    m.finish()
    assert generated(other) == expected(other)


def test_a_sequence_goes_on_behind_its_forced_tokens() -> None:
    """With more tokens to come than are forced, the rest is the model's choice, and follows all rules from there on."""
    m = machine(speculate=3)
    params = SamplingParams(max_new_tokens=20, temperature=0, min_new_tokens=8, forced=(7, 1, 2))
    (sequence,) = m.add(group(prompt(3), params))
    m.finish()
    assert generated(sequence)[:3] == [7, 1, 2]
    assert generated(sequence) == expected(sequence)
    assert [row.drafts for row in m.plans[0].rows + m.plans[1].rows] == [2, 0]
    assert [plan.rows[0].banned for plan in m.plans[:2]] == [(), (7, 8)]


def test_a_choice_that_failed_behind_forced_ones_that_did_not() -> None:
    """A runner that cannot make all choices of a row is asked again from there on."""
    m = machine()
    error = InternalError("planted")
    m.runner._choices = choosing(1, 2)  # type: ignore[method-assign]
    m.runner.fail = lambda row: error if row.sequence.generated == 2 else None
    (sequence,) = m.add(group(prompt(3), SamplingParams(max_new_tokens=4, temperature=0, forced=(1, 2, 3, 4))))
    m.finish()
    assert generated(sequence) == [1, 2]
    assert m.ended[sequence] is error


# Background work


LONG = replace(PARAMS, max_new_tokens=9, min_new_tokens=9)


def test_interactive_work_takes_rows() -> None:
    """Background sequences give their rows to interactive ones, the youngest first; the oldest keeps its own."""
    m = machine(max_rows=3)
    first, second, third = m.add([s for i in range(3) for s in group(prompt(3, i), LONG, background=True)])
    m.step()
    m.step()
    (one,) = m.add(group(prompt(3, 4), LONG))
    plan = m.step()
    assert (plan.preempted, plan.admitted) == ([third], [one])
    others = m.add([s for i in range(5, 8) for s in group(prompt(3, i), LONG)])
    plan = m.step()
    assert (plan.preempted, plan.admitted) == ([second], others[:1])
    assert m.step().preempted == []
    assert m.running == [first, one, others[0]]
    assert (second.generated, third.generated) == (2, 2), "they pause while interactive prompts are computed"
    m.finish()
    assert m.scheduler.preemptions == 2
    assert [generated(s) for s in m.sequences] == [expected(s) for s in m.sequences]


def test_interactive_work_takes_blocks() -> None:
    """As many background sequences give way as it takes and no more, and what they had computed is found again."""
    m = machine(blocks=12, token_budget=32)
    first, second, third = m.add(
        [s for i in range(3) for s in group(prompt(4, i), LONG, background=True)]
    )  # 3 blocks each
    for _ in range(6):
        m.step()
    (one,) = m.add(group(prompt(16, 4), replace(LONG, max_new_tokens=1, min_new_tokens=1)))  # 4, and 3 are free
    plan = m.step()
    assert (plan.preempted, plan.admitted) == ([third], [one])
    assert (second.generated, third.generated) == (6, 6)
    assert not third.blocks
    plan = m.step()  # the interactive one has ended
    assert plan.admitted == [third]
    assert [(row.sequence, row.start) for row in plan.rows][-1] == (third, 8), "two of its blocks were still there"
    m.finish()
    assert (third.cached, first.cached) == (0, 0), "what it finds of its own was not there before it"
    assert [generated(s) for s in m.sequences] == [expected(s) for s in m.sequences]


def test_nobody_gives_way_for_nothing() -> None:
    """A sequence that could not be admitted even after all possible preemptions waits, and nothing is preempted."""
    m = machine(blocks=9)
    background = m.add([s for i in range(3) for s in group(prompt(4, i), LONG, background=True)])
    m.step()
    (one,) = m.add(group(prompt(28, 4), replace(LONG, max_new_tokens=1, min_new_tokens=1)))
    while background[0] not in m.ended:
        assert not m.step().preempted
    assert one not in m.ended
    m.finish()
    assert m.scheduler.preemptions == 0


def test_background_work_fills_what_is_free() -> None:
    """It runs beside interactive work where there is room, and waits while interactive work waits."""
    m = machine(max_rows=2)
    (one,) = m.add(group(prompt(3), LONG))
    (two,) = m.add(group(prompt(3, 1), PARAMS, background=True))
    m.step()  # computes the interactive prompt
    m.step()
    m.step()  # and the other one, in short steps
    assert m.running == [one, two]
    three, four = m.add([*group(prompt(3, 2), LONG, background=True), *group(prompt(3, 3), PARAMS)])
    while two not in m.ended:
        m.step()
    assert m.step().admitted == [four]
    m.finish()
    assert three in m.ended


def test_interactive_prompts_are_computed_first() -> None:
    """A partly computed background prompt pauses while an interactive one is computed."""
    m = machine(max_tokens=16, token_budget=8)
    m.add(group(prompt(40), PARAMS, background=True))
    assert fed(m.step()) == [16]
    m.add(group(prompt(30, 1)))
    assert [fed(m.step()) for _ in range(2)] == [[16], [14]]
    assert fed(m.step()) == [1, 7]
    m.finish()


def test_an_interactive_request_interrupts_background_work() -> None:
    """A step that is mostly background work may be interrupted, any number of times; it goes on behind the prompt of
    the interactive request. A step that is mostly interactive may not.
    """
    m = machine(max_tokens=32, token_budget=24)
    m.add([s for i in range(4) for s in group(prompt(6, i), LONG, background=True)])
    plan = m.step(interrupt=True)
    assert (fed(plan), plan.interruptible, plan.resumed) == ([6, 6, 6, 6], True, False)
    assert all(s.blocks and not s.generated for s in m.sequences)
    m.add(group(prompt(40, 4), LONG))
    for tokens in (32, 8):
        plan = m.step(interrupt=True)
        assert (fed(plan), plan.interruptible) == ([tokens], False)
    assert m.sequences[4].generated == 1
    for interrupt in (True, True, False):
        plan = m.step(interrupt=interrupt)
        assert (fed(plan), plan.interruptible, plan.resumed) == ([6, 6, 6, 6], True, True)
    assert fed(m.step()) == [1, 1, 1, 1, 1]
    m.add([s for i in range(5, 8) for s in group(prompt(6, i), LONG)])
    while any(not s.generated for s in m.sequences):
        m.step()
    assert (fed(m.step()), m.plans[-1].interruptible) == ([1] * 8, False)
    m.finish()
    assert [generated(s) for s in m.sequences] == [expected(s) for s in m.sequences]


def test_an_interrupted_step_with_a_stream() -> None:
    """A step in which an interactive sequence decodes goes on behind the first chunk of a prompt, which is as short as
    beside a decoding sequence, and is not interrupted again.
    """
    m = machine(max_tokens=32, token_budget=8)
    m.add([s for i in range(3) for s in group(prompt(6, i), LONG, background=True)])
    (stream,) = m.add(group(prompt(6, 3), LONG))
    while any(not s.generated for s in m.sequences):
        m.step()
    assert fed(m.step(interrupt=True)) == [1, 1, 1, 1]
    m.add(group(prompt(20, 4), LONG))
    before = stream.generated
    assert fed(m.step()) == [7]
    plan = m.step(interrupt=True)
    assert (fed(plan), plan.resumed, plan.interruptible) == ([1, 1, 1, 1], True, False)
    assert stream.generated == before + 1
    assert [fed(m.step()) for _ in range(2)] == [[1, 7], [1, 6]]
    m.finish()
    assert [generated(s) for s in m.sequences] == [expected(s) for s in m.sequences]


@pytest.mark.parametrize("how", ["cancelled", "preempted"])
def test_an_interrupted_step_that_a_sequence_has_left(how: str) -> None:
    """It does not go on: the other sequences' rows are planned again."""
    m = machine(max_rows=2)
    first, gone = m.add([s for i in range(2) for s in group(prompt(6, i), LONG, background=True)])
    assert fed(m.step(interrupt=True)) == [6, 6]
    if how == "cancelled":
        m.scheduler.cancel(gone)
    else:
        m.add(group(prompt(5, 2)))
        assert m.step().preempted == [gone]
    plan = m.step()
    assert not plan.resumed
    assert first in [row.sequence for row in plan.rows]
    m.finish()
    assert generated(first) == expected(first)
    assert (gone in m.ended) == (how == "preempted")


def test_an_interrupted_step_of_a_crashed_thread() -> None:
    """It is gone after a reset."""
    m = machine()
    m.add(group(prompt(6), LONG, background=True))
    m.step(interrupt=True)
    m.scheduler.reset()
    m.sequences.clear()
    m.runner._slots.clear()
    m.add(group(prompt(6, 1), LONG, background=True))
    assert not m.step().resumed
    m.finish()


def test_background_work_pauses_for_a_first_token() -> None:
    """While an interactive prompt is computed, only interactive sequences are in the steps; then all are again. A
    longer one leaves background sequences out for a limited number of steps, and then shares one with them.
    """
    m = machine(max_rows=4, max_tokens=8, token_budget=8)
    long = replace(PARAMS, max_new_tokens=40, min_new_tokens=40)
    m.add([s for i in range(2) for s in group(prompt(3, i), long, background=True)])
    assert fed(m.step()) == [3, 3]
    assert fed(m.step()) == [1, 1]
    m.add(group(prompt(10, 2), long))
    assert [fed(m.step()) for _ in range(3)] == [[8], [2], [1, 1, 1]]
    m.add(group(prompt(130, 3)))
    assert [fed(m.step()) for _ in range(MAX_PAUSES)] == [[1, 7]] * MAX_PAUSES
    assert sorted(fed(m.step())) == [1, 1, 1, 5]
    assert fed(m.step()) == [1, 7]
    m.finish()
    assert [generated(s) for s in m.sequences] == [expected(s) for s in m.sequences]


def test_background_work_gets_on_beside_endless_interactive_work() -> None:
    """Under endless interactive work every background sequence finishes, in order, one at a time, and interactive work
    is delayed by no more than that one.
    """
    m = machine(max_rows=4, blocks=24, cache_blocks=0)
    background = m.add(
        [s for i in range(6) for s in group(prompt(11, i), replace(LONG, n=2, temperature=1), background=True)]
    )
    numbers = iter(range(10, 10_000))
    steps, admitted = 0, 0
    while not m.ended.keys() >= set(background):
        while len(m.scheduler._admission.waiting.interactive) < 3:
            m.add(group(prompt(5, next(numbers)), PARAMS))
        admitted += sum(not s.background for s in m.step().admitted)
        assert sum(s.background for s in m.running) <= 1
        steps += 1
        assert steps < 1500, "background work starves"
    assert [s for s in m.ended if s.background] == background
    assert MAX_BYPASSES * len(background) <= admitted
    assert [generated(s) for s in background] == [expected(s) for s in background]


def test_interrupted_before_its_first_token() -> None:
    """Followers wait on for a leader that was interrupted while it computed their prompt, and then share it."""
    m = machine(max_rows=2, max_tokens=8)
    m.add(group(prompt(3, 1), LONG, background=True))
    m.step()
    leader, second, third = sequences = m.add(group(prompt(20), replace(LONG, n=3, temperature=1), background=True))
    m.step()
    assert 0 < leader.computed < 20
    (one,) = m.add(group(prompt(3, 2), LONG))
    assert m.step().preempted == [leader]
    assert (leader.generated, second.leader, third.leader) == (0, leader, leader)
    m.finish()
    assert one in m.ended
    assert [generated(s) for s in sequences] == [expected(s) for s in sequences]
    assert (leader.cached, second.cached) == (0, 0)


def test_interrupted_after_its_first_token() -> None:
    """Followers of a leader that was interrupted when their prompt was computed find it in the prefix cache."""
    m = machine(max_rows=2)
    m.add(group(prompt(3, 1), LONG, background=True))
    m.step()
    leader, second = sequences = m.add(group(prompt(6), replace(LONG, n=2, temperature=1), background=True))
    m.step()
    assert leader.generated == 1
    m.add(group(prompt(3, 2), LONG))
    assert m.step().preempted == [leader]
    assert second.leader is None
    m.finish()
    assert [generated(s) for s in sequences] == [expected(s) for s in sequences]


@pytest.mark.parametrize("guessing", [True, False])
def test_interrupted_among_guesses_and_forced_tokens(guessing: bool) -> None:
    """A text is the same whether it was interrupted while it was scored, penalized or guessed, or not at all."""
    for params in (
        replace(LONG, max_new_tokens=40, min_new_tokens=12, logprobs=2),
        replace(LONG, max_new_tokens=12, forced=tuple(range(1, 13)), logprobs=1),
        replace(LONG, max_new_tokens=12, presence_penalty=1, frequency_penalty=0.5),
    ):
        m = machine(max_rows=2, speculate=4 * guessing, token_budget=4)
        m.add(group(prompt(3, 1), replace(LONG, max_new_tokens=80, min_new_tokens=80), background=True))
        m.step()
        (background,) = m.add(group(prompt(5), params, background=True))
        for number in range(3):
            while background not in m.running or background.generated <= 2 * number:
                m.step()
            m.add(group(prompt(3, 2 + number), replace(PARAMS, max_new_tokens=2, min_new_tokens=2)))
            assert m.step().preempted == [background]
        m.finish()
        assert m.given[background] == choices(background)
        assert generated(background) == expected(background)
        assert not background.penalized or background.counts == Counter(generated(background))


def test_cancelled_while_it_is_put_back() -> None:
    """What was interrupted and is not wanted any more is gone."""
    m = machine(max_rows=2)
    _, gone = m.add([*group(prompt(3), LONG, background=True), *group(prompt(3, 1), LONG, background=True)])
    m.step()
    m.add(group(prompt(3, 2), LONG))
    assert m.step().preempted == [gone]
    m.scheduler.cancel(gone)
    m.finish()
    assert gone not in m.ended


def test_reset() -> None:
    """After a reset nothing is queued, running or cached."""
    m = machine(max_rows=1)
    m.add([*group(prompt(9)), *group(prompt(9, 1))])
    m.step()
    m.scheduler.reset()
    assert not m.scheduler.busy
    m.sequences.clear()
    m.runner._slots.clear()
    (again,) = m.add(group(prompt(9)))
    m.finish()
    assert again.cached == 0


def test_a_text_that_becomes_long_is_computed_again() -> None:
    """Its keys and values are others then; it comes before those that wait, and shares nothing with short texts."""
    m = machine(short_context=10, max_rows=1, speculate=4)
    growing, other = m.add([*group(prompt(9), replace(PARAMS, max_new_tokens=6, min_new_tokens=6)), *group(prompt(9))])
    long, same = group(prompt(11)), group(prompt(11))
    while len(growing.tokens) <= 10:
        m.step()
    plan = m.step()
    assert (plan.preempted, plan.admitted) == ([growing], [growing])
    assert fed(plan) == [len(growing.tokens) - 1]  # nothing of the short text was reused
    m.add([*long, *same])
    m.finish()
    assert (other.cached, long[0].cached, same[0].cached) == (8, 8, 8)
    for sequence in (growing, other, *long, *same):
        check_text(m, sequence)


# Blocks on demand


ENDLESS = replace(PARAMS, max_new_tokens=200, min_new_tokens=200)


def test_blocks_are_taken_as_texts_grow() -> None:
    """Sequences that may each fill the whole cache run at once, with the blocks of the tokens that they have."""
    m = machine(blocks=64)
    m.add([s for i in range(4) for s in group(prompt(5, i), ENDLESS)])
    m.step()
    assert (m.scheduler.running, m.pool.used) == (4, 8)
    for _ in range(4):
        m.step()
    assert (m.scheduler.running, m.pool.used) == (4, 12)


def test_the_last_admitted_gives_way() -> None:
    """Without a free block the sequence that was admitted last is preempted, until another one has ended; it keeps its
    tokens and none is given twice.
    """
    m = machine(blocks=9)
    text = replace(PARAMS, max_new_tokens=24, min_new_tokens=24)
    first, second, third = m.add([s for i in range(3) for s in group(prompt(5, i), text)])
    while not (plan := m.step()).preempted:
        assert len(plan.rows) == 3
    assert plan.preempted == [third]
    tokens = generated(third)
    assert len(tokens) == 8
    while second not in m.ended:
        plan = m.step()
        assert m.running[:1] == [first] or first in m.ended
        assert not plan.admitted or first in m.ended, "it comes back before there is space"
    m.finish()
    assert generated(third)[:8] == tokens
    for sequence in (first, second, third):
        check_text(m, sequence)


def test_space_for_growth_is_left_at_admission() -> None:
    """A sequence waits if no block would be left for each one that may grow; one that needs no more does not."""
    m = machine(blocks=4)
    m.add(group(prompt(4), replace(PARAMS, max_new_tokens=12, min_new_tokens=12)))
    m.step()
    growing, fixed = group(prompt(4, 1), LONG)[0], group(prompt(4, 1), replace(PARAMS, max_new_tokens=1))[0]
    m.add([growing])
    assert not m.step().admitted
    m.scheduler.cancel(growing)
    m.add([fixed])
    assert m.step().admitted == [fixed]
    m.finish()


def test_background_work_gives_its_blocks_first() -> None:
    """A growing interactive sequence takes the blocks of background ones, the last admitted first; the oldest of them
    gives way as if it was interactive: to one that was admitted before it.
    """
    m = machine(blocks=9, token_budget=32)
    params = replace(PARAMS, max_new_tokens=32, min_new_tokens=32)
    (early,) = m.add(group(prompt(4), params))
    m.step()
    old, young = m.add([s for i in (1, 2) for s in group(prompt(4, i), LONG, background=True)])
    m.step()
    (late,) = m.add(group(prompt(4, 3), params))
    order = []
    while early not in m.ended:
        order += m.step().preempted
    assert order[:2] == [young, late]
    assert old in m.ended
    m.finish()
    for sequence in m.sequences:
        check_text(m, sequence)


def test_guesses_and_forced_tokens_take_free_blocks_only() -> None:
    """Tokens that are fed ahead are as many as there are free blocks for; none is preempted for them."""
    m = machine(blocks=5, speculate=8, speculate_rows=2, max_rows=2)
    m.runner._choices = lambda row: [Sampled(5)] * row.samples  # type: ignore[method-assign]
    long = replace(PARAMS, max_new_tokens=14, min_new_tokens=14)
    m.add([*group((5, 5, 5), long), *group((5, 5, 5), long)])
    m.step()
    assert [row.drafts for row in m.step().rows] == [8, 4]
    m.finish()
    m = machine(blocks=4, max_rows=2, token_budget=32)
    scored = SamplingParams(max_new_tokens=12, temperature=0, forced=tuple(range(1, 13)))
    m.add([*group(prompt(4), PARAMS), *group(prompt(3, 1), scored)])
    assert [row.drafts for row in m.step().rows] == [0, 12 - 3]
    m.finish()
    for sequence in m.sequences:
        check_text(m, sequence)


def test_a_leader_that_is_preempted_while_it_computes() -> None:
    """Followers of a leader that lost its blocks before its first token wait for it and share its prompt."""
    m = machine(blocks=10, max_tokens=8, token_budget=8)
    m.add(group(prompt(3), replace(PARAMS, max_new_tokens=36, min_new_tokens=36)))
    m.step()
    sequences = m.add(group(prompt(28, 1), replace(PARAMS, n=3, temperature=1)))
    m.finish()
    assert m.scheduler.preemptions
    for sequence in sequences:
        check_text(m, sequence)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_everyone_ends_in_a_cache_that_is_too_small(seed: int) -> None:
    """With texts that each may fill the cache, all of them end and get what they would get alone. A sequence that lost
    its blocks comes back only after another has ended, so the tokens that are computed again are bounded by those of
    the sequences that have ended.
    """
    dice = random.Random(seed)
    size = dice.randint(1, 4)
    m = machine(
        blocks=dice.randint(-(-20 // size), 60),
        block_tokens=size,
        cache_blocks=dice.choice([0, 60]),
        speculate=dice.choice([0, 4]),
        speculate_rows=4,
        token_budget=dice.randint(1, 24),
    )
    lost: set[Sequence] = set()
    for step in range(3000):
        if step < 60 and dice.random() < 0.4:
            length = dice.randint(1, 8)
            new = dice.randint(1, 20 - length)
            params = replace(PARAMS, max_new_tokens=new, min_new_tokens=new, n=dice.choice([1, 1, 2]), temperature=1)
            m.add(group(tuple(dice.choices(range(1, 4), k=length)), params, seed=step))
        ended = len(m.ended)
        plan = m.step()
        assert lost.isdisjoint(plan.admitted), "it comes back before there is space"
        lost |= set(plan.preempted)
        if len(m.ended) > ended:
            lost.clear()
        if step >= 60 and not m.scheduler.busy:
            break
    m.finish()
    fed_tokens = sum(len(row.token_ids) - row.drafts for plan in m.plans for row in plan.rows)
    needed = sum(len(sequence.tokens) for sequence in m.sequences)
    assert fed_tokens <= 2 * needed + len(m.sequences) * size
    for sequence in m.sequences:
        check_text(m, sequence)


@st.composite
def _groups(draw: st.DrawFn, background: bool) -> list[Sequence]:
    new = draw(st.integers(1, 14))
    forced = draw(st.integers(0, new)) if draw(st.integers(0, 2)) == 0 else 0
    params = SamplingParams(
        max_new_tokens=new,
        forced=tuple(draw(st.lists(st.integers(1, 9), min_size=forced, max_size=forced))),
        min_new_tokens=draw(st.sampled_from([0, 0, new // 2, new])),
        temperature=draw(st.sampled_from([0, 1])),
        presence_penalty=draw(st.sampled_from([0, 0, 1])),
        n=draw(st.sampled_from([1, 1, 2, 4])),
        logprobs=draw(st.sampled_from([None, None, 2])),
    )
    start = [1, 2, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8][: draw(st.integers(0, 12))]  # many begin alike
    rest = draw(st.lists(st.integers(1, 3), min_size=not start, max_size=8))
    return group((*start, *rest), params, seed=draw(st.integers(0, 2)), background=background)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_everyone_gets_what_they_would_get_alone(data: st.DataObject) -> None:
    """Under any arrivals, chunks, prefix hits, shared prefills, guesses, interruptions, cancellations and failures,
    whoever is not cut short gets exactly the tokens it would get alone, whoever is gets the beginning of them, and all
    blocks come back.
    """
    draw = data.draw
    block_tokens, max_tokens = draw(st.integers(1, 5), "block_tokens"), draw(st.integers(1, 24), "max_tokens")
    blocks = draw(st.integers(6, 40), "blocks")
    failing: dict[Sequence, int] = {}  # -> the length at which it fails
    error = InternalError("planted")
    m = machine(
        blocks=blocks,
        block_tokens=block_tokens,
        cache_blocks=draw(st.integers(0, blocks), "cache_blocks"),
        max_rows=draw(st.integers(1, min(7, max_tokens)), "max_rows"),
        max_tokens=max_tokens,
        token_budget=draw(st.integers(1, 30), "token_budget"),
        speculate=draw(st.integers(0, 5), "speculate"),
        speculate_rows=draw(st.integers(1, 4), "speculate_rows"),
        fail=lambda row: error if row.start + len(row.token_ids) >= failing.get(row.sequence, 10**9) else None,
    )
    arrivals: list[Sequence] = []

    def cancel_some() -> None:
        live = [sequence for sequence in m.sequences if sequence not in m.ended and not sequence.cancelled]
        if live and draw(st.integers(0, 7)) == 0:
            for sequence in draw(st.lists(st.sampled_from(live), min_size=1, max_size=3, unique=True)):
                m.scheduler.cancel(sequence)

    pauses = 0
    for step in range(draw(st.integers(1, 12), "steps with arrivals")):
        for sequences in draw(st.lists(_groups(background=step % 3 == 0), max_size=3)):
            if m.scheduler.fits(sequences[0]):
                if draw(st.integers(0, 5)) == 0:
                    failing[sequences[0]] = draw(st.integers(1, sequences[0].capacity))
                arrivals += m.add(sequences)
        cancel_some()
        decoding = [s for s in m.sequences if s.blocks and s.computed + 1 == len(s.tokens) and not s.cancelled]
        plan = m.step(cancel_some)
        decoding = [s for s in decoding if s not in plan.preempted]
        halves = [s for s in m.scheduled if s.blocks and not s.cancelled and s not in m.ended]
        known = sum(len(row.token_ids) - (0 if row.sequence.forced else row.drafts) for row in plan.rows)
        rows = {row.sequence for row in plan.rows}
        if any(s.background for s in (*decoding, *halves)) and not any(s.background for s in rows):
            pauses += 1
            decoding = [s for s in decoding if not s.background]
            halves = [s for s in halves if not s.background]
            assert rows - {*decoding}, "background work pauses for nothing"
        else:
            pauses = 0
        assert pauses <= MAX_PAUSES
        assert not decoding or known <= max(m.budget, len(plan.rows))
        assert rows.issuperset(decoding), "a stream stalls"
        assert rows.issuperset(halves), "a prompt does not get on"
    m.finish()

    for sequence in arrivals:
        check_text(m, sequence, cut=sequence.cancelled or sequence in failing)


def check_text(m: Machine, sequence: Sequence, *, cut: bool = False) -> None:
    """What a sequence got is what it gets alone, or if it was cut short, the beginning of that."""
    whole = expected(sequence)
    assert m.given.get(sequence, []) == choices(sequence)
    assert not sequence.penalized or sequence.counts == Counter(generated(sequence))
    if cut:
        assert generated(sequence) == whole[: sequence.generated]
        assert sequence in m.ended or sequence.cancelled
        return
    assert generated(sequence) == whole
    ends = whole[-1] in EOS and len(whole) > len(sequence.params.forced)
    assert m.ended[sequence] == ("stop" if ends else "length")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
@example(308_078)  # a sequence that took over its leader's blocks was preempted before a younger one
def test_everyone_gets_what_they_would_get_without_interruptions(seed: int) -> None:
    """The same where background work is preempted all the time, for lack of rows and of blocks, some of it is cancelled
    meanwhile, and steps are interrupted.
    """
    dice = random.Random(seed)

    def work(number: int, *, background: bool) -> list[Sequence]:
        new = dice.randint(1, 24)
        forced = tuple(dice.choices(range(1, 9), k=dice.randint(0, new))) if dice.random() < 0.2 else ()
        params = SamplingParams(
            max_new_tokens=new,
            forced=forced,
            min_new_tokens=dice.choice([0, new // 2, new]),
            temperature=dice.choice([0, 1]),
            presence_penalty=dice.choice([0, 0, 1]),
            n=dice.choice([1, 1, 1, 3]),
            logprobs=dice.choice([None, 2]),
        )
        start = (1, 2, 1, 2, 3, 4, 5, 6)[: dice.choice([0, 4, 8])]
        return group((*start, *dice.choices(range(1, 4), k=dice.randint(1, 12))), params, number, background=background)

    blocks = dice.randint(8, 40)
    m = machine(
        blocks=blocks,
        block_tokens=dice.randint(1, 5),
        cache_blocks=dice.choice([0, blocks // 3, blocks]),
        max_rows=dice.randint(2, 6),
        max_tokens=dice.randint(6, 24),
        token_budget=dice.randint(1, 24),
        speculate=dice.choice([0, 4]),
        speculate_rows=4,
        short_context=dice.choice([0, 0, 10]),
    )
    for step in range(120):
        sequences = work(step, background=True) if dice.random() < 0.3 else []
        sequences += work(step, background=False) if dice.random() < 0.15 else []
        m.add([sequence for sequence in sequences if m.scheduler.fits(sequence)])
        if m.running and dice.random() < 0.03:
            m.scheduler.cancel(dice.choice(m.running))
        m.step(interrupt=dice.random() < 0.2)
    m.finish()
    for sequence in m.sequences:
        check_text(m, sequence, cut=sequence.cancelled)
