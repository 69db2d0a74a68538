"""Protocols of the runtime objects that the operations use; tests and other adapters can implement them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol

from runtime.answer_format import AnswerFormat
from runtime.encoder_types import EncoderInput, EncoderOutput, Truncation
from runtime.status import CacheStats, ModelStatus
from runtime.types import CacheUse, Job, Message, ModelInfo, TemplateOptions, Token, Tool

if TYPE_CHECKING:  # takes a tenth of a second to import
    import numpy as np
    from numpy.typing import NDArray


class Encoder(Protocol):
    """What a loaded model computes from texts without generating: vectors, and the logits of classes.

    ``info.encoder`` says which of it. A method that the model does not support raises ``ModelCannotEncode``.
    """

    @property
    def info(self) -> ModelInfo:
        """The model's metadata."""
        ...

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
        """Tokenize texts, or pairs of a query and a document, off the event loop.

        Args:
            texts: the texts or pairs.
            prompt: a text to put before each text. Of a pair it is the instruction, for a model that takes one.
            max_tokens: maximum number of tokens of one input; None for the model's own, ``info.encoder.max_tokens``.
            truncate: what is done with a longer input. Of a pair, the document is cut.
            background: whether this is background work, see ``Job.background``.
            field: the request's field that holds the texts, for error messages.

        Raises:
            ContextLengthExceeded: an input is too long; the message has both numbers, ``param`` is ``FIELD.INDEX``
                (``FIELD`` if there is one text).
            ModelCannotEncode: the model takes no such inputs.
            TooManyRequests: the queue is full.
        """
        ...

    async def embed(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[NDArray[np.float32]]:
        """Return the vector of each input, [``info.encoder.width``] float32. A caller that is cancelled frees its
        inputs.

        Args:
            inputs: the tokenized inputs; token ids of a request are checked.
            background: whether this is background work.
            field: the request's field that holds the inputs, for error messages.

        Raises:
            InvalidRequest: an input has no token, an id that the model does not have, or too many tokens.
            ModelCannotEncode: the model computes no vectors.
            TooManyRequests: the queue is full.
            DeadlineExceeded: the computation took longer than allowed.
            Draining: the service is shutting down.
        """
        ...

    async def classify(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[NDArray[np.float32]]:
        """Return the logits of each input, [number of ``info.encoder.labels``] float32, before any activation.

        A model for ``rerank`` gives one logit. Arguments and errors as for ``embed``.
        """
        ...


class Engine(Encoder, Protocol):
    """A loaded model: its tokenizer and its generation.

    The methods that generate, or prepare it, raise ``ModelCannotGenerate`` if the model is only an encoder.
    """

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory the model uses now: its weights, and the KV cache written so far."""
        ...

    @property
    def chat_stops(self) -> tuple[str, ...]:
        """Stop strings with which the chat template ends the assistant's turn."""
        ...

    @property
    def answer_format(self) -> AnswerFormat:
        """How the model writes tool calls and reasoning."""
        ...

    async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        """Tokenize a raw prompt off the event loop. Control tokens spelled in the text become control tokens, and an
        empty text becomes the token that begins a text.

        Args:
            text: the prompt.
            background: whether this is background work, see ``Job.background``. A full queue is reported before the
                text is tokenized.

        Raises:
            InvalidRequest: the text is empty, and the model has no token to begin a text with.
        """
        ...

    async def encode_text(
        self, text: str, *, add_special_tokens: bool = True, background: bool = False
    ) -> tuple[int, ...]:
        """Tokenize a text as it is: control tokens spelled in it become control tokens, an empty text may have none.

        Args:
            text: the text.
            add_special_tokens: whether the tokenizer adds its own tokens around the text (often a BOS token).
            background: see ``encode``.
        """
        ...

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: TemplateOptions | None = None,
        background: bool = False,
    ) -> tuple[int, ...]:
        """Tokenize a chat with the model's template. No text in a message, tool or argument becomes a control token.

        Args:
            messages: the chat's messages.
            tools: the tools that the model is told of.
            options: the template's options; None for the defaults, up to the start of the assistant's next turn.
            background: see ``encode``.

        Raises:
            InvalidRequest: the model's template refuses the messages.
        """
        ...

    async def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: TemplateOptions | None = None,
        background: bool = False,
    ) -> str:
        """Format a chat with the model's template. Arguments and errors as for ``encode_chat``."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The texts of special tokens by the names that chat templates use: ``bos_token``, ``eos_token``, ..."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The source of the model's own chat template, in Jinja; None if it has none."""
        ...

    async def decode(self, ids: Sequence[int], field: str, *, background: bool = False) -> str:
        """Return the text of token ids, with the names of control tokens.

        Args:
            ids: the token ids.
            field: the request's field that holds them, for error messages.
            background: see ``encode``.

        Raises:
            InvalidRequest: the model does not have one of the ids.
        """
        ...

    async def encode_plain(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        """Tokenize a text as the model would generate it after a prompt: nothing in it becomes a control token, and no
        control token is added.

        Args:
            text: the continuation.
            background: see ``encode``.

        Raises:
            InvalidRequest: the text spells a control token and cannot be tokenized otherwise.
        """
        ...

    def token_name(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it, such as ``Ġthe``; empty for an id unknown to the tokenizer."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text, or a control token's name in UTF-8.

        One token's bytes can be a part of a character. An id unknown to the tokenizer gives no bytes.
        """
        ...

    def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        """Generate for all jobs at once; each item is one token. Closing the generator cancels the generation.

        Raises:
            InvalidRequest: a job names a token id that the model does not have.
            TooManyRequests: the queue is full.
            DeadlineExceeded: the generation took longer than allowed.
            Draining: the service is shutting down.
        """
        ...


class Models(Protocol):
    """The models that this process serves."""

    def lease(self, name: str | None) -> AbstractAsyncContextManager[Engine]:
        """Load a model if necessary and yield its engine; the model is not unloaded inside the block.

        Args:
            name: the model's id; None for the default model.

        Raises:
            ModelNotFound: no model of that name is served.
            ModelLoading: the model is still loading after the allowed wait.
            ModelUnavailable: the model cannot be loaded.
            ModelTooLarge: the model does not fit the memory budget.
            Draining: the service is shutting down.
        """
        ...

    def status(self) -> list[ModelStatus]:
        """Return every model's status, the default model first."""
        ...

    def find(self, name: str) -> ModelStatus:
        """Return one model's status.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        ...

    def load(self, name: str) -> ModelStatus:
        """Start loading a model without waiting; has no effect if it is loading or loaded.

        Raises:
            ModelNotFound: no model of that name is served.
            Draining: the service is shutting down.
        """
        ...

    def watch(self, name: str) -> AsyncGenerator[ModelStatus, None]:
        """Yield a model's status now and at each change, until the model is not loading.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        ...

    async def unload(self, name: str) -> ModelStatus:
        """Unload a model once the requests that use it have ended. New requests wait, and load it again.

        Returns:
            The model's status once it is unloaded; its state is still ``draining`` after the allowed wait.

        Raises:
            ModelNotFound: no model of that name is served.
        """
        ...

    async def set_default(self, name: str) -> ModelStatus:
        """Load a model, then make it the default for requests that name no model. The switch fails no request.

        Raises:
            ModelNotFound: no model of that name is served.
            ModelLoading: the model is still loading after the allowed wait. The default stays the old model for now,
                unless the two do not fit in memory together: then requests already wait for the new one.
            ModelUnavailable: the model cannot be loaded; the default is unchanged.
        """
        ...

    @property
    def ready(self) -> bool:
        """Whether the default model is loaded, its engine thread makes progress, and the service is not draining."""
        ...

    @property
    def alive(self) -> bool:
        """False once the default model's engine thread is dead for good, so that the process must be replaced."""
        ...

    @property
    def draining(self) -> bool:
        """Whether the service is shutting down."""
        ...


class Cache(Protocol):
    """The response cache, see ``runtime.response_cache.cache``."""

    @property
    def per_caller(self) -> bool:
        """Whether each caller has its own cache entries, so that keys must include the caller."""
        ...

    def answer(
        self,
        key: str,
        model: str,
        lease: AsyncExitStack,
        start: Callable[[], AbstractAsyncContextManager[tuple[int, AsyncIterator[Token]]]],
        *,
        reuse: bool,
        max_age: float,
        background: bool = False,
    ) -> AbstractAsyncContextManager[tuple[CacheUse, int, AsyncIterator[Token]]]:
        """Yield a cached response, join an identical request in flight, or compute the response and cache it.

        Leaving the block early does not affect other requests that share the computation; the last one to leave stops
        it.

        Args:
            key: the cache key in hexadecimal digits, a hash of everything that determines the response.
            model: the model's id.
            lease: the model's lease. If the response is computed, the computation takes it over and keeps it until the
                last reader has left.
            start: returns a context manager that starts the computation, yields the number of prompt tokens and the
                token stream, and stops the computation; called only if the response must be computed.
            reuse: whether a cached response or one in flight may be used.
            max_age: the greatest age of a cached response, in seconds.
            background: whether this is background work, see ``Job.background``. An interactive request does not join a
                background computation but starts its own.

        Yields:
            How the cache was used, the number of prompt tokens, and the response's tokens, which are the same in each
            case.

        Raises:
            ServiceError: an error of ``start`` or of its token stream, raised in every request that shares it.
        """
        ...

    async def outputs(
        self,
        keys: Sequence[str],
        model: str,
        compute: Callable[[Sequence[int]], Awaitable[Sequence[EncoderOutput]]],
        *,
        reuse: bool,
        max_age: float,
    ) -> tuple[list[EncoderOutput], CacheUse]:
        """Return what an encoder makes of inputs, each from the cache or computed and then stored.

        Args:
            keys: the cache key of each input, as for ``answer``.
            model: the model's id.
            compute: computes the inputs with the given indexes; called once, for those that are not cached.
            reuse: whether cached results may be used.
            max_age: the greatest age of a cached result, in seconds.

        Returns:
            The results in the order of the keys, and the use of the cache: ``hit`` if all were cached, with the age of
            the oldest. It has a key only if there is one input.

        Raises:
            ServiceError: an error of ``compute``.
        """
        ...

    def bypass(self) -> None:
        """Count a response that is neither read from the cache nor stored in it."""
        ...

    async def stats(self) -> CacheStats:
        """Return the cache's statistics."""
        ...

    async def clear(self, *, model: str | None = None, prefix: str | None = None) -> int:
        """Remove cached responses: all of them, or those that match every filter given.

        Args:
            model: the model's id.
            prefix: the start of the key.

        Returns:
            The number of removed responses.

        Raises:
            CacheUnavailable: the store cannot be reached.
        """
        ...


class ResponseStore(Protocol):
    """Keeps responses by key, see ``runtime.response_cache.memory``. It forgets those that are old or do not fit."""

    def get(self, key: str) -> bytes | None:
        """Return the value of a key; None if there is none."""
        ...

    def put(self, key: str, model: str, value: bytes) -> None:
        """Keep a value.

        Args:
            key: the key, in hexadecimal digits.
            model: the model's id.
            value: the value.
        """
        ...

    def remove(self, *, model: str | None = None, prefix: str = "") -> int:
        """Forget the values of a model (None: of all) whose key starts with the prefix, and return their number."""
        ...


class Trace(Protocol):
    """One request's span, see ``runtime.telemetry.tracing``."""

    def active(self) -> AbstractContextManager[None]:
        """Make this span the parent of the generations that start inside the block."""
        ...

    def set(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes to the span; values of None are left out."""
        ...

    def end(self, name: str, error: str | None = None, *, failed: bool = False) -> None:
        """End the span.

        Args:
            name: the span's final name.
            error: the error's code; None for success.
            failed: whether the error is the service's fault.
        """
        ...


class Tracing(Protocol):
    """Creates a tracing span per request and exports it."""

    def request(self, operation: str) -> Trace:
        """Start a request's span."""
        ...

    def close(self) -> None:
        """Export the remaining spans; spans that end later are dropped."""
        ...
