"""A model-free engine and context, for tests of everything around the model."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from handlers.context import Clock, Context, Limits
from runtime.errors import ModelNotFound, ServiceError
from runtime.settings import Settings
from runtime.types import Job, Message, ModelInfo, ModelState, ModelStatus, Token

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
)


@dataclass
class FakeEngine:
    """Says the same words to everyone, one word a token, and remembers what it was asked.

    Args:
        words: the tokens of every sequence.
        token_length: tokens per prompt, whatever its text, or a function of the text.
        pause: seconds before each token.
        fail_after: raise ``failure`` after that many tokens.
    """

    words: tuple[str, ...] = ("Hello", " there", ".")
    token_length: int | Callable[[str], int] = 1
    pause: float = 0
    fail_after: int | None = None
    failure: Exception = field(default_factory=lambda: ServiceError("planted"))
    info: ModelInfo = INFO
    chat_stops: tuple[str, ...] = ()
    memory_bytes: int = 1
    alive: bool = True
    jobs: list[tuple[Job, ...]] = field(default_factory=list)
    chats: list[tuple[Message, ...]] = field(default_factory=list)
    open_streams: int = 0

    async def encode(self, text: str) -> tuple[int, ...]:
        length = self.token_length if isinstance(self.token_length, int) else self.token_length(text)
        return tuple(range(length))

    async def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        self.chats.append(tuple(messages))
        return await self.encode("".join(message.content for message in messages))

    async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        self.jobs.append(tuple(jobs))
        self.open_streams += 1
        sent = 0
        try:
            limits = [job.params.max_new_tokens for job in jobs for _ in range(job.params.n)]
            for position in itertools.count():
                live = [row for row, limit in enumerate(limits) if position < min(limit, len(self.words))]
                if not live:
                    return
                for row in live:
                    await asyncio.sleep(self.pause)
                    if sent == self.fail_after:
                        raise self.failure
                    sent += 1
                    last = position == len(self.words) - 1
                    cut = position == limits[row] - 1
                    reason = "stop" if last else "length" if cut else None
                    yield Token(row, position, self.words[position], reason)  # type: ignore[arg-type]
        finally:
            self.open_streams -= 1

    def close(self, grace: float = 0) -> None:
        self.alive = False


@dataclass
class FakeModels:
    """One fake model.

    Args:
        engine_: the engine of that model.
        failure: raised instead of giving the engine.
        ready: whether requests are answered.
        draining: whether the service shuts down.
        state: of the model; by default ``ready`` or ``loading`` as ``ready`` says.
        stage: what its load is doing, ``progress`` how far that is.
        error: why its load failed.
    """

    engine_: FakeEngine = field(default_factory=FakeEngine)
    failure: Exception | None = None
    ready: bool = True
    draining: bool = False
    state: ModelState | None = None
    stage: str | None = None
    progress: float | None = None
    error: str | None = None

    async def engine(self, name: str | None) -> FakeEngine:
        if name not in (None, "fake"):
            raise ModelNotFound(f"no model {name!r} here; served: fake", param="model")
        if self.failure is not None:
            raise self.failure
        return self.engine_

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
                info=INFO,
            )
        ]


def fake_context(engine: FakeEngine | None = None, *, limits: Limits | None = None, **models: object) -> Context:
    """A context on a fake model, with a clock that stands still and ids that count."""
    numbers = itertools.count(1)
    return Context(
        models=FakeModels(engine or FakeEngine(), **models),  # type: ignore[arg-type]
        clock=Clock(time=lambda: 1_700_000_000.5, monotonic=lambda: 105.0),
        new_id=lambda: f"id{next(numbers)}",
        limits=limits or Limits(),
        version="0.test",
        started=100.0,
    )


@asynccontextmanager
async def serving(ctx: Context | None = None, **settings: object) -> AsyncIterator[str]:
    """The real application on a fake context, served on a real port as ``server.serve`` does it.

    Args:
        ctx: the context; a plain fake one if left out.
        settings: other settings than the defaults.

    Yields:
        The service's base URL.
    """
    from aiohttp import web  # here, because most users of the fakes know nothing of HTTP

    from app import create_app
    from middleware.receiving import DeadlineRunner

    loaded = Settings.load(**settings)
    runner = DeadlineRunner(
        create_app(loaded, ctx or fake_context()),
        header_timeout=loaded.header_timeout_seconds,
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for something that will be true soon; ``TimeoutError`` if it is not."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is any plain fact, nobody would set an event
            await asyncio.sleep(0.005)
