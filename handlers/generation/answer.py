"""From a request to the tokens of its answer, which the response cache may have already."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any, Literal

from handlers.context import Context
from handlers.generation.cache_control import CacheControl
from handlers.generation.collect import Collected, collecting
from handlers.generation.plan import PreparedRequest, generating, paid
from handlers.protocols import Engine
from handlers.schemas.base import Cacheable
from runtime.errors import ExceedsRateLimit, RateLimited
from runtime.types import CacheUse, Message, ModelInfo, SamplingParams, Token

_MANY = 1_000  # log-probabilities that are rendered on the event loop, in a few milliseconds


@dataclass(frozen=True, slots=True)
class Question:
    """All of a request that decides its answer, whatever the model, with defaults filled in; and nothing else.

    Args:
        kind: whether a template is put around the texts.
        texts: prompts, or a chat's messages.
        params: as asked for; the model may leave room for fewer tokens.
        max_length: most tokens of prompt and new text together, if that is asked.
    """

    kind: Literal["text", "chat"]
    texts: Sequence[str | Message]
    params: SamplingParams
    max_length: int | None = None

    @property
    def repeatable(self) -> bool:
        """Whether it must be answered alike each time."""
        return self.params.temperature == 0 or self.params.seed is not None

    @property
    def sequences(self) -> int:
        """How many there will be."""
        return self.params.n * (len(self.texts) if self.kind == "text" else 1)

    def key(self, model: ModelInfo, caller: str) -> str:
        """What the answer is kept under: 64 hexadecimal digits, which tell nothing of the texts.

        Args:
            model: that answers; any other, or other numbers in it, gives another key.
            caller: keeps callers apart.
        """
        params = {field.name: getattr(self.params, field.name) for field in fields(SamplingParams)}
        params["logit_bias"] = sorted((token, bias + 0.0) for token, bias in self.params.logit_bias)
        if self.params.temperature == 0:  # nothing is drawn, so nothing that shapes the draw matters
            params |= {"seed": None, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        values = [value + 0.0 if isinstance(value, float) else value for value in params.values()]  # there is one zero
        texts = [text if isinstance(text, str) else (text.role, text.content) for text in self.texts]
        named = (model.name, model.revision, model.fingerprint, model.context_length)
        parts = [caller, *named, self.kind, texts, self.max_length, *values]
        return sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer under way.

    Args:
        engine: that gives it, or gave it when it was kept.
        collected: what has come so far.
        tokens: each has been added to ``collected`` when it comes out.
    """

    engine: Engine
    collected: Collected
    tokens: AsyncIterator[Token]

    async def whole(self) -> Collected:
        """Everything."""
        async for _ in self.tokens:
            pass
        return self.collected

    async def rendered(self, render: Callable[[Collected], dict[str, Any]]) -> dict[str, Any]:
        """Everything, as it is answered; on a thread where there is much to report, so that the event loop goes on.

        Args:
            render: makes the answer; it may touch nothing that another thread changes.
        """
        collected = await self.whole()
        if collected.unreported <= _MANY:
            return render(collected)
        return await asyncio.to_thread(render, collected)


@asynccontextmanager
async def answering(
    request: Cacheable, question: Question, plan: Callable[[Engine], Awaitable[PreparedRequest]], ctx: Context
) -> AsyncIterator[Generation]:
    """Answer a question. Leaving the block, however, stops the work for it, if nobody else waits for the same.

    Args:
        question: ``request``'s.
        plan: makes the request ready, where the answer must be computed.

    Raises:
        ServiceError: see ``handlers.context`` and ``plan``.
    """
    control = CacheControl.parse(request.cache_control)
    async with AsyncExitStack() as held:
        engine: Engine = await held.enter_async_context(ctx.models.lease(request.model))
        if ctx.cache is None or not question.repeatable or not control.store:
            use = None
            if ctx.cache is not None:
                use = CacheUse("bypass")
                ctx.cache.bypass()
            async with generating(await plan(engine), ctx, use) as (collected, tokens):
                yield Generation(engine, collected, tokens)
            return

        began = False

        async def start() -> tuple[int, AsyncGenerator[Token, None]]:
            nonlocal began
            began = True
            ready = await plan(engine)
            return ready.prompt_tokens, await paid(ready, ctx)

        key = question.key(engine.info, ctx.caller() if ctx.cache.per_caller else "")
        async with AsyncExitStack() as reading:
            while True:
                joined = ctx.cache.answer(
                    key,
                    engine.info.name,
                    held,
                    start,
                    reuse=control.reuse,
                    max_age=control.max_age,
                    queued=ctx.queued,
                )
                try:
                    cached, prompt_tokens, stream = await reading.enter_async_context(joined)
                    break
                except (RateLimited, ExceedsRateLimit):
                    if began:  # else it is somebody else who may not, whose answer this was to share
                        raise
            found = Collected(prompt_tokens, question.sequences, cached)
            async with collecting(found, stream, ctx) as (collected, tokens):
                yield Generation(engine, collected, tokens)
