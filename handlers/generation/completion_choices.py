"""The choices of OpenAI's completions: their prompts, echoes, log-probabilities, and the best of several."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handlers.context import Context
from handlers.generation.answer import Generation
from handlers.generation.checks import encode_all, prompt_texts
from handlers.generation.logprobs import TextOffsets, columns, entries
from handlers.generation.openai_answer import PromptReport, new_token_ids, report, reports_prompt, stop_reason
from handlers.generation.scoring import score
from handlers.protocols import Engine
from handlers.schemas.openai import MAX_NEW_TOKENS
from handlers.schemas.requests import CompletionsRequest
from runtime.types import FinishReason, Token

DEFAULT_MAX_TOKENS = 16


def new_tokens(request: CompletionsRequest) -> int:
    """Return the maximum number of new tokens of each completion."""
    if request.n_predict is None:
        return DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    wanted = MAX_NEW_TOKENS if request.n_predict < 0 else request.n_predict
    return wanted if request.max_tokens is None else min(wanted, request.max_tokens)


async def encode_prompts(request: CompletionsRequest, engine: Engine, ctx: Context) -> list[tuple[int, ...]]:
    """Return the token ids of the prompts."""
    prompts = await encode_all(engine, request.prompt, ctx, special=request.add_special_tokens is not False)
    return [request.truncated(ids, engine.info.context_length, new_tokens(request)) for ids in prompts]


@dataclass(slots=True)
class _Echo:
    """An echoed prompt: its text, its log-probability entries, and its tokens' offsets in characters."""

    text: str
    entries: list[dict[str, Any]]
    offsets: list[int]


@dataclass(slots=True)
class Choices:
    """Builds the choices of a response, whole or piece by piece.

    Args:
        request: the validated request.
        answer: the generation that the choices come from.
        echoes: one per prompt; empty without ``echo``.
        offsets: one per choice, its token offsets; None before its first piece.
        reports: one per prompt; empty if nothing about the prompts was asked for.
    """

    request: CompletionsRequest
    answer: Generation
    echoes: list[_Echo]
    offsets: list[TextOffsets | None]
    reports: list[PromptReport]

    def piece(self, index: int, text: str, reason: FinishReason | None, token: Token | None) -> dict[str, Any]:
        """Return a choice's text and log-probabilities since the last call; the first piece has the echo, too.

        Args:
            index: number of the sequence.
            text: its new text.
            reason: its finish reason, if it has ended.
            token: the last token of the text.
        """
        earlier, starts, offsets = list[dict[str, Any]](), list[int](), self.offsets[index]
        about = dict[str, Any]()
        if offsets is None:
            start = 0
            if self.echoes:
                echo = self.echoes[index // self.request.generated]
                text, start = echo.text + text, len(echo.text)
                earlier, starts = [*echo.entries], [*echo.offsets]
            offsets = self.offsets[index] = TextOffsets(start)
            about = self.reports[index // self.request.generated].members if self.reports else {}
        piece: dict[str, Any] = {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
        if reason is not None:
            piece |= stop_reason(self.request, token)
        if self.request.logprobs is not None:
            as_ids = self.request.return_tokens_as_token_ids
            new = entries(self.answer.engine, self.answer.collected.take(index), as_ids=as_ids)
            starts += [offsets.add(bytes(entry["bytes"])) for entry in new]
            piece["logprobs"] = columns([*earlier, *new], starts)
        return piece | about | new_token_ids(self.request, self.answer, index)


async def choices_of(request: CompletionsRequest, answer: Generation, ctx: Context) -> Choices:
    """Return the builder of a response's choices, with what the request asks to know about the prompts."""
    engine, echoes, reports = answer.engine, list[_Echo](), list[PromptReport]()
    scored = request.echo and request.logprobs is not None
    shortened = request.truncate_prompt_tokens is not None
    ids = await encode_prompts(request, engine, ctx) if scored or shortened or reports_prompt(request) else []
    if request.echo:
        texts = await prompt_texts(engine, ids if shortened else request.prompt, ctx)
        echoes = [
            await _echo(text, ids[i], request, engine, ctx) if scored else _Echo(text, [], [])
            for i, text in enumerate(texts)
        ]
    if reports_prompt(request):
        reports = [await report(request, prompt, engine, ctx) for prompt in ids]
    return Choices(request, answer, echoes, [None] * answer.collected.sequences, reports)


async def _echo(text: str, ids: Sequence[int], request: CompletionsRequest, engine: Engine, ctx: Context) -> _Echo:
    """Return the echo of a prompt, with its tokens' log-probabilities."""
    first = Token(0, ids[0], "")
    scores = await score(engine, ids[:1], ids[1:], request.logprobs or 0, background=ctx.background)
    as_ids = request.return_tokens_as_token_ids
    return await asyncio.to_thread(_locate_tokens, text, engine, [first, *scores], as_ids)


def _locate_tokens(text: str, engine: Engine, tokens: Sequence[Token], as_ids: bool) -> _Echo:
    """Build the echo from a prompt's tokens, and find each token's offset in the text."""
    listed = entries(engine, tokens, as_ids=as_ids)
    listed[0]["logprob"] = None
    raw, position, offsets, starts = text.encode(), 0, TextOffsets(), list[int]()
    for entry in listed:
        raw_token = bytes(entry["bytes"])
        # The text has neither the tokens nor the blank before the first word that the tokenizer adds.
        matched = next(
            (candidate for candidate in (raw_token, raw_token.lstrip(b" ")) if raw.startswith(candidate, position)), b""
        )
        position += len(matched)
        starts.append(offsets.add(matched))
    return _Echo(text, listed, starts)


class Ranking:
    """Finds the completions with the highest mean log-probability per token, of those generated in excess of ``n``.

    Args:
        request: the validated request.
        sequences: the number of completions generated.
    """

    def __init__(self, request: CompletionsRequest, sequences: int) -> None:
        self._request = request
        self._sums = [0.0] * sequences
        self._counts = [0] * sequences

    def add(self, token: Token) -> None:
        """Take a completion's next token."""
        self._sums[token.sequence] += token.logprob or 0.0
        self._counts[token.sequence] += 1

    def best(self) -> list[int]:
        """Return the numbers of the completions to return: of each prompt, the best first; all if none is in excess."""
        n, generated = self._request.n, self._request.generated
        if n == generated:
            return list(range(len(self._sums)))
        groups = [range(start, start + generated) for start in range(0, len(self._sums), generated)]
        return [index for group in groups for index in sorted(group, key=self._mean, reverse=True)[:n]]

    def _mean(self, index: int) -> float:
        return self._sums[index] / max(1, self._counts[index])
