"""runtime.engine.scheduler in virtual time: what a batch costs people, and what people cost the batch.

A step takes as long as one on two cores with SmolLM2-135M in int8: 5.5 ms, and 0.55 ms for each token (from 150 tokens
per second alone and 750 at 32 clients, loadtests/ENGINE.md). So the figures are the scheduler's alone, and the same on
every machine.
"""

from __future__ import annotations

import random
import statistics

from runtime.engine.block_pool import BlockPool
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Sampled, Sequence
from runtime.types import SamplingParams

STEP_SECONDS, TOKEN_SECONDS, PARTS = 5.5e-3, 0.55e-3, 31  # a step may be interrupted between its parts
SECONDS = 20.0
NEW_TOKENS = 64
THINK_SECONDS = 0.5


def _run(rows: int, people: int, prompt: int) -> tuple[float, float]:
    """Run background rows, each followed by another one, beside people who think between an answer and a question.

    Returns:
        The median time to people's first token in seconds, and the tokens per second of all.
    """
    draw = random.Random(1)
    pool = BlockPool(5000, 16, cache_blocks=16)
    scheduler = Scheduler(pool, max_rows=64, max_tokens=1024, token_budget=128, eos=frozenset({0}))
    params = SamplingParams(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, temperature=0)

    def sequence(*, background: bool) -> Sequence:
        tokens = tuple(draw.randrange(1, 50_000) for _ in range(prompt))
        return Sequence(tokens, params, 0, background=background)

    now, tokens = 0.0, 0
    questions = [draw.uniform(0, 2 * THINK_SECONDS) for _ in range(people)]
    asked: dict[Sequence, float] = {}
    first: list[float] = []
    for _ in range(rows):
        scheduler.add(sequence(background=True))
    while now < SECONDS:
        for moment in [moment for moment in questions if moment <= now]:
            questions.remove(moment)
            asked[question := sequence(background=False)] = moment
            scheduler.add(question)
        plan = scheduler.schedule()
        if not plan.rows:
            now = min(questions)
            continue
        if not plan.resumed:
            parts = PARTS
        part = (STEP_SECONDS + TOKEN_SECONDS * sum(len(row.token_ids) for row in plan.rows)) / PARTS
        if not plan.interruptible:
            now += part * parts
            parts = 0
        while parts and not [moment for moment in questions if moment < now]:
            now += part
            parts -= 1
        if parts:
            scheduler.interrupted(plan)
            continue
        outputs = [[Sampled(draw.randrange(1, 50_000)) for _ in range(row.samples)] for row in plan.rows]
        for result in scheduler.commit(plan.rows, outputs):
            tokens += len(result.tokens)
            if result.sequence in asked and result.sequence.generated == len(result.tokens):
                first.append(now - asked[result.sequence])
            if result.reason is None:
                continue
            if result.sequence in asked:
                questions.append(now + THINK_SECONDS * draw.uniform(0.5, 1.5))
            else:
                scheduler.add(sequence(background=True))
    return statistics.median(first) if first else 0.0, tokens / now


def test_people_beside_a_batch() -> None:
    """The first token comes within 1.15 times, and all tokens per second are 95 % of the peak."""
    for prompt in (300, 85):
        alone, _ = _run(0, 2, prompt)
        _, peak = _run(64, 0, prompt)
        beside, tokens = _run(32, 2, prompt)
        assert beside / alone < 1.15, prompt
        assert tokens / peak > 0.95, prompt


def test_a_batch_alone() -> None:
    """The rows of a batch that run at once by default reach 95 % of the peak."""
    assert _run(32, 0, 85)[1] / _run(64, 0, 85)[1] > 0.95
