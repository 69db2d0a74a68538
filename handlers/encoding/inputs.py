"""The inputs of a request, as a model's encoder gets them: their checks, their prompts, their token ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from handlers.context import Context
from handlers.generation.checks import check_prompt_chars
from handlers.protocols import Encoder
from runtime.encoder_types import EncoderInfo, EncoderInput, EncoderTask, Truncation
from runtime.errors import ContextLengthExceeded, InvalidRequest, ModelCannotEncode
from runtime.types import ModelInfo


class Pair(NamedTuple):
    """A query and a document, which a cross-encoder reads together."""

    query: str
    document: str


Item: TypeAlias = str | Pair | tuple[int, ...]
"""A text, a pair of texts, or token ids."""

_USES = {
    "query": ("query", "search_query", "retrieval.query", "Retrieval-query"),
    "document": ("document", "passage", "search_document", "retrieval.passage", "Retrieval-document"),
}
"""The names under which models have the prompts for queries and documents, as requests may name them, too."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of one request that are computed alike.

    Args:
        items: the inputs.
        field: the request's field that holds them, for error messages.
        listed: whether the field is a list, so that errors name the item, too.
        prompt: the text before each text; of a pair, the instruction.
        max_tokens: maximum number of tokens of an input.
        truncate: what is done with a longer one.
    """

    items: Sequence[Item]
    field: str
    listed: bool
    prompt: str
    max_tokens: int
    truncate: Truncation

    def check_chars(self, ctx: Context) -> None:
        """Check the length of each input; errors as for ``check_prompt_chars``."""
        for number, item in enumerate(self.items):
            check_prompt_chars(item if isinstance(item, Pair) else (item,), ctx, self.name(number))

    def name(self, number: int) -> str:
        """Return the path of an input in the request."""
        return f"{self.field}.{number}" if self.listed else self.field


def is_list_of_inputs(field: object) -> bool:
    """Return whether a request's field is a list of texts or of token ids, and not one text or the ids of one."""
    return isinstance(field, list) and not isinstance(field[0], int | float)


def encoder_info(info: ModelInfo, task: EncoderTask) -> EncoderInfo:
    """Return what a model's encoder computes.

    Args:
        info: the model.
        task: what is asked of it.

    Raises:
        ModelCannotEncode: the model does not do it.
    """
    if info.encoder is None or task not in info.encoder.tasks:
        does = ", ".join([*(("generate",) if info.generates else ()), *(info.encoder.tasks if info.encoder else ())])
        raise ModelCannotEncode(
            f"model: {info.name} does not {task}; it does: {does} (encoder.tasks of GET /model-info)", param="model"
        )
    return info.encoder


def prompt_for(use: Literal["query", "document"], info: EncoderInfo) -> str:
    """Return the model's prompt for queries or documents; "" if it has none."""
    return next((info.prompts[name] for name in _USES[use] if name in info.prompts), "")


def chosen_prompt(prompt_name: str | None, input_type: str | None, info: EncoderInfo) -> str:
    """Return the text that a request puts before its inputs.

    Args:
        prompt_name: the name of one of the model's prompts; None for none.
        input_type: what the inputs are; None if the request does not say.
        info: the model's encoder.

    Raises:
        InvalidRequest: the model has no prompt of that name, and it stands for neither queries nor documents.
    """
    if input_type is not None and input_type not in info.prompts:
        for names in _USES.values():
            if input_type.lower() in map(str.lower, names):
                return next((info.prompts[name] for name in names if name in info.prompts), "")
    field = "prompt_name" if input_type is None else "input_type"
    name = prompt_name if input_type is None else input_type
    if name is None:
        return info.prompts.get(info.default_prompt, "")
    if name not in info.prompts:
        known = sorted({*info.prompts, *(_USES if input_type is not None else ())})
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise InvalidRequest(f"{field}: the model has no prompt {name[:100]!r}; {has}", param=field)
    return info.prompts[name]


async def tokenized(engine: Encoder, inputs: Inputs, numbers: Sequence[int], ctx: Context) -> list[EncoderInput]:
    """Return the token ids of some of the inputs.

    Args:
        engine: the model's encoder.
        inputs: the inputs.
        numbers: the indexes of those to tokenize.
        ctx: the operation's context.

    Raises:
        ContextLengthExceeded: an input has too many tokens; the message has both numbers.
        ServiceError: errors of ``Encoder.tokenize_inputs``.
    """
    found: dict[int, EncoderInput] = {}
    texts: dict[int, str | Pair] = {}
    for number in numbers:
        item = inputs.items[number]
        if isinstance(item, str | Pair):
            texts[number] = item
        else:
            found[number] = EncoderInput(_cut(item, inputs, number))
    if texts:
        try:
            tokens = await engine.tokenize_inputs(
                list(texts.values()),
                prompt=inputs.prompt,
                max_tokens=inputs.max_tokens,
                truncate=inputs.truncate,
                background=ctx.background,
                field=inputs.field,
            )
        except InvalidRequest as error:
            raise placed(error, inputs, list(texts)) from None
        found |= zip(texts, tokens, strict=True)
    return [found[number] for number in numbers]


def _cut(ids: tuple[int, ...], inputs: Inputs, number: int) -> tuple[int, ...]:
    """Return token ids of a request, without those that are too many."""
    if len(ids) <= inputs.max_tokens:
        return ids
    if inputs.truncate == "none":
        raise ContextLengthExceeded.of_input(inputs.max_tokens, len(ids), inputs.name(number))
    return ids[: inputs.max_tokens] if inputs.truncate == "end" else ids[-inputs.max_tokens :]


def placed(error: InvalidRequest, inputs: Inputs, numbers: Sequence[int]) -> InvalidRequest:
    """Return an error about one of the inputs that the engine got, with the input's place in the request.

    Args:
        error: the error; its ``param`` is the field, or the field and an index in ``numbers``.
        inputs: the inputs.
        numbers: the indexes of the inputs that the engine got.
    """
    if error.param is None:
        return error
    field, _, index = error.param.rpartition(".") if error.param != inputs.field else (inputs.field, "", "0")
    if field != inputs.field or not index.isdecimal() or int(index) >= len(numbers):
        return error
    name = inputs.name(numbers[int(index)])
    found = copy(error)
    found.message = re.sub(rf"(?<![\w.]){re.escape(error.param)}(?!\.?\w)", name, error.message, count=1)
    found.param, found.args = name, (found.message,)
    return found
