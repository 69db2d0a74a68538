"""The fast engine: continuous batching on a supervised engine thread, and a token stream per request."""

from __future__ import annotations

import asyncio
import atexit
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

from runtime.encoder_types import EncoderInput, Truncation
from runtime.engine.core_share import CoreShare
from runtime.engine.detokenizer import IncrementalDetokenizer
from runtime.engine.encoder_engine import EncoderEngine
from runtime.engine.engine_thread import MAX_HEARTBEAT_AGE_SECONDS, EngineThread
from runtime.engine.grammar import GrammarCompiler
from runtime.engine.request import Request
from runtime.engine.request_queue import timeout_error
from runtime.engine.runners import Runner
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Row, Sequence
from runtime.engine.token_ids import check_token_ids, known_ids
from runtime.engine.token_limits import TokenLimits
from runtime.engine.tokenization import T, Tokenization, TokenizerLike
from runtime.errors import (
    ContextLengthExceeded,
    Draining,
    EngineRestarting,
    InvalidRequest,
    ModelUnavailable,
    ServiceError,
)
from runtime.model.chat_encoder import ChatEncoder
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import Job, ModelInfo, SamplingParams, Token

_log = logging.getLogger("warmstart.engine")

_MAX_CRASHES = 4  # three restarts; the fourth crash within ``_CRASH_WINDOW_SECONDS`` is final
_CRASH_WINDOW_SECONDS = 60.0
_MAX_BURST = 64  # tokens of a step that are yielded before the event loop runs other tasks


class FastEngine(Tokenization):
    """Engine that batches all requests on one engine thread. Implements ``handlers.protocols.Engine``.

    A crashed engine thread is replaced; after four crashes within a minute it is not restarted.

    Args:
        runner: the model runner; closed with the engine.
        scheduler: an empty scheduler over the runner's KV blocks.
        tokenizer: the model's tokenizer.
        chat: encoder of chat messages to token ids.
        info: the model's metadata.
        metrics: the model's metrics.
        grammars: compiles grammars for the model.
        max_queue: maximum number of waiting requests, for interactive requests and background requests each.
        timeout: maximum seconds per request, including the time in the queue.
        share: gives encoders in this process their turns between steps.
        embedder: opens the same weights as an encoder, at the first text to embed; None if the model does not embed.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        tokenizer: TokenizerLike,
        chat: ChatEncoder,
        info: ModelInfo,
        *,
        metrics: ModelMetrics,
        grammars: GrammarCompiler,
        max_queue: int = 64,
        timeout: float = 600,
        share: CoreShare | None = None,
        embedder: Callable[[], EncoderEngine] | None = None,
    ) -> None:
        super().__init__(tokenizer, chat, info)
        self._runner = runner
        self._scheduler = scheduler
        self._metrics = metrics
        self._grammars = grammars
        self._max_queue = max_queue
        self._timeout = timeout
        self._share = share
        self._open_embedder = embedder
        self._embedder: EncoderEngine | None = None
        self._lock = threading.Lock()
        self._closing = self._dead = False
        self._crashes: deque[float] = deque(maxlen=_MAX_CRASHES)
        self._thread = self._start()
        self._supervisor = threading.Thread(target=self._supervise, name=f"engine-watch-{info.name}", daemon=True)
        self._supervisor.start()
        atexit.register(self.close)  # the runner's memory must not be freed while a step runs

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs or is being restarted. False for good once the engine is dead or closed."""
        return self._supervisor.is_alive()

    @property
    def beating(self) -> bool:
        """Whether the engine makes progress: it is alive and its last heartbeat is less than 10 s old."""
        return self.alive and time.monotonic() - self._thread.heartbeat < MAX_HEARTBEAT_AGE_SECONDS

    @property
    def memory_bytes(self) -> int:
        """Memory in use, in bytes: a CPU's KV cache counts as far as it was written, another device's in full."""
        kv_bytes = self.info.kv_bytes
        if self.info.device == "cpu":
            kv_bytes = self._scheduler.kv_touched * self._runner.block_bytes
        return self.info.weights_bytes + kv_bytes

    async def stream(self, jobs: Items[Job]) -> AsyncGenerator[Token, None]:
        """Generate for all jobs and yield one token at a time; see ``handlers.protocols.Engine`` for the errors."""
        sequences = [sequence for job in jobs for sequence in self._sequences(job)]
        await self._compile_grammars(sequences)
        unfinished = set(range(len(sequences)))
        detokenizers: dict[int, IncrementalDetokenizer] = {}  # by index, of started sequences
        firsts = {index for index, sequence in enumerate(sequences) if sequence.number == 0}  # per prompt
        loop = asyncio.get_running_loop()
        request = Request(sequences, loop)
        record = self._metrics.request(jobs)
        thread = self._admit(lambda thread: thread.submit(request))
        timer = loop.call_later(self._timeout, lambda: request.outbox.put_nowait(timeout_error(self._timeout, request)))
        try:
            while unfinished:
                item = await request.outbox.get()
                if isinstance(item, ServiceError):
                    record.failed(item.code)
                    raise item
                for count, (index, sampled, reason) in enumerate(item.tokens):
                    if count and count % _MAX_BURST == 0:  # forced tokens come thousands at a time
                        await asyncio.sleep(0)
                    if index not in unfinished:  # generated after its stop string
                        continue
                    if (detokenizer := detokenizers.get(index)) is None:
                        sequence = sequences[index]
                        detokenizer = detokenizers[index] = self._detokenizer(sequence.prompt, sequence.params)
                    if reason == "stop":
                        text = detokenizer.end(sampled.id)
                    else:
                        text = detokenizer.push(sampled.id)
                        if reason is not None and not detokenizer.stopped:
                            text += detokenizer.flush()
                    if detokenizer.stopped:
                        if reason is None:
                            thread.cancel_sequences([sequences[index]])
                        reason = "stop"
                    if reason is not None:
                        unfinished.remove(index)
                        del detokenizers[index]
                        record.preemptions += sequences[index].preemptions
                    cached = 0
                    if index in firsts:
                        firsts.remove(index)
                        cached = sequences[index].cached
                        record.prompt(len(sequences[index].prompt), cached)
                    record.token(index, item.time, request.started, reason)
                    yield Token(
                        index, sampled.id, text, reason, sampled.logprob, sampled.top, cached, detokenizer.stop_string
                    )
        finally:
            timer.cancel()
            record.closed(request.started)
            thread.cancel_request(request)

    async def tokenize_inputs(
        self,
        texts: Items[str | tuple[str, str]],
        *,
        prompt: str = "",
        max_tokens: int | None = None,
        truncate: Truncation = "none",
        background: bool = False,
        field: str = "input",
    ) -> list[EncoderInput]:
        """Tokenize texts to embed; see ``handlers.protocols.Encoder``."""
        embedder = await self._embeds()
        return await embedder.tokenize_inputs(
            texts, prompt=prompt, max_tokens=max_tokens, truncate=truncate, background=background, field=field
        )

    async def embed(
        self, inputs: Items[EncoderInput], *, background: bool = False, field: str = "input"
    ) -> list[NDArray[np.float32]]:
        """Return the vector of each input, the mean of its tokens' states; see ``handlers.protocols.Encoder``."""
        return await (await self._embeds()).embed(inputs, background=background, field=field)

    async def _embeds(self) -> EncoderEngine:
        """Return the engine that embeds with this model's weights, opened at the first call."""

        def opened() -> EncoderEngine:
            with self._lock:
                if self._closing:
                    raise Draining("the model is being unloaded", retry_after=1)
                if self._open_embedder is None:
                    self._refuse_to_encode()
                if self._embedder is None:
                    self._embedder = self._open_embedder()
                return self._embedder

        found = self._embedder
        return found if found is not None else await asyncio.to_thread(opened)

    def warm_up(self) -> None:
        """Run one short generation on the calling thread, before any request. The prefix cache stays empty."""
        prompt = known_ids(self._tokenizer.encode("Warm up."), self.info.vocabulary_size) or (0,)
        sequence = Sequence(prompt, SamplingParams(max_new_tokens=3, temperature=0), seed=0)
        sequence.blocks = list(range(-(-sequence.capacity // self._runner.block_tokens)))
        for _ in range(3):
            start = sequence.computed
            (result,) = self._runner.step([Row(sequence, start, sequence.tokens[start:])])
            if isinstance(result, ServiceError):
                raise result
            sequence.computed = len(sequence.tokens)
            sequence.tokens.append(result[0].id)

    def close(self, grace: float = 0) -> None:
        """Stop admitting requests, finish the admitted ones, then free the model's memory.

        Args:
            grace: seconds after which unfinished requests fail with ``Draining``.
        """
        atexit.unregister(self.close)
        with self._lock:
            closed, self._closing = self._closing, True
        self._thread.close()
        self._supervisor.join(grace)
        self._thread.close(abort=True)
        self._supervisor.join()
        with self._lock:
            embedder, self._embedder = self._embedder, None
        if embedder is not None:
            embedder.close()
        if not closed:
            self._runner.close()

    def _start(self) -> EngineThread:
        return EngineThread(
            f"engine-{self.info.name}",
            self._runner,
            self._scheduler,
            max_queue=self._max_queue,
            metrics=self._metrics,
            share=self._share,
        )

    def _supervise(self) -> None:
        """Wait for the engine thread to end; start a new one unless the engine is closing or crashes too often."""
        while True:
            thread = self._thread
            thread.thread.join()
            with self._lock:
                if self._closing:
                    thread.fail_pending(lambda: Draining("the service is shutting down", retry_after=1))
                    return
                self._crashes.append(time.monotonic())
                if len(self._crashes) == _MAX_CRASHES and self._crashes[-1] - self._crashes[0] < _CRASH_WINDOW_SECONDS:
                    _log.critical("the engine crashed %d times within a minute and is not restarted", _MAX_CRASHES)
                    self._dead = True
                    thread.fail_pending(_crashed)
                    return
                thread.fail_pending(_crashed)
                self._scheduler.reset()
                self._thread = self._start()
                self._metrics.restarts.inc()

    async def _compile_grammars(self, sequences: Items[Sequence]) -> None:
        """Set the grammar of each sequence that has one; compiling takes a while, so it is done in the thread pool."""
        constrained = [sequence for sequence in sequences if sequence.params.grammar is not None]
        if not constrained:
            return
        background = constrained[0].background
        self._admit(lambda thread: thread.check_admission(background))

        def compile_all() -> None:
            for sequence in constrained:
                assert sequence.params.grammar is not None
                sequence.grammar = self._grammars.compile(sequence.params.grammar)

        try:
            await asyncio.to_thread(compile_all)
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise

    async def _on_thread(self, call: Callable[[], T], background: bool) -> T:
        """Call in the thread pool; the queue limit is checked before the submission and again before the work."""

        def check_and_call() -> T:
            self._admit(lambda thread: thread.check_admission(background))
            return call()

        self._admit(lambda thread: thread.check_admission(background))
        return await asyncio.to_thread(check_and_call)

    def _admit(self, call: Callable[[EngineThread], None]) -> EngineThread:
        """Call ``check_admission`` or ``submit`` of the current engine thread, and count rejections in the metrics."""
        thread = self._thread
        try:
            if self._dead:
                raise ModelUnavailable(
                    "the engine crashed too often and is not restarted; restart the service", retry_after=10
                )
            call(thread)
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise
        return thread

    def _sequences(self, job: Job) -> list[Sequence]:
        """Validate a job and make its ``n`` sequences; the first one is the leader of the others."""
        prompt, params = job.token_ids, job.params
        seed = secrets.randbits(63) if params.seed is None else params.seed
        limits: TokenLimits | None = None

        def sequence(number: int, leader: Sequence | None) -> Sequence:
            own = job.sequence_params(number)
            return Sequence(prompt, own, seed, number, leader, job.background, limits=limits, cache_salt=job.cache_salt)

        try:
            if not prompt:
                raise InvalidRequest("the prompt has no tokens", param="prompt")
            check_token_ids(job, self.info.vocabulary_size, self._tokenizer.token_bytes)
            limits = self._token_limits(params, self._scheduler.eos)
            first = sequence(0, None)
            others = [sequence(number, first) for number in range(1, params.n)]
            longest = max([first, *others], key=lambda sequence: sequence.capacity)
            if longest.capacity > self.info.context_length:
                raise ContextLengthExceeded.of(self.info.context_length, len(prompt), params.max_new_tokens)
            if not self._scheduler.fits(longest):
                raise ContextLengthExceeded.of(
                    self._runner.blocks * self._runner.block_tokens,
                    len(prompt),
                    params.max_new_tokens,
                    because=" of the KV cache (KV_CACHE_BYTES)",
                )
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise
        return [first, *others]


def _crashed() -> EngineRestarting:
    return EngineRestarting("the engine crashed while it processed this request; try again", retry_after=1)
