"""The reference engine: runs transformers' own ``generate`` on an engine thread, one request at a time.

It supports every causal language model that transformers loads, and is the reference that the fast engine is tested
against. ``runtime.engine.pytorch.generator`` generates the rows of a request; this module has the queue, the engine
thread and the streams.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

import torch

from runtime.engine.grammar import GrammarCompiler
from runtime.engine.pytorch.generator import BatchGenerator, BatchRow
from runtime.engine.pytorch.linear import widen_head
from runtime.engine.request_queue import BlockingRequestQueue, timeout_error
from runtime.engine.token_ids import check_token_ids, known_ids
from runtime.engine.tokenization import T, Tokenization
from runtime.errors import (
    ContextLengthExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    ServiceError,
    TooManyRequests,
)
from runtime.host import usable_cores
from runtime.model.chat_encoder import ChatEncoder
from runtime.model.end_tokens import end_ids
from runtime.model.loaded import Loaded
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import Job, ModelInfo, SamplingParams, Token

_log = logging.getLogger("warmstart.engine")

_MAX_BATCH_ROWS = 16  # a request with more rows is requeued after each batch, so that others run in between


@dataclass(frozen=True, slots=True)
class _StepOutput:
    """The tokens that one step produced for a request, and the monotonic time at which the step finished."""

    time: float
    tokens: list[Token]


_Item = _StepOutput | ServiceError | None  # None ends a stream


@dataclass(slots=True, eq=False)
class _Task:
    """A request in the engine's queue, with the outbox that its stream reads."""

    rows: list[BatchRow]
    background: bool
    loop: asyncio.AbstractEventLoop
    outbox: asyncio.Queue[_Item]
    started: float = 0.0  # monotonic time at which its generation began, 0 before that
    finished: int = 0  # number of leading rows that are done
    cancelled: threading.Event = field(default_factory=threading.Event)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)  # for the request id in log lines

    def put(self, item: _Item) -> None:
        """Post an item to the caller's event loop, from the engine thread. A closed loop cancels the task."""
        try:
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, item)
        except RuntimeError:
            self.cancelled.set()


class ReferenceEngine(Tokenization):
    """Engine that runs transformers' ``generate``. Implements ``handlers.protocols.Engine``.

    Args:
        loaded: the model, its tokenizer and its device.
        info: the model's metadata.
        metrics: the model's metrics.
        max_queue: maximum number of waiting requests, for interactive requests and background requests each.
            This engine does not preempt a running batch.
        timeout: maximum seconds per request, including the time in the queue.
        num_threads: number of CPU threads; 0 uses all cores available to the process.
    """

    def __init__(
        self,
        loaded: Loaded,
        info: ModelInfo,
        *,
        metrics: ModelMetrics,
        max_queue: int = 64,
        timeout: float = 600,
        num_threads: int = 0,
    ) -> None:
        super().__init__(loaded.tokenizer, ChatEncoder(loaded.tokenizer), info)
        self._metrics = metrics
        self._timeout = timeout
        configured = loaded.model.generation_config.eos_token_id
        eos = frozenset(known_ids(end_ids(configured, loaded.tokenizer), info.vocabulary_size))
        self._grammars = GrammarCompiler(loaded.tokenizer, end_ids=eos, vocabulary=info.vocabulary_size)
        self._head_bytes = widen_head(loaded.model)
        self._generator = BatchGenerator(loaded.model, loaded.tokenizer, loaded.device, eos)
        self._queue = BlockingRequestQueue[_Task]()
        self._max_queue = max_queue
        self._closing = threading.Event()  # set: no new requests are admitted
        self._aborting = threading.Event()  # set: admitted requests are ended
        self._running = 0  # number of running requests
        self._metrics_lock = threading.Lock()
        self._batch_seconds = 1.0  # moving average of seconds per batch, for Retry-After
        torch.set_num_threads(num_threads or usable_cores())
        self._thread = threading.Thread(target=self._run_queue, name=f"engine-{info.name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # torch aborts the process if the interpreter exits during a generation

    @property
    def alive(self) -> bool:
        """Whether the engine thread runs."""
        return self._thread.is_alive()

    @property
    def beating(self) -> bool:
        """The same as ``alive``, since a step of ``generate`` has no time limit."""
        return self.alive

    @property
    def memory_bytes(self) -> int:
        """Memory of the weights and the float32 head in bytes, without the keys and values of running batches."""
        return self.info.weights_bytes + self._head_bytes

    async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        """Generate for all jobs and yield one token at a time; see ``handlers.protocols.Engine`` for the errors."""
        background = any(job.background for job in jobs)
        try:
            for job in jobs:
                self._check_length(job)
            self._check_admission(background)
            for job in jobs:
                check_token_ids(job, self.info.vocabulary_size, self._tokenizer.token_bytes)
            rows = await self._compiled(self._rows(jobs))
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise
        loop = asyncio.get_running_loop()
        task = _Task(rows, background, loop, asyncio.Queue())
        record = self._metrics.request(jobs)
        prompts = {index: row for index, row in enumerate(task.rows) if row.index == 0}  # the first of each prompt
        self._queue.put(task, background=background)
        self._update_metrics()
        timer = loop.call_later(self._timeout, lambda: task.outbox.put_nowait(timeout_error(self._timeout, task)))
        try:
            while (item := await task.outbox.get()) is not None:
                if isinstance(item, ServiceError):
                    record.failed(item.code)
                    raise item
                for token in item.tokens:
                    if (row := prompts.pop(token.sequence, None)) is not None:
                        record.prompt(len(row.prompt), 0)
                    record.token(token.sequence, item.time, task.started, token.finish_reason)
                    yield token
        finally:
            timer.cancel()
            record.closed(task.started)
            task.cancelled.set()

    def warm_up(self) -> None:
        """Run one short generation on the calling thread, so that the first request does not pay for initialization."""
        ids = known_ids(self._tokenizer.encode("Warm up."), self.info.vocabulary_size) or (0,)
        params = SamplingParams(max_new_tokens=2, temperature=0)
        self._generator.generate([BatchRow(ids, params, 0, 0, 0, self._detokenizer(ids, params))], lambda tokens: True)

    def close(self, grace: float = 0) -> None:
        """Stop admitting requests, finish the admitted ones, then free the model's memory.

        Args:
            grace: seconds after which unfinished requests fail with ``Draining``.
        """
        atexit.unregister(self.close)
        self._closing.set()
        self._queue.close()
        self._thread.join(grace)
        self._aborting.set()
        self._thread.join()
        self._generator.close()

    async def _on_thread(self, call: Callable[[], T], background: bool) -> T:
        return await asyncio.to_thread(call)

    def _update_metrics(self) -> None:
        with self._metrics_lock:  # otherwise the thread with the older values might report last
            self._metrics.stats.busy(self._running, self._queue.interactive, self._queue.background, 0)

    def _check_admission(self, background: bool) -> None:
        """Raise an error if the engine is closing or the queue is full."""
        if self._closing.is_set():
            raise Draining("the model is being unloaded", retry_after=1)
        if (self._queue.background if background else self._queue.interactive) >= self._max_queue:
            raise TooManyRequests.of_queue(self._max_queue, self._batch_seconds * self._max_queue)

    def _check_length(self, job: Job) -> None:
        """Raise an error if a job's prompt is empty or exceeds the context length."""
        prompt, new = len(job.token_ids), job.params.max_new_tokens
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        if prompt + new - 1 > self.info.context_length:  # the last token is never fed to the model
            raise ContextLengthExceeded.of(self.info.context_length, prompt, new)

    def _rows(self, jobs: Sequence[Job]) -> list[BatchRow]:
        rows: list[BatchRow] = []
        for job in jobs:
            prompt = job.token_ids
            seed = secrets.randbits(64) if job.params.seed is None else job.params.seed
            limits = self._token_limits(job.params, self._generator.eos)
            for index in range(job.params.n):
                params = job.sequence_params(index)
                detokenizer = self._detokenizer(prompt, params)
                rows.append(BatchRow(prompt, params, seed, index, len(rows), detokenizer, limits=limits))
        return rows

    async def _compiled(self, rows: list[BatchRow]) -> list[BatchRow]:
        """Set the grammar of each row that has one, in the thread pool, and return the rows."""

        def compile_all() -> None:
            for row in rows:
                if row.params.grammar is not None:
                    row.grammar = self._grammars.compile(row.params.grammar)

        if any(row.params.grammar is not None for row in rows):
            await asyncio.to_thread(compile_all)
        return rows

    def _run_queue(self) -> None:
        """Run queued requests one batch of rows at a time until the queue is closed and empty (engine thread)."""
        while (task := self._queue.get()) is not None:
            if not task.cancelled.is_set():
                started = time.monotonic()
                task.started = task.started or started
                self._running = 1
                self._update_metrics()
                rows = task.rows[task.finished : task.finished + _MAX_BATCH_ROWS]
                failure = task.context.run(self._run_batch, task, rows)
                task.finished += len(rows)
                if failure is None and task.finished < len(task.rows):
                    self._queue.put(task, background=task.background)
                else:
                    task.put(failure)
                self._running = 0
                self._batch_seconds += 0.2 * (time.monotonic() - started - self._batch_seconds)
            self._update_metrics()

    def _run_batch(self, task: _Task, rows: list[BatchRow]) -> ServiceError | None:
        """Generate some rows of a request. Returns the error if that failed, else None."""

        def deliver(tokens: list[Token]) -> bool:
            self._metrics.step_tokens.observe(len(tokens))
            task.put(_StepOutput(time.monotonic(), tokens))
            return not (task.cancelled.is_set() or self._aborting.is_set())

        try:
            if not self._aborting.is_set():
                self._generator.generate(rows, deliver)
        except ServiceError as error:
            return error
        except Exception:
            _log.exception("a generation failed")
            return InternalError("the generation failed; the log has the details")
        if all(row.done for row in rows) or task.cancelled.is_set():
            return None
        return Draining("the service is shutting down", retry_after=1)
