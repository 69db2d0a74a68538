"""Answers a generating request: from the response cache, from an identical request in flight, or by generation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import astuple, dataclass, fields
from hashlib import sha256
from typing import Any, Literal

from handlers.context import Context
from handlers.generation.cache_control import CacheControl
from handlers.generation.collect import Collected, collecting
from handlers.generation.prepared_request import PreparedRequest, generating, start_charged
from handlers.generation.tools import NO_TOOLS, ToolUse
from handlers.protocols import Engine
from handlers.schemas.base import Cacheable
from runtime.errors import ExceedsRateLimit, RateLimited
from runtime.types import CacheUse, Message, ModelInfo, SamplingParams, TemplateOptions, Token

_MAX_RENDERED_ON_LOOP = 1_000  # log-probabilities rendered on the event loop, which takes a few milliseconds


@dataclass(frozen=True, slots=True)
class Question:
    """The parts of a request that determine its response apart from the model, with defaults filled in.

    Args:
        kind: ``text`` for raw prompts, ``chat`` for messages that the chat template formats.
        texts: the prompts, or the chat's messages.
        params: the requested sampling parameters; the model's context may allow fewer new tokens.
        max_length: maximum number of tokens of prompt and new text together; None for no such limit.
        template: how a chat is formatted; None for raw prompts.
        tools: the tools of a chat, and how they may be used.
        reasoning: what determines how a chat's model reasons.
        prompt: what determines how the texts become tokens, and who may share the response.
    """

    kind: Literal["text", "chat"]
    texts: Sequence[str | Sequence[int] | Message]
    params: SamplingParams
    max_length: int | None = None
    template: TemplateOptions | None = None
    tools: ToolUse = NO_TOOLS
    reasoning: tuple[object, ...] = ()
    prompt: tuple[object, ...] = ()

    @property
    def repeatable(self) -> bool:
        """Whether the response is deterministic: greedy sampling or a fixed seed."""
        return self.params.temperature == 0 or self.params.seed is not None

    @property
    def sequences(self) -> int:
        """The number of sequences to generate."""
        return self.params.n * (len(self.texts) if self.kind == "text" else 1)

    def key(self, model: ModelInfo, caller: str) -> str:
        """Return the cache key: 64 hexadecimal digits, a SHA-256 from which the texts cannot be read.

        Args:
            model: the model that answers; its name, revision, fingerprint and space for tokens are in the key.
            caller: the caller's identifier if each caller has its own entries, else "".
        """
        params = {field.name: getattr(self.params, field.name) for field in fields(SamplingParams)}
        params["grammar"] = self.params.grammar and self.params.grammar.key
        params["logit_bias"] = sorted((token, bias + 0.0) for token, bias in self.params.logit_bias)
        if self.params.temperature == 0:  # greedy: the parameters of random sampling have no effect
            params |= {"seed": None, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        values = [value + 0.0 if isinstance(value, float) else value for value in params.values()]  # -0.0 becomes 0.0
        texts = [astuple(text) if isinstance(text, Message) else text for text in self.texts]
        template = self.template and astuple(self.template)
        named = (model.name, model.revision, model.fingerprint, model.context_length, model.kv_tokens)
        chat = (template, astuple(self.tools), self.reasoning, self.prompt)
        parts = [caller, *named, self.kind, texts, *chat, self.max_length, *values]
        return sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Generation:
    """A response in progress.

    Args:
        engine: the model's engine.
        collected: the tokens yielded so far.
        tokens: the response's tokens; each is added to ``collected`` before it is yielded.
    """

    engine: Engine
    collected: Collected
    tokens: AsyncIterator[Token]

    async def render(
        self, build: Callable[[Collected], dict[str, Any]], each: Callable[[Token], object] = lambda token: None
    ) -> dict[str, Any]:
        """Read all tokens and render the response, on a thread if many log-probabilities would block the event loop.

        Args:
            build: builds the response; must not use data that another thread changes.
            each: is called with each token.
        """
        async for token in self.tokens:
            each(token)
        if self.collected.unreported <= _MAX_RENDERED_ON_LOOP:
            return build(self.collected)
        return await asyncio.to_thread(build, self.collected)


@asynccontextmanager
async def answering(
    request: Cacheable,
    ask: Callable[[Engine], Question],
    prepare: Callable[[Engine], Awaitable[PreparedRequest]],
    ctx: Context,
) -> AsyncIterator[Generation]:
    """Lease the model and yield the response in progress. Leaving the block stops the generation unless it is shared.

    Args:
        request: the validated request.
        ask: returns the parts of ``request`` that determine its response, with the model's defaults filled in.
        prepare: tokenizes and checks the request; called only if the response must be generated.
        ctx: the operation's context.

    Raises:
        ServiceError: errors of ``prepare``, ``Models.lease``, ``Context.reserve`` and ``Engine.stream``.
    """
    control = CacheControl.parse(request.cache_control)
    async with AsyncExitStack() as lease:
        engine: Engine = await lease.enter_async_context(ctx.models.lease(request.model))
        question = ask(engine)
        if ctx.cache is None or not question.repeatable or not control.store:
            use = None
            if ctx.cache is not None:
                use = CacheUse("bypass")
                ctx.cache.bypass()
            async with generating(await prepare(engine), ctx, use) as (collected, tokens):
                yield Generation(engine, collected, tokens)
            return

        started = False

        @asynccontextmanager
        async def start() -> AsyncIterator[tuple[int, AsyncIterator[Token]]]:
            nonlocal started
            started = True
            prepared = await prepare(engine)
            async with start_charged(prepared, ctx) as tokens:
                yield prepared.prompt_tokens, tokens

        key = question.key(engine.info, ctx.caller() if ctx.cache.per_caller else "")
        async with AsyncExitStack() as reader:
            while True:
                response = ctx.cache.answer(
                    key,
                    engine.info.name,
                    lease,
                    start,
                    reuse=control.reuse,
                    max_age=control.max_age,
                    background=ctx.background,
                )
                try:
                    use, prompt_tokens, stream = await reader.enter_async_context(response)
                    break
                except (RateLimited, ExceedsRateLimit):
                    if started:  # else another caller, whose computation this request joined, exceeds its limit: retry
                        raise
            collected = Collected(prompt_tokens, question.sequences, use)
            async with collecting(collected, stream, ctx) as (_, tokens):
                yield Generation(engine, collected, tokens)
