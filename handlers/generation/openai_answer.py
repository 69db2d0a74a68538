"""Members of answers that OpenAI's routes have in common: usage of chunks, token ids, log-probabilities of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handlers.context import Context
from handlers.generation.answer import Generation
from handlers.generation.logprobs import MIN_LOGPROB
from handlers.generation.scoring import score
from handlers.protocols import Engine
from handlers.schemas.openai import OpenAIRequest
from runtime.types import Token


@dataclass(frozen=True, slots=True)
class PromptReport:
    """The additional members of one prompt.

    Args:
        token_ids: the prompt's token ids; None if they were not asked for.
        logprobs: for each token, the log-probabilities by token id; None if they were not asked for.
    """

    token_ids: list[int] | None = None
    logprobs: list[dict[str, Any] | None] | None = None

    @property
    def members(self) -> dict[str, Any]:
        """The members that were asked for, by vLLM's names."""
        members = {"prompt_token_ids": self.token_ids, "prompt_logprobs": self.logprobs}
        return {name: value for name, value in members.items() if value is not None}


async def report(request: OpenAIRequest, ids: Sequence[int], engine: Engine, ctx: Context) -> PromptReport:
    """Return what a request asks to know about a prompt.

    Args:
        request: the validated request.
        ids: the prompt's token ids.
        engine: the model's engine.
        ctx: the operation's context.

    Raises:
        ServiceError: errors of ``score``.
    """
    logprobs: list[dict[str, Any] | None] | None = None
    if request.prompt_logprobs is not None:
        scores = await score(engine, ids[:1], ids[1:], request.prompt_logprobs, background=ctx.background)
        logprobs = [None, *(_by_id(engine, token) for token in scores)]
    return PromptReport([*ids] if request.return_token_ids else None, logprobs)


def reports_prompt(request: OpenAIRequest) -> bool:
    """Whether a request asks for anything that ``report`` returns."""
    return request.return_token_ids or request.prompt_logprobs is not None


def new_token_ids(request: OpenAIRequest, answer: Generation, index: int) -> dict[str, Any]:
    """Return the member ``token_ids``: ids of a choice's tokens since the last call; nothing if not asked for."""
    return {"token_ids": answer.collected.take_ids(index)} if request.return_token_ids else {}


def stop_reason(request: OpenAIRequest, token: Token | None) -> dict[str, Any]:
    """Return vLLM's member ``stop_reason``: the request's own stop string or stop token that ended a text, or null.

    Args:
        request: the validated request.
        token: the text's last token; None if it has none.
    """
    reason: str | int | None = None
    if token is not None and token.finish_reason == "stop":
        if token.stop is not None:
            reason = token.stop if token.stop in (request.stop or ()) else None
        elif token.id in (request.stop_token_ids or ()):
            reason = token.id
    return {"stop_reason": reason}


def chunk_usage(request: OpenAIRequest, answer: Generation) -> dict[str, Any]:
    """Return the member ``usage`` of a chunk that is not the last, as the stream options ask for it: null or so far."""
    options = request.stream_options
    if options is None or not options.include_usage:
        return {}
    return {"usage": answer.collected.usage.openai() if options.continuous_usage_stats else None}


def timings(request: OpenAIRequest, answer: Generation, ctx: Context) -> dict[str, Any]:
    """Return the member ``timings``, as llama.cpp's server has it; nothing if not asked for or before the first token.

    The time of the prompt is that up to the first token, so that it includes the time in the queue.
    """
    collected = answer.collected
    if not request.timings_per_token or collected.first is None:
        return {}
    counts = {
        "prompt": (collected.prompt_tokens - collected.cached_tokens, collected.first - collected.started),
        "predicted": (collected.completion_tokens, ctx.clock.monotonic() - collected.first),
    }
    found: dict[str, Any] = {"cache_n": collected.cached_tokens}
    for name, (tokens, seconds) in counts.items():
        found |= {
            f"{name}_n": tokens,
            f"{name}_ms": seconds * 1000,
            f"{name}_per_token_ms": seconds * 1000 / tokens if tokens else None,
            f"{name}_per_second": tokens / seconds if seconds else None,
        }
    return {"timings": found}


def _by_id(engine: Engine, token: Token) -> dict[str, Any]:
    """Return the log-probabilities of the likeliest tokens and the actual one, by token id.

    The actual token's rank is known, and not null, only if it is one of the likeliest.
    """
    listed = {token_id: (rank, logprob) for rank, (token_id, logprob) in enumerate(token.top_logprobs, 1)}
    listed.setdefault(token.id, (None, token.logprob))  # type: ignore[arg-type]  # it is set, as it was asked for
    return {
        str(token_id): {
            "logprob": max(logprob, MIN_LOGPROB),
            "rank": rank,
            "decoded_token": engine.token_bytes(token_id).decode("utf-8", "replace"),
        }
        for token_id, (rank, logprob) in listed.items()
    }
