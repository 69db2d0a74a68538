"""``chat``: OpenAI's chat completions with the model's own chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, Literal

from handlers.context import Context
from handlers.generation.answer import Generation, Question, answering
from handlers.generation.answer_grammar import answer_grammar
from handlers.generation.answer_parser import AnswerParser, message
from handlers.generation.checks import (
    chat_messages,
    check_chat_chars,
    check_min_tokens,
    check_sequences,
    default_limit,
    remaining_context,
    sampling_params,
)
from handlers.generation.collect import Collected
from handlers.generation.logprobs import entries
from handlers.generation.openai_answer import (
    PromptReport,
    chunk_usage,
    new_token_ids,
    report,
    reports_prompt,
    stop_reason,
    timings,
)
from handlers.generation.prepared_request import PreparedRequest
from handlers.generation.structured import requested_grammar
from handlers.generation.tools import older_form, requested_tools
from handlers.protocols import Engine
from handlers.schemas.openai import MAX_NEW_TOKENS
from handlers.schemas.parsing import parse, parse_stream
from handlers.schemas.requests import ChatRequest
from runtime.errors import InvalidRequest
from runtime.types import FinishReason, Job, Message, SamplingParams, Token

LIMITED_NEW_TOKENS = 512
"""Maximum new tokens if the request sets no number and the caller's tokens are limited: all of them are reserved."""


async def handle(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a whole chat completion; fields as in ``ChatRequest`` and ``ChatResponse``.

    Raises:
        InvalidRequest: a limit is exceeded, or the template refuses the messages.
        ServiceError: other errors of ``Models.lease``, ``Engine.stream`` and ``Context.reserve``.
    """
    request = parse(ChatRequest, payload)
    messages = read(request, ctx)
    async with _answering(request, messages, ctx) as answer:
        head = _head(request, answer.engine, ctx, "chat.completion")
        about = await _report(request, messages, answer.engine, ctx)
        parsing = _Parsing(request, messages, answer.engine, ctx)
        deltas: list[list[dict[str, Any]]] = [[] for _ in range(request.n)]

        def render(collected: Collected) -> dict[str, Any]:
            choices = [
                {
                    "index": i,
                    "message": parsing.as_asked(message(deltas[i])),
                    "finish_reason": parsing.finish_reason(i, reason),
                    "logprobs": _logprobs(request, answer, i),
                    **stop_reason(request, collected.last[i]),
                }
                | new_token_ids(request, answer, i)
                for i, reason in enumerate(collected.reasons)
            ]
            usage = collected.usage.openai() | parsing.reasoning_usage
            return {**head, **about.members, "choices": choices, "usage": usage, **timings(request, answer, ctx)}

        return await answer.render(render, lambda token: deltas[token.sequence].extend(parsing.deltas(token)))


async def stream(payload: dict[str, Any], ctx: Context) -> AsyncGenerator[dict[str, Any], None]:
    """Yield a chat completion as OpenAI's chunks: roles, deltas and finish reasons, and the usage if asked for."""
    request = parse_stream(ChatRequest, payload)
    messages = read(request, ctx)
    started: set[int] = set()
    async with _answering(request, messages, ctx) as answer:
        about = await _report(request, messages, answer.engine, ctx)
        head = _head(request, answer.engine, ctx, "chat.completion.chunk")

        def chunk(
            index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, **ended: Any
        ) -> dict[str, Any]:
            first = about.members if not started else {}
            started.add(index)
            ids = new_token_ids(request, answer, index) if delta.get("role") is None else {}
            timed = timings(request, answer, ctx) if delta.get("role") is None else {}
            choice = {"index": index, "delta": delta, "finish_reason": None, "logprobs": logprobs} | ended | ids
            return head | first | {"choices": [choice]} | chunk_usage(request, answer) | timed

        parsing = _Parsing(request, messages, answer.engine, ctx)
        async for token in answer.tokens:
            index = token.sequence
            if index not in started:
                yield chunk(index, {"role": "assistant", "content": None if parsing.calls else ""})
            for delta in parsing.deltas(token):
                yield chunk(index, parsing.as_asked(delta), _logprobs(request, answer, index))
            if token.finish_reason is not None:
                reason = parsing.finish_reason(index, token.finish_reason)
                stop = stop_reason(request, token)
                yield chunk(index, {}, _logprobs(request, answer, index), finish_reason=reason, **stop)
        if request.include_usage:
            usage = {"usage": answer.collected.usage.openai() | parsing.reasoning_usage}
            yield head | {"choices": []} | usage | timings(request, answer, ctx)


async def count(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return the number of tokens of a chat as the model's template renders it; fields as in ``ChatRequest``.

    Raises:
        InvalidRequest: a limit is exceeded, or the template refuses the messages.
        ServiceError: errors of ``Models.lease``.
    """
    request = parse(ChatRequest, payload)
    messages = read(request, ctx)
    async with ctx.models.lease(request.model) as engine:
        return {"input_tokens": len(await encode(request, messages, engine, ctx))}


def read(request: ChatRequest, ctx: Context) -> tuple[Message, ...]:
    """Return the chat's messages after the checks that need no model.

    Raises:
        InvalidRequest: a limit is exceeded.
    """
    messages = chat_messages(request.messages)
    check_chat_chars(messages, request.definitions, ctx)
    check_sequences(1, request.n, ctx, "n")
    return messages


async def encode(request: ChatRequest, messages: Sequence[Message], engine: Engine, ctx: Context) -> tuple[int, ...]:
    """Return the tokens of a chat as the model's template renders it.

    Raises:
        InvalidRequest: the template refuses the messages.
    """
    tools, effort = requested_tools(request).tools, request.effort
    more = {} if effort is None else {"enable_thinking": False} if effort == "none" else {"reasoning_effort": effort}
    options = request.template_options(more, add_special_tokens=request.add_special_tokens)
    ids = await engine.encode_chat(messages, tools=tools, options=options, background=ctx.background)
    limits = request.new_token_limits
    return request.truncated(ids, engine.info.context_length, min(limits) if limits else None)


async def prepare(request: ChatRequest, messages: Sequence[Message], engine: Engine, ctx: Context) -> PreparedRequest:
    """Tokenize a chat and check it against the model's limits.

    Raises:
        InvalidRequest: a limit is exceeded, the template refuses the messages, or the model cannot do what is asked.
        ContextLengthExceeded: the chat fills the model's context.
    """
    ids = await encode(request, messages, engine, ctx)
    use, effort, form = requested_tools(request), request.effort, engine.answer_format
    if effort == "none" and form.reasoning != "none" and not form.switchable:
        field = "reasoning" if request.reasoning_effort is None else "reasoning_effort"
        raise InvalidRequest(f"{field}: the reasoning of this model cannot be turned off", param=field)
    if use.tools and not request.skip_special_tokens:
        raise InvalidRequest(
            "skip_special_tokens: it must be true with tools, whose calls have control tokens",
            param="skip_special_tokens",
        )
    params = _params(request, engine, ctx, engine.chat_stops)
    budget = request.thinking_token_budget
    reasoning = _reasoning(request, engine, ctx) if budget is None or effort == "none" else form.reasoning
    grammar = answer_grammar(use, form, reasoning, params.grammar, budget)
    if grammar is not None and request.ignore_eos:
        raise InvalidRequest(
            "ignore_eos: an answer that may have tool calls or limited reasoning ends with an end token",
            param="ignore_eos",
        )
    limit = min(remaining_context(len(ids), engine.info.context_length, "messages"), params.max_new_tokens)
    if params.max_new_tokens == MAX_NEW_TOKENS:
        limit = default_limit(engine, len(ids))
    check_min_tokens(request.min_tokens, limit, "min_tokens", "max_tokens")
    params = replace(params, max_new_tokens=limit, grammar=grammar)
    return PreparedRequest(engine, (Job(ids, params, ctx.background, "messages", cache_salt=request.cache_salt or ""),))


def _params(request: ChatRequest, engine: Engine, ctx: Context, stops: Sequence[str] = ()) -> SamplingParams:
    default = LIMITED_NEW_TOKENS if ctx.has_token_limit() else MAX_NEW_TOKENS
    return sampling_params(
        request,
        max_new_tokens=min(request.new_token_limits or [default]),
        n=request.n,
        min_new_tokens=request.min_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        stop=stops,
        grammar=requested_grammar(request),
        defaults=engine.info.sampling_defaults,
    )


def _reasoning(request: ChatRequest, engine: Engine, ctx: Context) -> Literal["none", "optional", "open"]:
    """Return where the answer's reasoning begins; ``none`` also if it is turned off, by the request or the settings."""
    form, arguments = engine.answer_format, request.chat_template_kwargs or {}
    off = form.switchable and arguments.get("enable_thinking") is False
    if not request.skip_special_tokens or off or request.effort == "none":
        return "none"
    if request.reasoning_format == "none" or not ctx.reasoning:
        return "none"
    # Without the start of an answer the prompt does not end inside reasoning.
    begun = request.add_generation_prompt is not False and not request.continue_final_message
    return form.reasoning if begun or form.reasoning != "open" else "optional"


def _answering(
    request: ChatRequest, messages: Sequence[Message], ctx: Context
) -> AbstractAsyncContextManager[Generation]:
    use, template = requested_tools(request), request.template_options()
    apart = ctx.reasoning and request.reasoning_format != "none"
    reasoning = (request.effort, request.thinking_token_budget, apart)
    return answering(
        request,
        lambda engine: Question(
            "chat",
            messages,
            _params(request, engine, ctx),
            template=template,
            tools=use,
            reasoning=reasoning,
            prompt=request.prompt_options,
        ),
        lambda engine: prepare(request, messages, engine, ctx),
        ctx,
    )


async def _report(request: ChatRequest, messages: Sequence[Message], engine: Engine, ctx: Context) -> PromptReport:
    if not reports_prompt(request):
        return PromptReport()
    return await report(request, await encode(request, messages, engine, ctx), engine, ctx)


class _Parsing:
    """Parses the answers of a request: each token becomes deltas of its sequence's message.

    Attributes:
        calls: whether the answers may have tool calls.
    """

    def __init__(self, request: ChatRequest, messages: Sequence[Message], engine: Engine, ctx: Context) -> None:
        use, reasoning = requested_tools(request), _reasoning(request, engine, ctx)
        self.calls = bool(use.tools)
        self._older_form = not request.tools
        self._include_reasoning = request.include_reasoning
        echoed = messages[-1].content if request.echo and messages[-1].role == "assistant" else ""
        self._echoes = [echoed] * request.n  # not yet returned
        self._reasoning_tokens = 0
        self._parsers = [
            AnswerParser(
                engine.answer_format, use.names, reasoning=reasoning, calls_only=use.required, new_id=ctx.new_id
            )
            for _ in range(request.n)
        ]

    def deltas(self, token: Token) -> list[dict[str, Any]]:
        """Return the deltas that are final with a token."""
        parser = self._parsers[token.sequence]
        deltas = parser.push(token.id, token.text)
        self._reasoning_tokens += parser.reasoned
        if token.finish_reason is not None:
            deltas = [*deltas, *parser.finish()]
        if not self._include_reasoning:
            deltas = [delta for delta in deltas if "reasoning_content" not in delta]
        if echo := self._echoes[token.sequence]:
            self._echoes[token.sequence] = ""
            deltas = [{"content": echo}, *deltas]
        return deltas

    @property
    def reasoning_usage(self) -> dict[str, Any]:
        """The member of the usage that counts tokens of reasoning."""
        return {"completion_tokens_details": {"reasoning_tokens": self._reasoning_tokens}}

    def finish_reason(self, index: int, reason: FinishReason) -> str:
        """Return OpenAI's finish reason of a sequence that ended with ``reason``."""
        parser = self._parsers[index]
        if reason == "stop" and parser.calls and parser.complete:
            return "function_call" if self._older_form else "tool_calls"
        return reason

    def as_asked(self, part: dict[str, Any]) -> dict[str, Any]:
        """Return a message, or the delta of one, with calls in the form in which the request has its functions."""
        return older_form(part) if self._older_form else part


def _logprobs(request: ChatRequest, answer: Generation, index: int) -> dict[str, Any] | None:
    """Return the log-probabilities of the tokens since the last call; None if there are none or none were asked for."""
    tokens = answer.collected.take(index)
    if not tokens:
        return None
    return {"content": entries(answer.engine, tokens, as_ids=request.return_tokens_as_token_ids)}


def _head(request: ChatRequest, engine: Engine, ctx: Context, kind: str) -> dict[str, Any]:
    head = {
        "id": f"chatcmpl-{request.request_id or ctx.new_id()}",
        "object": kind,
        "created": int(ctx.clock.time()),
        "model": engine.info.name,
        "system_fingerprint": engine.info.system_fingerprint,
    }
    return head if request.service_tier is None else head | {"service_tier": "default"}
