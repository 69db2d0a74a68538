"""The engine of encoders: checks and tokenizes texts, and has a thread compute them (``encoder_thread``)."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from runtime.encoder_types import EncoderInfo, EncoderInput, EncoderTask, Truncation
from runtime.engine.encoder_inputs import EncoderTokenizer, named_inputs
from runtime.engine.encoder_queue import EncodeRequest
from runtime.engine.encoder_thread import EncoderThread, Result
from runtime.engine.engine_thread import MAX_HEARTBEAT_AGE_SECONDS
from runtime.engine.pooling import EncoderHead
from runtime.engine.request_queue import timeout_error
from runtime.engine.runners import EncoderRunner
from runtime.engine.token_ids import check_ids
from runtime.engine.tokenization import T, Tokenization
from runtime.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelCannotEncode,
    ModelCannotGenerate,
    ServiceError,
)
from runtime.model.chat_encoder import ChatEncoder
from runtime.model.encoder_config import EncoderConfig
from runtime.model.tokenizer import Tokenizer
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import Job, Message, ModelInfo, TemplateOptions, Tool


class EncoderEngine(Tokenization):
    """Engine of an encoder. Implements ``handlers.protocols.Engine``; what generates raises ``ModelCannotGenerate``.

    Args:
        runner: computes the states; closed with the engine.
        config: the encoder's description.
        head: computes results from states.
        tokenizer: the model's tokenizer.
        info: the model's metadata, with ``encoder``.
        metrics: the model's metrics.
        token_types: number of token types; 0 for none.
        step_tokens: maximum tokens of a step with more than one text.
        max_queue: maximum number of waiting requests, for interactive and background requests each.
        timeout: maximum seconds per request, including the time in the queue.
        gauges: whether the metrics' gauges of running and waiting requests are this engine's.
    """

    def __init__(
        self,
        runner: EncoderRunner,
        config: EncoderConfig,
        head: EncoderHead,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        metrics: ModelMetrics,
        token_types: int = 0,
        step_tokens: int = 1024,
        max_queue: int = 64,
        timeout: float = 600,
        gauges: bool = True,
    ) -> None:
        super().__init__(tokenizer, ChatEncoder(tokenizer), info)
        assert info.encoder is not None
        self._encoder: EncoderInfo = info.encoder
        self._runner = runner
        self._inputs = EncoderTokenizer(info.name, config, tokenizer, self._chat)
        self._metrics = metrics
        self._token_types = token_types
        self._timeout = timeout
        self._lock = threading.Lock()
        self._closed = False
        self._thread = EncoderThread(
            f"engine-{info.name}",
            runner,
            head,
            step_tokens=step_tokens,
            max_queue=max_queue,
            metrics=metrics,
            gauges=gauges,
        )
        atexit.register(self.close)  # the runner's memory must not be freed while a step runs

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs."""
        return self._thread.thread.is_alive()

    @property
    def beating(self) -> bool:
        """Whether the engine makes progress: it is alive and its last heartbeat is less than 10 s old."""
        return self.alive and time.monotonic() - self._thread.heartbeat < MAX_HEARTBEAT_AGE_SECONDS

    @property
    def memory_bytes(self) -> int:
        """Memory in use, in bytes: the weights."""
        return self.info.weights_bytes

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
        """Tokenize texts or pairs in the thread pool; see ``handlers.protocols.Encoder``."""
        limit = min(max_tokens or self._encoder.max_tokens, self._encoder.max_tokens)
        found = await self._on_thread(lambda: self._inputs(texts, prompt, limit, truncate), background)
        inputs = []
        for name, item in named_inputs(field, found):
            if isinstance(item, int):
                raise ContextLengthExceeded.of_input(limit, item, name)
            inputs.append(item)
        return inputs

    async def embed(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[Result]:
        """Return the vector of each input; see ``handlers.protocols.Encoder``."""
        return await self._run("embed", inputs, background, field)

    async def classify(
        self, inputs: Sequence[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[Result]:
        """Return the logits of each input; see ``handlers.protocols.Encoder``."""
        return await self._run("classify", inputs, background, field)

    async def _run(
        self, task: EncoderTask, inputs: Sequence[EncoderInput], background: bool, field: str
    ) -> list[Result]:
        self._check(task, inputs, field)
        if not inputs:
            return []
        loop = asyncio.get_running_loop()
        request = EncodeRequest(inputs, background, loop, loop.create_future())
        request.results = [None] * len(inputs)
        arrived = time.monotonic()
        self._admit(lambda: self._thread.submit(request))
        try:
            async with asyncio.timeout(self._timeout):
                results: list[Result] = await request.done
        except TimeoutError:
            error = timeout_error(self._timeout, request)
            self._metrics.failed(error.code)
            raise error from None
        except ServiceError as error:
            self._metrics.failed(error.code)
            raise
        except asyncio.CancelledError:
            self._metrics.stats.ended("cancelled")
            raise
        finally:
            self._thread.forget(request)
        ended, tokens = time.monotonic(), sum(len(text.ids) for text in inputs)
        self._metrics.queue.observe(request.started - arrived)
        self._metrics.inference.observe(ended - request.started)
        self._metrics.e2e_latency.observe(ended - arrived)
        self._metrics.prompt_tokens.observe(tokens)
        self._metrics.stats.prompt(tokens, 0)
        self._metrics.stats.ended("finished")
        self._metrics.encoded(task, len(inputs))
        return results

    def _check(self, task: EncoderTask, inputs: Sequence[EncoderInput], field: str) -> None:
        """Refuse a task that the model does not have, and inputs that it cannot take."""
        able = self._encoder.tasks
        if task not in able and not (task == "classify" and "rerank" in able):
            raise ModelCannotEncode(f"{self.info.name} does not {task}; it can {' and '.join(able)}", param="model")
        for name, text in named_inputs(field, inputs):
            if not text.ids:
                raise InvalidRequest(f"{name} has no tokens", param=name)
            if len(text.ids) > self._encoder.max_tokens:
                raise ContextLengthExceeded.of_input(self._encoder.max_tokens, len(text.ids), name)
            check_ids(text.ids, name, self.info.vocabulary_size, self._tokenizer.token_bytes)
            if text.types and (len(text.types) != len(text.ids) or not self._types_known(text.types)):
                raise InvalidRequest(f"{name} has token types that the model does not have", param=name)

    def _types_known(self, types: Sequence[int]) -> bool:
        return min(types) >= 0 and (not self._token_types or max(types) < self._token_types)

    def _admit(self, call: Callable[[], None]) -> None:
        """Call ``check_admission`` or ``submit`` of the engine thread, and count rejections in the metrics."""
        try:
            call()
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise

    async def _on_thread(self, call: Callable[[], T], background: bool) -> T:
        """Call in the thread pool; the queue limit is checked before."""
        self._admit(lambda: self._thread.check_admission(background))
        return await asyncio.to_thread(call)

    def warm_up(self) -> None:
        """Compute one short text on the calling thread, before any request."""
        self._thread.compute([EncoderInput((0,) * min(8, self._encoder.max_tokens))])

    def close(self, grace: float = 0) -> None:
        """Stop admitting requests, finish the admitted ones, then free the model's memory.

        Args:
            grace: seconds after which unfinished requests fail with ``Draining``.
        """
        atexit.unregister(self.close)
        with self._lock:
            closed, self._closed = self._closed, True
        self._thread.close()
        self._thread.thread.join(grace)
        self._thread.close(abort=True)
        self._thread.thread.join()
        if not closed:
            self._runner.close()

    # What only a model that generates can do

    def _refuse_to_generate(self) -> NoReturn:
        raise ModelCannotGenerate(f"{self.info.name} is an encoder and generates no text", param="model")

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        options: TemplateOptions | None = None,
        background: bool = False,
    ) -> tuple[int, ...]:
        """Refuse: the model does not generate."""
        self._refuse_to_generate()

    async def encode_plain(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        """Refuse: the model does not generate."""
        self._refuse_to_generate()

    async def encode(self, text: str, *, background: bool = False) -> tuple[int, ...]:
        """Refuse: the model does not generate."""
        self._refuse_to_generate()

    def stream(self, jobs: Sequence[Job]) -> NoReturn:
        """Refuse: the model does not generate."""
        self._refuse_to_generate()
