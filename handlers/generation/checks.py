"""Checks of a generating request's fields, and their conversion to the engine's types."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import TypeAlias

from handlers.context import Context
from handlers.protocols import Engine
from handlers.schemas.base import Sampling
from handlers.schemas.messages import ChatMessage
from handlers.schemas.tools import FunctionDefinition
from runtime.errors import ContextLengthExceeded, InvalidRequest
from runtime.types import Grammar, Message, SamplingParams, ToolCall

Prompt: TypeAlias = str | Sequence[int]
"""A text or token ids."""

_MAX_CONCURRENT_TEXTS = 16  # tokenized concurrently


def check_prompt_chars(texts: Sequence[Prompt], ctx: Context, field_name: str) -> None:
    """Check the total length of the texts against ``RequestLimits.max_prompt_chars``; a token id counts as a character.

    Args:
        texts: all texts of the request.
        ctx: the operation's context, with the limit.
        field_name: the field of the texts, for the error.

    Raises:
        InvalidRequest: the texts are too long; the message names the limit.
    """
    total = sum(len(text) for text in texts)
    if total > ctx.limits.max_prompt_chars:
        raise InvalidRequest(
            f"{field_name}: {total} characters exceed the limit of {ctx.limits.max_prompt_chars} (MAX_PROMPT_CHARS); "
            "shorten the text",
            param=field_name,
        )


def check_chat_chars(messages: Iterable[Message], tools: Iterable[FunctionDefinition], ctx: Context) -> None:
    """Check the length of a chat's messages and tools together, as ``check_prompt_chars`` does."""
    definitions = [tool.model_dump_json() for tool in tools]
    check_prompt_chars([*message_texts(messages), *definitions], ctx, "messages")


def check_sequences(prompts: int, n: int, ctx: Context, n_field: str, prompts_field: str = "prompt") -> None:
    """Check the number of sequences against ``RequestLimits.max_sequences``.

    Args:
        prompts: the number of prompts.
        n: the number of sequences per prompt.
        ctx: the operation's context, with the limit.
        n_field: the field of ``n``; the error names it if the prompts alone are not too many.
        prompts_field: the field of the prompts.

    Raises:
        InvalidRequest: there are too many; the message names the field and the limit.
    """
    limit = ctx.limits.max_sequences
    if prompts > limit:
        raise InvalidRequest(
            f"{prompts_field}: {prompts} sequences exceed the limit of {limit} per request (MAX_SEQUENCES)",
            param=prompts_field,
        )
    if prompts * n > limit:
        raise InvalidRequest(
            f"{n_field}: {prompts} x {n} sequences exceed the limit of {limit} per request (MAX_SEQUENCES)",
            param=n_field,
        )


def default_limit(engine: Engine, prompt_tokens: int) -> int:
    """Return the number of new tokens if the request sets none: to the end of the context, or of the KV cache if that
    is smaller.

    Args:
        engine: the model's engine.
        prompt_tokens: the prompt's length in tokens.
    """
    info = engine.info
    return max(1, min(info.context_length, info.kv_tokens or info.context_length) - prompt_tokens)


def remaining_context(prompt_tokens: int, context_length: int, field_name: str) -> int:
    """Return the number of new tokens that fit in the context after a prompt.

    Args:
        prompt_tokens: the prompt's length in tokens.
        context_length: the model's context length in tokens.
        field_name: the field of the prompt, for the error.

    Raises:
        ContextLengthExceeded: not even one new token fits.
    """
    if prompt_tokens >= context_length:
        raise ContextLengthExceeded.of(context_length, prompt_tokens, 1, field_name)
    return context_length - prompt_tokens


def check_min_tokens(min_tokens: int, max_tokens: int, field_name: str, limited_by: str) -> None:
    """Check that the minimum number of new tokens does not exceed the maximum.

    Args:
        min_tokens: minimum number of new tokens.
        max_tokens: maximum number of new tokens.
        field_name: the field of ``min_tokens``, for the error.
        limited_by: the fields that set ``max_tokens``, for the error.

    Raises:
        InvalidRequest: ``min_tokens`` exceeds ``max_tokens``; the message names both.
    """
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"{field_name}: {min_tokens} exceeds {max_tokens}, the limit set by {limited_by} or the model's context",
            param=field_name,
        )


def sampling_params(
    request: Sampling,
    *,
    max_new_tokens: int,
    n: int,
    min_new_tokens: int = 0,
    logprobs: int | None = None,
    stop: Sequence[str] = (),
    grammar: Grammar | None = None,
    defaults: Sequence[tuple[str, float]] = (),
) -> SamplingParams:
    """Build the engine's sampling parameters from a request.

    Args:
        request: the validated request.
        stop: further stop strings.
        defaults: values for fields that the request leaves out, see ``ModelInfo.sampling_defaults``.
    """
    model = {name: value for name, value in defaults if name not in request.model_fields_set}
    top_p = model.get("top_p", request.top_p)
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        # top_p 0 keeps only the likeliest token.
        temperature=model.get("temperature", request.temperature) if top_p else 0,
        top_k=int(model.get("top_k", request.top_k)),
        top_p=top_p,
        min_p=model.get("min_p", request.min_p),
        repetition_penalty=model.get("repetition_penalty", request.repetition_penalty),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=tuple((request.logit_bias or {}).items()),
        min_new_tokens=min_new_tokens,
        logprobs=logprobs,
        stop=(*(request.stop or ()), *stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=request.ignore_eos,
        allowed_token_ids=tuple(sorted(set(request.allowed_token_ids or ()))),
        bad_words=tuple(request.bad_words or ()),
        include_stop=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        seed=request.seed,
        n=n,
        grammar=grammar,
    )


async def encode_all(
    engine: Engine, prompts: Sequence[Prompt], ctx: Context, *, special: bool = True
) -> list[tuple[int, ...]]:
    """Tokenize prompts a few at a time, so that thousands of them do not delay other requests' tokenization.

    Args:
        engine: the model's engine.
        prompts: texts, and token ids, which are returned as they are.
        ctx: the operation's context.
        special: whether the tokenizer adds its own tokens around texts.
    """

    def encoded(text: str) -> Awaitable[tuple[int, ...]]:
        if special:
            return engine.encode(text, background=ctx.background)
        return engine.encode_text(text, add_special_tokens=False, background=ctx.background)

    ids: list[tuple[int, ...]] = []
    for start in range(0, len(prompts), _MAX_CONCURRENT_TEXTS):
        batch = prompts[start : start + _MAX_CONCURRENT_TEXTS]
        texts = [text for text in batch if isinstance(text, str)]
        found = iter(await asyncio.gather(*map(encoded, texts)))
        ids += [next(found) if isinstance(prompt, str) else tuple(prompt) for prompt in batch]
    return ids


async def prompt_texts(engine: Engine, prompts: Sequence[Prompt], ctx: Context) -> list[str]:
    """Return the prompts as texts.

    Raises:
        InvalidRequest: the model does not have a token id.
    """
    return [
        prompt if isinstance(prompt, str) else await engine.decode(prompt, "prompt", background=ctx.background)
        for prompt in prompts
    ]


def chat_messages(messages: Iterable[ChatMessage]) -> tuple[Message, ...]:
    """Convert messages to the engine's: text parts are joined, the role developer becomes system.

    Calls of functions and their results become those of tools, which differ in having ids.
    """
    called: dict[str, str] = {}  # the ids of the last calls by function
    converted = []
    for number, message in enumerate(messages):
        calls = [ToolCall(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ()]
        if (call := message.function_call) is not None:
            called[call.name] = f"call_{number}"
            calls.append(ToolCall(called[call.name], call.name, call.arguments))
        role, result_of = message.role, message.tool_call_id
        if role == "function":
            role, result_of = "tool", called.get(message.name or "", f"call_{number}")
        content = message.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        converted.append(
            Message(
                "system" if role == "developer" else role,
                text,
                tuple(calls),
                result_of,
                message.reasoning_content or message.reasoning or "",
            )
        )
    return tuple(converted)


def message_texts(messages: Iterable[Message]) -> list[str]:
    """Return all texts of messages: their contents, their reasoning, and the arguments of their calls."""
    return [
        text
        for message in messages
        for text in (message.content, message.reasoning, *(call.arguments for call in message.tool_calls))
    ]
