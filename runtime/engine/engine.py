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
from typing import Protocol

from runtime.engine.detokenizer import Decoding, IncrementalDetokenizer
from runtime.engine.request_queue import timeout_error
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Row, Runner, Sequence
from runtime.engine.token_ids import check_token_ids, known_ids
from runtime.engine.worker import EngineThread, Request
from runtime.errors import (
    ContextLengthExceeded,
    Draining,
    EngineRestarting,
    InvalidRequest,
    ModelUnavailable,
    ServiceError,
)
from runtime.model.chat_encoder import PLAIN_STOPS, ChatEncoder
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import Job, Message, ModelInfo, SamplingParams, Token

_log = logging.getLogger("warmstart.engine")

_MOST_DEATHS = 4  # three restarts; the fourth crash within ``_WITHIN_SECONDS`` is final
_WITHIN_SECONDS = 60.0
_STALE_SECONDS = 10.0  # a step takes tens of milliseconds; only long prompts on slow machines take seconds
_BURST = 64  # tokens of a step that are handed over before the event loop runs other tasks


class TokenizerLike(Decoding, Protocol):
    """The tokenizer interface that the engine needs. All methods are thread-safe."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a raw text."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a prompt to continue, at least one; see ``runtime.model.tokenizer.Tokenizer``."""
        ...


class FastEngine:
    """Engine that batches all requests on one engine thread. Implements ``handlers.protocols.Engine``.

    A crashed engine thread is replaced; after four crashes within a minute the engine stays down.

    Args:
        runner: the model runner; closed with the engine.
        scheduler: an empty scheduler over the runner's KV blocks.
        tokenizer: the model's tokenizer.
        chat: encoder of chat messages to token ids.
        info: the model's metadata.
        metrics: the model's metrics.
        max_queue: maximum number of waiting requests, for interactive and background requests (``Job.queued``) each.
        timeout: maximum seconds per request, including the time in the queue.
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
        max_queue: int = 64,
        timeout: float = 600,
    ) -> None:
        self.info = info
        self.chat_stops: tuple[str, ...] = () if chat.own_template else PLAIN_STOPS
        self._runner = runner
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._chat = chat
        self._metrics = metrics
        self._max_queue = max_queue
        self._timeout = timeout
        self._lock = threading.Lock()
        self._closing = self._dead = False
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self._worker = self._start()
        self._watch = threading.Thread(target=self._supervise, name=f"engine-watch-{info.name}", daemon=True)
        self._watch.start()
        atexit.register(self.close)  # the runner's memory must not be freed while a step runs

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs or is being restarted. False for good once the engine is dead or closed."""
        return self._watch.is_alive()

    @property
    def beating(self) -> bool:
        """Whether the engine makes progress: it is alive and its last heartbeat is less than 10 s old."""
        return self.alive and time.monotonic() - self._worker.beat < _STALE_SECONDS

    @property
    def memory_bytes(self) -> int:
        """Memory in use, in bytes: a CPU's KV cache counts as far as it was written, another device's in full."""
        lazily = self.info.device == "cpu"
        return self.info.weights_bytes + (
            self._scheduler.kv_touched * self._runner.block_bytes if lazily else self.info.kv_bytes
        )

    async def encode(self, text: str, *, queued: bool = False) -> tuple[int, ...]:
        """Tokenize a raw prompt. Raises at once if the engine accepts no requests now."""
        return await self._off_loop(lambda: tuple(self._tokenizer.encode_prompt(text)), queued)

    async def encode_chat(self, messages: Items[Message], *, queued: bool = False) -> tuple[int, ...]:
        """Tokenize a chat. Raises at once if the engine accepts no requests now."""
        return await self._off_loop(lambda: self._chat.encode(messages), queued)

    async def encode_plain(self, text: str, *, queued: bool = False) -> tuple[int, ...]:
        """Tokenize a text without control tokens. Raises at once if the engine accepts no requests now."""
        return await self._off_loop(lambda: self._chat.encode_plain(text), queued)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be part of a UTF-8 character."""
        return self._tokenizer.token_bytes(token_id)

    async def stream(self, jobs: Items[Job]) -> AsyncGenerator[Token, None]:
        """Generate for all jobs and yield one token at a time; see ``handlers.protocols.Engine`` for the errors."""
        sequences = [sequence for job in jobs for sequence in self._sequences(job)]
        left = set(range(len(sequences)))
        texts: dict[int, IncrementalDetokenizer] = {}  # by index, of started sequences
        firsts = {index for index, sequence in enumerate(sequences) if sequence.number == 0}  # per prompt
        loop = asyncio.get_running_loop()
        request = Request(sequences, loop)
        record = self._metrics.request(len(sequences))
        worker = self._admit(lambda worker: worker.submit(request))
        timer = loop.call_later(self._timeout, lambda: request.outbox.put_nowait(timeout_error(self._timeout, request)))
        try:
            while left:
                item = await request.outbox.get()
                if isinstance(item, ServiceError):
                    record.failed(item.code)
                    raise item
                for count, (index, sampled, reason) in enumerate(item.tokens):
                    if count and count % _BURST == 0:  # forced tokens come thousands at a time
                        await asyncio.sleep(0)
                    if index not in left:  # generated after its stop string
                        continue
                    if (text := texts.get(index)) is None:
                        text = texts[index] = self._text(sequences[index])
                    if reason == "stop":
                        piece = text.flush()
                    else:
                        piece = text.push(sampled.id)
                        if reason is not None and not text.stopped:
                            piece += text.flush()
                    if text.stopped:
                        if reason is None:
                            worker.cancel([sequences[index]])
                        reason = "stop"
                    if reason is not None:
                        left.remove(index)
                        del texts[index]
                    cached = 0
                    if index in firsts:
                        firsts.remove(index)
                        cached = sequences[index].cached
                        record.prompt(len(sequences[index].prompt), cached)
                    record.token(index, item.now, request.started, reason)
                    yield Token(index, sampled.id, piece, reason, sampled.logprob, sampled.top, cached)
        finally:
            timer.cancel()
            record.closed(request.started)
            worker.leave(request)

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
        self._worker.close()
        self._watch.join(grace)
        self._worker.close(abort=True)
        self._watch.join()
        if not closed:
            self._runner.close()

    def _start(self) -> EngineThread:
        return EngineThread(
            f"engine-{self.info.name}",
            self._runner,
            self._scheduler,
            max_queue=self._max_queue,
            metrics=self._metrics,
        )

    def _supervise(self) -> None:
        """Wait for the engine thread to end; start a new one unless the engine is closing or crashes too often."""
        while True:
            worker = self._worker
            worker.thread.join()
            with self._lock:
                if self._closing:
                    worker.bury(lambda: Draining("the service is shutting down", retry_after=1))
                    return
                self._deaths.append(time.monotonic())
                if len(self._deaths) == _MOST_DEATHS and self._deaths[-1] - self._deaths[0] < _WITHIN_SECONDS:
                    _log.critical("the engine died %d times within a minute and stays dead", _MOST_DEATHS)
                    self._dead = True
                    worker.bury(_died)
                    return
                worker.bury(_died)
                self._scheduler.reset()
                self._worker = self._start()
                self._metrics.restarts.inc()

    async def _off_loop(self, tokenize: Callable[[], tuple[int, ...]], queued: bool) -> tuple[int, ...]:
        """Tokenize in the thread pool; check the queue limit before the submission and again before the work."""

        def checked() -> tuple[int, ...]:
            self._admit(lambda worker: worker.check(queued))
            return tokenize()

        self._admit(lambda worker: worker.check(queued))
        return await asyncio.to_thread(checked)

    def _admit(self, call: Callable[[EngineThread], None]) -> EngineThread:
        """Call ``check`` or ``submit`` of the current engine thread, and count rejections in the metrics."""
        worker = self._worker
        try:
            if self._dead:
                raise ModelUnavailable("the engine died too often and stays down; restart the service", retry_after=10)
            call(worker)
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise
        return worker

    def _sequences(self, job: Job) -> list[Sequence]:
        """Validate a job and make its ``n`` sequences; the first one is the leader of the others."""
        prompt, params = job.token_ids, job.params
        seed = secrets.randbits(63) if params.seed is None else params.seed
        first = Sequence(prompt, params, seed, queued=job.queued)
        try:
            if not prompt:
                raise InvalidRequest("the prompt has no tokens", param="prompt")
            check_token_ids(job, self.info.vocabulary_size, self._tokenizer.token_bytes)
            if first.capacity > self.info.context_length:
                raise ContextLengthExceeded.of(self.info.context_length, len(prompt), params.max_new_tokens)
            if not self._scheduler.fits(first):
                raise ContextLengthExceeded.of(
                    self._runner.blocks * self._runner.block_tokens,
                    len(prompt),
                    params.max_new_tokens,
                    because=" with the memory that there is for keys and values (KV_CACHE_BYTES)",
                )
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise
        others = range(1, params.n)
        return [first, *(Sequence(prompt, params, seed, number, first, job.queued) for number in others)]

    def _text(self, sequence: Sequence) -> IncrementalDetokenizer:
        # Minimum number of tokens before a stop string may end the sequence.
        least = max(sequence.params.min_new_tokens, len(sequence.params.forced) + 1)
        return IncrementalDetokenizer(self._tokenizer, sequence.prompt, sequence.params.stop, least)


def _died() -> EngineRestarting:
    return EngineRestarting("the engine died beneath this request; try again", retry_after=1)
