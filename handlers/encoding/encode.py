"""Computes what a model's encoder makes of inputs, unless the response cache has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from handlers.context import Context
from handlers.encoding.inputs import Inputs, placed, tokenized
from handlers.generation.cache_control import CacheControl
from handlers.protocols import Encoder
from runtime.encoder_types import EncoderOutput
from runtime.errors import InvalidRequest, ServiceError
from runtime.types import CacheUse, ModelInfo, TokenUsage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder made of inputs.

    Args:
        values: the vector or the logits of each input, float32.
        usage: the number of tokens, and how the response cache was used.
    """

    values: list[NDArray[np.float32]]
    usage: TokenUsage


def usage_object(usage: TokenUsage) -> dict[str, Any]:
    """Return a usage as ``EncoderUsage``."""
    return {name: value for name, value in usage.openai().items() if name in ("prompt_tokens", "total_tokens", "cache")}


async def encode(
    engine: Encoder, task: Literal["embed", "classify"], inputs: Inputs, ctx: Context, cache_control: str | None
) -> Encoded:
    """Return the vectors or logits of inputs. The same input is computed once, however often the request has it.

    Args:
        engine: the model's engine, which is leased.
        task: what is computed.
        inputs: the inputs.
        ctx: the operation's context.
        cache_control: the request's Cache-Control directives.

    Raises:
        InvalidRequest: an input is too long, or the model does not know its token ids.
        ServiceError: other errors of ``Encoder`` and ``Context.reserve``.
    """
    inputs.check_chars(ctx)
    places: dict[Any, int] = {}
    for number, item in enumerate(inputs.items):
        places.setdefault(item, number)
    numbers = list(places.values())

    async def compute(missing: Sequence[int]) -> list[EncoderOutput]:
        return await _computed(engine, task, inputs, [numbers[index] for index in missing], ctx)

    control = CacheControl.parse(cache_control)
    use: CacheUse | None = None
    if ctx.cache is None or not control.store:
        if ctx.cache is not None:
            use = CacheUse("bypass")
            ctx.cache.bypass()
        outputs = await compute(range(len(numbers)))
    else:
        caller = ctx.caller() if ctx.cache.per_caller else ""
        info = engine.info
        keys = await asyncio.to_thread(_keys, info, task, inputs, numbers, caller)
        outputs, use = await ctx.cache.outputs(keys, info.name, compute, reuse=control.reuse, max_age=control.max_age)
    by_item = dict(zip(places, outputs, strict=True))
    found = [by_item[item] for item in inputs.items]
    usage = TokenUsage(sum(output.tokens for output in found), cache=use)
    ctx.observe(usage)
    return Encoded([output.values for output in found], usage)


def _keys(model: ModelInfo, task: str, inputs: Inputs, numbers: Sequence[int], caller: str) -> list[str]:
    """Return the cache keys of inputs: 64 hexadecimal digits each, a SHA-256 from which the text cannot be read."""
    named = (model.name, model.revision, model.fingerprint, model.encoder and model.encoder.max_tokens)
    start = json.dumps([caller, *named, task, inputs.prompt, inputs.max_tokens, inputs.truncate])
    return [sha256(f"{start}{json.dumps(inputs.items[number])}".encode()).hexdigest() for number in numbers]


async def _computed(
    engine: Encoder, task: Literal["embed", "classify"], inputs: Inputs, numbers: Sequence[int], ctx: Context
) -> list[EncoderOutput]:
    """Tokenize inputs, reserve their tokens and compute them. What a failed computation reserved is given back."""
    tokens = await tokenized(engine, inputs, numbers, ctx)
    total = used = sum(len(found.ids) for found in tokens)
    commit = await ctx.reserve(total)
    run = engine.embed if task == "embed" else engine.classify
    try:
        values = await run(tokens, background=ctx.background, field=inputs.field)
    except ServiceError as error:
        used = 0
        raise (placed(error, inputs, numbers) if isinstance(error, InvalidRequest) else error) from None
    finally:
        await commit(used)
    return [EncoderOutput(len(found.ids), value) for found, value in zip(tokens, values, strict=True)]
