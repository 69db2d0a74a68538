"""The part of an engine that converts prompts and chats to token ids and back, shared by all engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.answer_format import AnswerFormat
from runtime.encoder_types import EncoderInput, Truncation
from runtime.engine.detokenizer import Decoding, IncrementalDetokenizer
from runtime.engine.token_ids import check_ids
from runtime.engine.token_limits import TokenLimits, token_limits
from runtime.errors import ModelCannotEncode
from runtime.model.chat_encoder import PLAIN_STOPS, ChatEncoder
from runtime.types import Message, ModelInfo, SamplingParams, TemplateOptions, Tool

T = TypeVar("T")


class TokenizerLike(Decoding, Protocol):
    """The tokenizer interface that an engine needs. All methods are thread-safe."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a raw text."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a prompt to continue, at least one; see ``runtime.model.tokenizer.Tokenizer``."""
        ...

    def token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it; None for an unknown id."""
        ...


class Tokenization(ABC):
    """Base class of the engines: the methods of ``handlers.protocols.Engine`` that need only the tokenizer.

    Args:
        tokenizer: the model's tokenizer.
        chat: encoder of chat messages to token ids.
        info: the model's metadata.
    """

    def __init__(self, tokenizer: TokenizerLike, chat: ChatEncoder, info: ModelInfo) -> None:
        self.info = info
        self.chat_stops: tuple[str, ...] = () if chat.own_template else PLAIN_STOPS
        self._tokenizer = tokenizer
        self._chat = chat

    @abstractmethod
    async def _on_thread(self, call: Callable[[], T], background: bool) -> T:
        """Return the result of a call in the thread pool; ``background`` as for ``Job.background``."""

    async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        """Tokenize a raw prompt in the thread pool."""
        return await self._on_thread(lambda: tuple(self._tokenizer.encode_prompt(text)), background)

    async def encode_text(
        self, text: str, *, add_special_tokens: bool = True, background: bool = False
    ) -> tuple[int, ...]:
        """Tokenize a text as it is in the thread pool."""
        return await self._on_thread(lambda: tuple(self._tokenizer.encode(text, add_special_tokens)), background)

    async def encode_plain(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        """Tokenize a text without control tokens in the thread pool."""
        return await self._on_thread(lambda: self._chat.encode_plain(text), background)

    @property
    def answer_format(self) -> AnswerFormat:
        """How the model writes tool calls and reasoning."""
        return self._chat.answer_format

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: TemplateOptions | None = None,
        background: bool = False,
    ) -> tuple[int, ...]:
        """Tokenize a chat in the thread pool."""
        wanted = options or TemplateOptions()
        return await self._on_thread(lambda: self._chat.encode(messages, tools, wanted), background)

    async def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: TemplateOptions | None = None,
        background: bool = False,
    ) -> str:
        """Format a chat in the thread pool."""
        wanted = options or TemplateOptions()
        return await self._on_thread(lambda: self._chat.render(messages, tools, wanted), background)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of special tokens by their names."""
        return self._chat.special_tokens

    @property
    def chat_template(self) -> str | None:
        """The source of the model's own chat template."""
        return self._chat.source

    async def decode(self, ids: Sequence[int], field: str, *, background: bool = False) -> str:
        """Return the text of token ids, which is computed in the thread pool."""
        check_ids(ids, field, self.info.vocabulary_size, self._tokenizer.token_bytes)
        return await self._on_thread(lambda: self._tokenizer.decode([*ids], skip_special_tokens=False), background)

    def token_name(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it; empty for an id that the tokenizer does not know."""
        return self._tokenizer.token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be part of a UTF-8 character."""
        return self._tokenizer.token_bytes(token_id)

    async def tokenize_inputs(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        prompt: str = "",
        max_tokens: int | None = None,
        truncate: Truncation = "none",
        background: bool = False,
        field: str = "input",
    ) -> list[EncoderInput]:
        """Refuse: this engine does not encode."""
        self._refuse_to_encode()

    async def embed(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[NDArray[np.float32]]:
        """Refuse: this engine does not encode."""
        self._refuse_to_encode()

    async def classify(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[NDArray[np.float32]]:
        """Refuse: this engine does not encode."""
        self._refuse_to_encode()

    def _refuse_to_encode(self) -> NoReturn:
        raise ModelCannotEncode(f"{self.info.name} generates text, and computes no vectors or scores", param="model")

    def _token_limits(self, params: SamplingParams, eos: Collection[int]) -> TokenLimits | None:
        """Return the limits on a text's tokens; errors as for ``token_limits``."""
        ends = params.end_ids(frozenset(eos))
        return token_limits(params, self.info.vocabulary_size, ends, lambda text: self._chat.encode_plain(text))

    def _detokenizer(self, prompt: Sequence[int], params: SamplingParams) -> IncrementalDetokenizer:
        """Return a detokenizer for one text."""
        return IncrementalDetokenizer(
            self._tokenizer,
            prompt,
            params.stop,
            max(params.min_new_tokens, len(params.forced) + 1),  # before as many tokens no stop string ends the text
            include_stop=params.include_stop,
            skip_special_tokens=params.skip_special_tokens,
        )
