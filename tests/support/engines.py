"""Real engines on a runner without a model, for tests of their threads and streams."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from ctypes import c_int32
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from handlers.protocols import Engine
from runtime.answer_format import AnswerFormat
from runtime.engine.block_pool import BlockPool
from runtime.engine.engine import FastEngine
from runtime.engine.grammar import GrammarCompiler
from runtime.engine.native import library
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Row, Sampled
from runtime.engine.sequence import Sequence as Text
from runtime.errors import ServiceError
from runtime.loading import snapshot_writer
from runtime.model.catalogue import parse_model_name
from runtime.model.packing import WeightKind
from runtime.model.snapshot import Snapshot
from runtime.telemetry.metrics import Metrics
from runtime.types import Job, Message, SamplingParams, Token
from tests.support.fakes import INFO, FakeRunner, fake_text

Load = Callable[..., Any]
"""Loads an engine from a model's name and settings; see the fixture ``load``."""

needs_kernels = pytest.mark.skipif(
    not library.usable(), reason="no kernels; install a C++ compiler and run: python -m runtime.engine.native.build"
)


@cache
def snapshot_of(folder: Path, kind: WeightKind) -> Snapshot:
    """Return a folder's snapshot, held in memory."""
    from runtime.loading.serving_form import serving_form  # torch

    facts, tokenizer, weights = serving_form(parse_model_name(str(folder)), folder, kind, lambda stage, share: None)
    return snapshot_writer.hold(facts, tokenizer, weights)


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models load as on a machine without compiled kernels: PyTorch computes."""
    monkeypatch.setattr("runtime.loading.kernels.host_kernels", lambda cache_dir: None)


FOREVER = 1000  # tokens; a request with so many is still running when a test looks


class Letters:
    """A tokenizer with one token for each of the runner's twenty letters."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self.encoded.append(text)
        return [ord(letter) % 20 for letter in text]

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        assert skip_special_tokens
        return "".join(chr(ord("a") + i) for i in ids)

    def has_text(self, token_id: int) -> bool:
        return True

    def token(self, token_id: int) -> str | None:
        return chr(ord("a") + token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode([token_id], skip_special_tokens=True).encode()


class Chat:
    """A chat encoder that uses only the last message."""

    own_template = False
    answer_format = AnswerFormat()

    def __init__(self, tokenizer: Letters) -> None:
        self._tokenizer = tokenizer

    def encode(self, messages: Sequence[Message], tools: object = (), options: object = None) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(messages[-1].content))


@dataclass
class Runner(FakeRunner):
    """A fake runner whose steps first wait for ``gate``, if it is set, and then call ``plant``."""

    gate: threading.Semaphore | None = None
    plant: Callable[[Sequence[Row]], None] = lambda rows: None
    sizes: list[int] = field(default_factory=list)  # rows of each step

    def step(
        self, rows: Sequence[Row], interrupt: c_int32 | None = None, *, resume: bool = False
    ) -> list[list[Sampled] | ServiceError]:
        if self.gate is not None:
            self.gate.acquire()
        self.plant(rows)
        self.sizes.append(len(rows))
        return super().step(rows, interrupt, resume=resume)


class Made:
    """An engine with its runner, block pool, scheduler, tokenizer and metrics."""

    def __init__(
        self,
        runner: Runner | None = None,
        *,
        eos: frozenset[int] = frozenset(),
        max_rows: int = 8,
        token_budget: int = 16,
        cache_blocks: int = 16,
        speculate: int = 0,
        context_length: int = 4096,
        **options: Any,
    ) -> None:
        self.runner = runner or Runner(blocks=2048, max_tokens=64)
        self.pool = BlockPool(self.runner.blocks, self.runner.block_tokens, cache_blocks=cache_blocks)
        self.scheduler = Scheduler(
            self.pool,
            max_rows=max_rows,
            max_tokens=self.runner.max_tokens,
            token_budget=token_budget,
            eos=eos,
            speculate=speculate,
        )
        self.metrics = Metrics()
        self.tokenizer = Letters()
        self.engine = FastEngine(
            self.runner,
            self.scheduler,
            self.tokenizer,
            Chat(self.tokenizer),  # type: ignore[arg-type]
            replace(INFO, context_length=context_length),
            metrics=self.metrics.model("fake"),
            grammars=GrammarCompiler(self.tokenizer, end_ids=eos, vocabulary=INFO.vocabulary_size),  # type: ignore[arg-type]
            **options,
        )

    @property
    def idle(self) -> bool:
        """Whether the engine holds nothing of any request."""
        thread = self.engine._thread
        return not (
            thread._unfinished
            or thread._waiting_interactive
            or thread._waiting_background
            or thread._owners
            or thread._inbox
            or self.scheduler.busy
        )

    def value(self, name: str, **labels: str) -> float:
        """Return a sample of the metrics, as the registry shows it."""
        value = self.metrics._registry.get_sample_value(f"warmstart:{name}", {"model_name": "fake", **labels})
        return 0.0 if value is None else value


def job(prompt: Sequence[int] = (1, 2, 3), tokens: int = 5, **params: Any) -> Job:
    return Job(tuple(prompt), SamplingParams(max_new_tokens=tokens, **({"temperature": 0} | params)))


async def collect(engine: Engine, *jobs: Job) -> list[list[Token]]:
    rows: list[list[Token]] = [[] for job in jobs for _ in range(job.params.n)]
    async with aclosing(engine.stream(jobs)) as tokens:
        async for token in tokens:
            rows[token.sequence].append(token)
    return rows


def expected(one: Job, eos: frozenset[int] = frozenset()) -> list[list[int]]:
    seed = one.params.seed or 0
    return [fake_text(Text(one.token_ids, one.params, seed, number), eos, 20) for number in range(one.params.n)]


def ids(rows: list[list[Token]]) -> list[list[int]]:
    return [[token.id for token in row] for row in rows]


def said(row: list[Token]) -> str:
    return "".join(token.text for token in row)


def mixed(number: int, seed: int = 0) -> list[Job]:
    """Return seeded jobs of all kinds.

    Args:
        number: the number of jobs.
        seed: the random seed.
    """
    draw = random.Random(seed)

    def one() -> Job:
        prompt = [draw.randrange(20) for _ in range(draw.choice([1, 3, 8, 40, 90]))]
        return job(
            prompt,
            draw.randint(1, 30),
            temperature=draw.choice([0, 1]),
            seed=draw.randrange(100),
            n=draw.choice([1, 1, 3]),
            min_new_tokens=draw.choice([0, 4]),
            logprobs=draw.choice([None, 2]),
        )

    return [one() for _ in range(number)]


class Death(BaseException):
    """Ends a thread, because no handler of ``Exception`` catches it."""


@contextmanager
def planted(runner: Runner) -> Iterator[list[int]]:
    """Make the next step end its thread; yield the list of row counts of such steps."""
    deaths: list[int] = []

    def plant(rows: Sequence[Row]) -> None:
        runner.plant = lambda rows: None
        deaths.append(len(rows))
        raise Death

    runner.plant = plant
    yield deaths
