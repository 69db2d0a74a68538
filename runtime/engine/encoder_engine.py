"""The engine of encoders: packs the texts of all requests into steps, on one thread per model."""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from runtime.encoder_types import EncoderInfo, EncoderInput, EncoderTask, Truncation
from runtime.engine.encoder_inputs import EncoderTokenizer, named_inputs
from runtime.engine.encoder_queue import EncodeRequest, EncoderQueue
from runtime.engine.engine_thread import HEARTBEAT_SECONDS, MAX_HEARTBEAT_AGE_SECONDS
from runtime.engine.pooling import EncoderHead
from runtime.engine.request_queue import timeout_error
from runtime.engine.runners import EncoderRunner
from runtime.engine.token_ids import check_ids
from runtime.engine.tokenization import T, Tokenization
from runtime.errors import (
    ContextLengthExceeded,
    Draining,
    EngineRestarting,
    InternalError,
    InvalidRequest,
    ModelCannotEncode,
    ModelCannotGenerate,
    ServiceError,
    TooManyRequests,
)
from runtime.model.chat_encoder import ChatEncoder
from runtime.model.encoder_config import EncoderConfig
from runtime.model.tokenizer import Tokenizer
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import Job, Message, ModelInfo, TemplateOptions, Tool

_log = logging.getLogger("warmstart.engine")

_SMALL_TEXT_COST = 4  # tokens that a text counts in addition to its own, for the work of its pooling

Result = NDArray[np.float32]


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
        self._runner, self._head = runner, head
        self._inputs = EncoderTokenizer(info.name, config, tokenizer, self._chat)
        self._metrics = metrics
        self._token_types = token_types
        self._step_tokens = min(step_tokens, runner.max_tokens)
        self._max_queue = max_queue
        self._timeout = timeout
        self._gauges = gauges
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._queue = EncoderQueue()  # guarded by the lock
        self._unfinished: set[EncodeRequest] = set()  # likewise
        self._closing = self._aborting = False
        self._heartbeat = time.monotonic()
        self._seconds_per_request = 0.1  # moving average while busy, for Retry-After
        self._thread = threading.Thread(target=self._main, name=f"engine-{info.name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # the runner's memory must not be freed while a step runs

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs."""
        return self._thread.is_alive()

    @property
    def beating(self) -> bool:
        """Whether the engine makes progress: it is alive and its last heartbeat is less than 10 s old."""
        return self.alive and time.monotonic() - self._heartbeat < MAX_HEARTBEAT_AGE_SECONDS

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
        with self._lock:
            self._check_admission(background)
            self._queue.add(request, background=background)
            self._unfinished.add(request)
        self._wake.set()
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
            request.cancelled = True
            self._wake.set()
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

    def _check_admission(self, background: bool) -> None:
        """Raise an error if a request could not be admitted now."""
        error: ServiceError | None = None
        waiting = len(self._queue.background if background else self._queue.interactive)
        if self._closing:
            error = Draining("the model is being unloaded", retry_after=1)
        elif not self._thread.is_alive():
            error = EngineRestarting("the engine has stopped", retry_after=1)
        elif waiting >= self._max_queue:
            error = TooManyRequests.of_queue(self._max_queue, self._seconds_per_request * waiting)
        if error is not None:
            self._metrics.rejected(error.code)
            raise error

    async def _on_thread(self, call: Callable[[], T], background: bool) -> T:
        """Call in the thread pool; the queue limit is checked before."""
        with self._lock:
            self._check_admission(background)
        return await asyncio.to_thread(call)

    def warm_up(self) -> None:
        """Compute one short text on the calling thread, before any request."""
        self._compute([EncoderInput((0,) * min(8, self._encoder.max_tokens))])

    def close(self, grace: float = 0) -> None:
        """Stop admitting requests, finish the admitted ones, then free the model's memory.

        Args:
            grace: seconds after which unfinished requests fail with ``Draining``.
        """
        atexit.unregister(self.close)
        with self._lock:
            closed, self._closing = self._closing, True
        self._wake.set()
        self._thread.join(grace)
        self._aborting = True
        self._wake.set()
        self._thread.join()
        if not closed:
            self._runner.close()

    # Called on the engine thread

    def _main(self) -> None:
        try:
            while self._step_or_wait():
                pass
        except BaseException:
            _log.critical("the engine thread crashed", exc_info=True)
        with self._lock:
            pending, self._unfinished = self._unfinished, set()
        for request in pending:
            request.complete(
                Draining("the service is shutting down", retry_after=1)
                if self._closing
                else EngineRestarting("the engine crashed while it processed this request; try again", retry_after=1)
            )
        if self._gauges:
            self._metrics.stats.busy(0, 0, 0, 0)

    def _step_or_wait(self) -> bool:
        """Run a step, or wait for work. Returns whether the thread goes on."""
        self._heartbeat = time.monotonic()
        self._wake.clear()
        with self._lock:
            if self._aborting or (self._closing and not self._unfinished):
                return False
            self._unfinished -= {request for request in self._unfinished if request.cancelled}
            self._queue.remove({request for request in self._queue if request.cancelled})
            taken = self._queue.take(self._runner.step_tokens(self._step_tokens), _SMALL_TEXT_COST)
            waiting, queued = len(self._queue.interactive), len(self._queue.background)
            if self._gauges:
                self._metrics.stats.busy(len(self._unfinished) - waiting - queued, waiting, queued, 0)
        if taken:
            self._step(taken)
        else:
            self._wake.wait(HEARTBEAT_SECONDS)
        return True

    def _step(self, taken: list[tuple[EncodeRequest, int]]) -> None:
        started = time.monotonic()
        for request, _ in taken:
            request.started = request.started or started
        texts = [request.inputs[index] for request, index in taken]
        self._metrics.step_tokens.observe(sum(len(text.ids) for text in texts))
        try:
            results: list[Any] = self._compute(texts)
        except Exception:
            _log.exception("a step failed; running each of its %d texts alone", len(texts))
            results = [self._compute_alone(request, index) for request, index in taken]
        for (request, index), result in zip(taken, results, strict=True):
            request.results[index] = result
            error = result if isinstance(result, ServiceError) else None
            if error is not None or (index == len(request.inputs) - 1):
                self._end(request, error)
        ends = sum(index == len(request.inputs) - 1 for request, index in taken)
        if ends:
            self._seconds_per_request += 0.1 * ((time.monotonic() - started) / ends - self._seconds_per_request)

    def _end(self, request: EncodeRequest, error: ServiceError | None) -> None:
        with self._lock:
            self._unfinished.discard(request)
        request.cancelled = True  # the rest of its texts, if it has failed
        request.complete(error)

    def _compute(self, texts: Sequence[EncoderInput]) -> list[Result | ServiceError]:
        """Compute the results of a step's texts."""
        outputs = [self._head.outputs(len(text.ids), text.unpooled) for text in texts]
        results: list[Result | ServiceError] = []
        for text, states in zip(texts, self._runner.states(texts, outputs), strict=True):
            result = self._head(states, text.unpooled)
            if np.isfinite(result).all():
                results.append(result)
            else:
                results.append(InternalError("the model produced values that are not numbers"))
        return results

    def _compute_alone(self, request: EncodeRequest, index: int) -> Result | ServiceError:
        try:
            return self._compute([request.inputs[index]])[0]
        except Exception:
            request.context.run(_log.exception, "a text failed")
            return InternalError("the text could not be encoded; the log has the details")

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
