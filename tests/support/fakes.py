"""A fake engine and context without a model, for tests of everything around the model."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import zlib
from array import array
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from ctypes import c_int32
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from handlers.context import Clock, Context, RequestLimits
from runtime.answer_format import AnswerFormat
from runtime.engine.block_pool import BlockPool
from runtime.engine.sequence import Row, Sampled
from runtime.engine.sequence import Sequence as TextSequence
from runtime.engine.token_ids import check_ids, check_token_ids
from runtime.errors import ModelNotFound, ServiceError
from runtime.response_cache.cache import ResponseCache
from runtime.response_cache.memory import MemoryStore
from runtime.settings import Settings
from runtime.status import ModelState, ModelStatus
from runtime.types import Job, Message, ModelInfo, TemplateOptions, Token, Tool

if TYPE_CHECKING:
    from middleware.connection.runner import DeadlineRunner

INFO = ModelInfo(
    name="fake",
    revision=None,
    source="folder",
    architecture="FakeForCausalLM",
    parameters=1,
    dtype="float32",
    device="cpu",
    context_length=10_000_000_000,
    vocabulary_size=256,
    chat_template=True,
    load_seconds=0.5,
    warmup_seconds=0.1,
    weights_bytes=4,
    engine="fake",
    weight_types=("float32",),
)


@dataclass
class FakeEngine:
    """A fake engine that generates the same words for every request, one word per token, and records its requests.

    Args:
        words: the tokens of every sequence.
        token_length: the tokens per prompt, whatever its text, or a function of the text.
        pause: seconds before each token.
        fail_after: the number of tokens after which it raises ``failure``.
        cached_tokens: how many tokens of each prompt were in the prefix cache.
        stop_string: the stop string that ends every sequence; None for an end token.

    ``generated`` counts the tokens of all requests. A token's id is its word's index, its log-probability
    -(index + 1) / 4, and the top tokens at every position are the words in their order.
    """

    words: tuple[str, ...] = ("Hello", " there", ".")
    token_length: int | Callable[[str], int] = 1
    pause: float = 0
    fail_after: int | None = None
    failure: Exception = field(default_factory=lambda: ServiceError("planted"))
    cached_tokens: int = 0
    stop_string: str | None = None
    info: ModelInfo = INFO
    chat_stops: tuple[str, ...] = ()
    memory_bytes: int = 1
    alive: bool = True
    beating: bool = True
    jobs: list[tuple[Job, ...]] = field(default_factory=list)
    chats: list[tuple[Message, ...]] = field(default_factory=list)
    tools: list[tuple[Tool, ...]] = field(default_factory=list)  # of each chat
    template_options: list[TemplateOptions | None] = field(default_factory=list)  # of each chat
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    open_streams: int = 0
    generated: int = 0

    async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        return tuple(i % self.info.vocabulary_size for i in range(self._length(text)))

    async def encode_text(
        self, text: str, *, add_special_tokens: bool = True, background: bool = False
    ) -> tuple[int, ...]:
        return tuple(range(self._length(text) + add_special_tokens))

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: TemplateOptions | None = None,
        background: bool = False,
    ) -> tuple[int, ...]:
        self.chats.append(tuple(messages))
        self.tools.append(tuple(tools))
        self.template_options.append(options)
        return await self.encode("".join(message.content for message in messages))

    async def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: TemplateOptions | None = None,
        background: bool = False,
    ) -> str:
        self.tools.append(tuple(tools))
        self.template_options.append(options)
        return "".join(f"<{message.role}>{message.content}" for message in messages)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return {"eos_token": "<end>"}

    @property
    def chat_template(self) -> str | None:
        return "{{ messages }}"

    async def decode(self, ids: Sequence[int], field: str, *, background: bool = False) -> str:
        check_ids(ids, field, self.info.vocabulary_size, self.token_bytes)
        return b"".join(map(self.token_bytes, ids)).decode()

    def token_name(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode().replace(" ", "_")

    async def encode_plain(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        if re.fullmatch("[A-Z]", text):  # the label of an option
            return (ord(text) - ord("A"),)
        return tuple(range(self._length(text)))

    def _length(self, text: str) -> int:
        return self.token_length if isinstance(self.token_length, int) else self.token_length(text)

    def token_bytes(self, token_id: int) -> bytes:
        return self.words[token_id].encode() if token_id < len(self.words) else b""

    async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        for job in jobs:
            check_token_ids(job, self.info.vocabulary_size, self.token_bytes)
        self.jobs.append(tuple(jobs))
        self.open_streams += 1
        sent = 0
        try:
            rows = [(job.sequence_params(number), number) for job in jobs for number in range(job.params.n)]
            chosen = [params.forced or tuple(range(len(self.words))) for params, _ in rows]
            limits = [params.max_new_tokens for params, _ in rows]
            for position in itertools.count():
                live = [row for row, limit in enumerate(limits) if position < min(limit, len(chosen[row]))]
                if not live:
                    return
                for row in live:
                    await asyncio.sleep(self.pause)
                    if sent == self.fail_after:
                        raise self.failure
                    sent += 1
                    self.generated += 1
                    token_id = chosen[row][position]
                    last = position == len(chosen[row]) - 1 and not rows[row][0].forced
                    cut = position == limits[row] - 1
                    reason = "stop" if last else "length" if cut else None
                    params, number = rows[row]
                    yield Token(
                        row,
                        token_id,
                        self.words[token_id] if token_id < len(self.words) else "",
                        reason,  # type: ignore[arg-type]
                        logprob=None if params.logprobs is None else _logprob(token_id),
                        top_logprobs=tuple((i, _logprob(i)) for i in range(min(params.logprobs or 0, len(self.words)))),
                        cached_tokens=self.cached_tokens if position == number == 0 else 0,
                        stop=self.stop_string if last else None,
                    )
        finally:
            self.open_streams -= 1

    def close(self, grace: float = 0) -> None:
        self.alive = self.beating = False


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> dict[str, object]:
    """Return an answer's usage."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def _logprob(token_id: int) -> float:
    return -(token_id + 1) / 4


@dataclass
class FakeModels:
    """Model management with one fake model.

    Args:
        engine_: the model's engine.
        failure: an error that is raised instead of returning the engine.
        ready: whether requests are answered.
        draining: whether the service is shutting down.
        alive: whether the process is healthy.
        state: the model's state; by default ``ready`` or ``loading``, depending on ``ready``.
        stage: the stage of its load.
        progress: the progress of its load.
        error: the reason why its load failed.
        leases: the number of leases that are held now.
    """

    engine_: FakeEngine = field(default_factory=FakeEngine)
    failure: Exception | None = None
    ready: bool = True
    draining: bool = False
    alive: bool = True
    state: ModelState | None = None
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    leases: int = 0

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[FakeEngine]:
        self._known(name)
        if self.failure is not None:
            raise self.failure
        self.leases += 1
        try:
            yield self.engine_
        finally:
            self.leases -= 1

    def find(self, name: str) -> ModelStatus:
        self._known(name)
        return self.status()[0]

    def load(self, name: str) -> ModelStatus:
        self._known(name)
        return self.status()[0]

    async def watch(self, name: str) -> AsyncGenerator[ModelStatus, None]:
        self._known(name)
        yield self.status()[0]

    async def unload(self, name: str) -> ModelStatus:
        self._known(name)
        return replace(self.status()[0], state="unloaded", info=None)

    async def set_default(self, name: str) -> ModelStatus:
        self._known(name)
        return self.status()[0]

    def _known(self, name: str | None) -> None:
        if name not in (None, "fake"):
            raise ModelNotFound(f"no model {name!r} here; served: fake", param="model")

    def status(self) -> list[ModelStatus]:
        return [
            ModelStatus(
                id="fake",
                source="folder",
                state=self.state or ("ready" if self.ready else "loading"),
                default=True,
                created=1,
                stage=self.stage,
                progress=self.progress,
                error=self.error,
                info=self.engine_.info,
            )
        ]


def fake_context(engine: FakeEngine | None = None, *, limits: RequestLimits | None = None, **models: object) -> Context:
    """Return a context with a fake model, a clock that stands still and ids that count up."""
    from tests.support.fake_encoder import FakeEncoder  # it is built on this module

    numbers = itertools.count(1)
    return Context(
        models=FakeModels(engine or FakeEncoder(), **models),  # type: ignore[arg-type]
        clock=Clock(time=lambda: 1_700_000_000.5, monotonic=lambda: 105.0),
        new_id=lambda: f"id{next(numbers)}",
        limits=limits or RequestLimits(),
        version="0.test",
        started=100.0,
    )


def caching(ctx: Context, clock: Callable[[], float] | None = None, *, per_caller: bool = True) -> Context:
    """Return the same context with a response cache in memory, whose entries live an hour.

    Args:
        ctx: the context.
        clock: returns Unix time in seconds; by default the context's clock.
        per_caller: whether each caller has separate entries.
    """
    clock = clock or ctx.clock.time
    cache = ResponseCache(
        MemoryStore(2**20, 3600, clock),
        limit_bytes=2**20,
        ttl_seconds=3600,
        per_caller=per_caller,
        clock=clock,
        monotonic=time.monotonic,
    )
    return replace(ctx, cache=cache)


@asynccontextmanager
async def running_app(ctx: Context | None = None, **settings: object) -> AsyncIterator[tuple[DeadlineRunner, Settings]]:
    """Run the real application with a fake context, without a port. Arguments as for ``serving``.

    Yields:
        The application's runner, and its settings.
    """
    from app import create_app  # imported here, because most users of the fakes need no HTTP
    from middleware.connection.runner import DeadlineRunner

    loaded = Settings.load(**settings)
    runner = DeadlineRunner.of(
        create_app(loaded, ctx or fake_context()),
        loaded,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        yield runner, loaded
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serving(ctx: Context | None = None, **settings: object) -> AsyncIterator[str]:
    """Serve the real application with a fake context on a real port, as ``server.serve`` does.

    Args:
        ctx: the context; by default a plain fake one.
        settings: settings that differ from the defaults.

    Yields:
        The service's base URL.
    """
    from aiohttp import web

    async with running_app(ctx, **settings) as (runner, _):
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait until a condition holds; ``TimeoutError`` if it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is any expression, so there is no event to wait for
            await asyncio.sleep(0.005)


def fake_choice(sequence: TextSequence, prefix: Sequence[int], banned: Sequence[int], vocabulary: int) -> Sampled:
    """Return the fake model's next token, which depends on every token before it and on all that a real one depends on.

    It mostly repeats the token three positions back, so that speculative drafts can be right.
    """
    number = 0 if sequence.params.temperature == 0 else sequence.number + sequence.seed
    draw = zlib.crc32(array("q", [*prefix, len(prefix) - len(sequence.prompt), number]))
    repeats = draw % 8 and len(prefix) > 3
    chosen = prefix[-3] if repeats else (draw >> 8) % vocabulary
    place = len(prefix) - len(sequence.prompt)
    if place < len(sequence.params.forced):
        chosen = sequence.params.forced[place]
    while chosen in banned:
        chosen = (chosen + 1) % vocabulary
    if sequence.params.logprobs is None:
        return Sampled(chosen)
    logprob = -(draw % 997 + 1) / 100
    return Sampled(chosen, logprob, tuple((chosen + i, logprob - i) for i in range(sequence.params.logprobs)))


def fake_text(sequence: TextSequence, eos: frozenset[int], vocabulary: int) -> list[int]:
    """Return the tokens that a sequence must get, computed without batches, caches and drafts."""
    tokens, ends = list(sequence.prompt), sequence.params.end_ids(eos)
    for generated in range(sequence.params.max_new_tokens):
        banned = sorted(ends) if len(sequence.params.forced) <= generated < sequence.params.min_new_tokens else []
        tokens.append(fake_choice(sequence, tokens, banned, vocabulary).id)
        if tokens[-1] in ends and generated >= len(sequence.params.forced):
            break
    return tokens[len(sequence.prompt) :]


@dataclass
class FakeRunner:
    """A runner without a model (see ``fake_choice``) whose keys and values are digests of the text up to each position.

    It reads the positions that attention would read, through the sequence's blocks, and fails if one belongs to another
    text or position, or if a row breaks a rule of the ``Runner`` protocol.

    Args:
        blocks: the number of KV blocks, see ``Runner``.
        block_tokens: the tokens of a block, see ``Runner``.
        max_tokens: the most tokens of a step, see ``Runner``.
        vocabulary: the number of token ids.
        fail: returns a row's error, or None; an exception raised here fails the whole step.
        pause: seconds that a step takes.
        short_context: number of tokens above which a text's keys and values are others; 0 for none.
    """

    blocks: int = 64
    block_tokens: int = 4
    max_tokens: int = 64
    vocabulary: int = 20
    fail: Callable[[Row], ServiceError | None] = lambda row: None
    pause: float = 0
    short_context: int = 0
    block_bytes: int = 1
    steps: list[int] = field(default_factory=list)  # the number of tokens of each step
    closed: bool = False
    _slots: dict[int, int] = field(default_factory=dict)  # slot -> digest

    def step(
        self, rows: Sequence[Row], interrupt: c_int32 | None = None, *, resume: bool = False
    ) -> list[list[Sampled] | ServiceError]:
        time.sleep(self.pause)
        assert rows, "a step of nothing"
        assert len({id(row.sequence) for row in rows}) == len(rows), "a sequence has two rows"
        self.steps.append(sum(len(row.token_ids) for row in rows))
        assert self.steps[-1] <= self.max_tokens, "too many tokens"
        for row in rows:
            known = row.sequence.tokens[row.start :][: len(row.token_ids) - row.drafts]
            assert row.token_ids[: len(row.token_ids) - row.drafts] == known != [], "other tokens than the sequence's"
            assert row.samples == (1 + row.drafts if row.start + len(known) == len(row.sequence.tokens) else 0)
            lengths = (len(row.sequence.tokens), len(row.sequence.tokens) + row.drafts)
            assert {row.sequence.long_text} == {0 < self.short_context < length for length in lengths}
            self._read(row, row.start)
        written: dict[int, int] = {}
        for row in rows:
            for position, digest in list(enumerate(self._digests(row)))[row.start :]:
                slot = self._slot(row, position)
                assert slot not in written, "two rows write one slot"
                assert not resume or self._slots.get(slot) == digest, "what an interrupted step wrote is gone"
                written[slot] = digest
        self._slots |= written
        return [self.fail(row) or self._choices(row) for row in rows]

    def copy_block(self, source: int, target: int) -> None:
        for offset in range(self.block_tokens):
            held = self._slots.get(source * self.block_tokens + offset)
            if held is not None:
                self._slots[target * self.block_tokens + offset] = held

    def close(self) -> None:
        self.closed = True

    def _slot(self, row: Row, position: int) -> int:
        block = row.sequence.blocks[position // self.block_tokens]
        assert 0 <= block < self.blocks, "no such block"
        return block * self.block_tokens + position % self.block_tokens

    def _digests(self, row: Row) -> list[int]:
        text = row.sequence.tokens[: row.start] + row.token_ids
        first = 1 + row.sequence.long_text
        return list(itertools.accumulate(text, lambda digest, token: zlib.crc32(b"%d" % token, digest), initial=first))[
            1:
        ]

    def _read(self, row: Row, length: int) -> None:
        held = [self._slots.get(self._slot(row, position)) for position in range(length)]
        assert held == self._digests(row)[:length], "the cache holds another text"

    def _choices(self, row: Row) -> list[Sampled]:
        text = row.sequence.tokens[: row.start] + row.token_ids
        self._read(row, len(text))
        ends = range(len(text) - row.samples + 1, len(text) + 1)
        return [fake_choice(row.sequence, text[:end], row.banned, self.vocabulary) for end in ends]


def check_pool(pool: BlockPool, sequences: Sequence[TextSequence]) -> None:
    """Fail unless the pool's state is consistent with itself and with the blocks of the sequences."""
    held = Counter(block for sequence in sequences for block in sequence.blocks)
    assert all(len(set(sequence.blocks)) == len(sequence.blocks) for sequence in sequences)
    assert pool._ref_counts == [held[block] for block in range(pool.blocks)]
    assert sorted([*pool._free, *pool._idle, *held]) == list(range(pool.blocks)), "a block is lost or has two states"
    assert len(pool._idle) <= pool.cache_blocks
    assert (pool.used, pool.available) == (len(held), pool.blocks - len(held))
    assert {key: block for block, key in enumerate(pool._keys) if key is not None} == pool._cached
    assert all(pool._keys[block] is None for block in pool._free)
    assert all(pool._keys[block] is not None for block in pool._idle)
    for sequence in sequences:
        chain = int(sequence.long_text)
        for block in sequence.blocks[: sequence.num_cached_blocks]:
            key = pool._keys[block]
            assert key is not None
            assert key[0] == chain, "it holds a cached block without the chain before it"
            chain = pool._chain[block]
