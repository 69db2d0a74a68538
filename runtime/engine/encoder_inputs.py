"""From texts, or pairs of a query and a document, to an encoder's inputs: prompts, templates and limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from runtime.encoder_types import EncoderInput, Truncation
from runtime.errors import ModelCannotEncode
from runtime.model.chat_encoder import ChatEncoder
from runtime.model.encoder_config import EncoderConfig
from runtime.model.tokenizer import Tokenizer

T = TypeVar("T")


def named_inputs(field: str, inputs: Sequence[T]) -> Iterator[tuple[str, T]]:
    """Yield each input with its name in error messages: the field or, if there are several, the field and the index."""
    for index, item in enumerate(inputs):
        yield field if len(inputs) == 1 else f"{field}.{index}", item


class EncoderTokenizer:
    """Tokenizes the inputs of one encoder.

    Args:
        name: the model's name, for error messages.
        config: the encoder's description.
        tokenizer: the model's tokenizer.
        chat: encodes texts in which no control token counts.
    """

    def __init__(self, name: str, config: EncoderConfig, tokenizer: Tokenizer, chat: ChatEncoder) -> None:
        self._name, self._config = name, config
        self._tokenizer, self._chat = tokenizer, chat

    def __call__(
        self, texts: Sequence[str | tuple[str, str]], prompt: str, limit: int, truncate: Truncation
    ) -> list[EncoderInput | int]:
        """Return each input's tokens or, if it is too long and not cut, their number.

        Args:
            texts: the texts, or pairs of a query and a document.
            prompt: the text before each, or a pair's instruction.
            limit: maximum number of tokens of one input.
            truncate: what is done with a longer one.

        Raises:
            ModelCannotEncode: the model takes pairs only.
        """
        if self._config.pair is not None:
            return [self._templated(text, prompt, limit, truncate) for text in texts]
        lower = str.lower if self._config.lower_case else str
        given = [
            lower(prompt + text) if isinstance(text, str) else (lower(prompt + text[0]), lower(text[1]))
            for text in texts
        ]
        found = self._tokenizer.encode_inputs(given, limit, truncate)
        if not prompt or self._config.pool_prompt:
            return found
        unpooled = self._prompt_tokens(lower(prompt))
        return [item if isinstance(item, int) else EncoderInput(item.ids, item.types, unpooled) for item in found]

    def _prompt_tokens(self, prompt: str) -> int:
        """Return the number of tokens of a prompt, with those that begin a text and without the one that ends it."""
        ids = self._tokenizer.encode(prompt)
        last = self._tokenizer.added_tokens.get(ids[-1]) if ids else None
        return len(ids) - (last is not None and last.special)

    def _templated(
        self, text: str | tuple[str, str], instruction: str, limit: int, truncate: Truncation
    ) -> EncoderInput | int:
        """Return the tokens of a pair in the template of a decoder that answers yes or no."""
        template = self._config.pair
        assert template is not None
        if isinstance(text, str):
            raise ModelCannotEncode(f"{self._name} takes a query and a document, and not one text", param="model")
        query, document = text
        values = {"instruction": instruction or template.instruction, "query": query, "document": document}
        middle = self._chat.encode_plain(template.text.format(**values))
        prefix, suffix = (self._tokenizer.encode(part, False) for part in (template.prefix, template.suffix))
        room = limit - len(prefix) - len(suffix)
        if len(middle) > room:
            if truncate != "end" or room < 1:
                return len(prefix) + len(middle) + len(suffix)
            middle = middle[:room]
        return EncoderInput((*prefix, *middle, *suffix))
