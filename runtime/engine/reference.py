"""The reference engine: runs transformers' own ``generate`` on an engine thread, one request at a time.

It supports every causal language model that transformers loads, and is the reference that the fast engine is tested
against. The rows of a request run as one batch if that does not change their results, see
``runtime.engine.pytorch.padding``. Tokens are sampled by ``runtime.engine.pytorch.sampling`` inside the generation
loop, so seeds, per-row limits, stop strings, streaming and cancellation work per row.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from runtime.device import release_memory
from runtime.engine.detokenizer import IncrementalDetokenizer
from runtime.engine.pytorch.linear import widen_head
from runtime.engine.pytorch.padding import Batching, RotaryState, batching, left_padded
from runtime.engine.pytorch.sampling import Draw, adjust, log_probabilities, sample
from runtime.engine.request_queue import BlockingRequestQueue, timeout_error
from runtime.engine.rng import uniform
from runtime.engine.token_ids import check_token_ids, known_ids
from runtime.errors import (
    ContextLengthExceeded,
    Draining,
    InternalError,
    InvalidRequest,
    ServiceError,
    TooManyRequests,
)
from runtime.host import usable_cores
from runtime.model.chat_encoder import PLAIN_STOPS, ChatEncoder
from runtime.model.end_tokens import end_ids
from runtime.model.loaded import Loaded
from runtime.telemetry.model_metrics import ModelMetrics
from runtime.types import FinishReason, Job, Message, ModelInfo, SamplingParams, Token

_log = logging.getLogger("warmstart.engine")

_MOST_ROWS = 16  # maximum rows per batch; a request with more is requeued after each batch, so that others run between
_PROBE = "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the sun as if nothing had happened."


@dataclass(frozen=True, slots=True)
class _StepOutput:
    """The tokens that one step produced for a request, and the monotonic time at which the step finished."""

    now: float
    tokens: list[Token]


_Item = _StepOutput | ServiceError | None  # None ends a stream
_Deliverer = Callable[[list[Token]], bool]  # called with one step's tokens; returns whether to continue


@dataclass(slots=True)
class _Row:
    """The state of one sequence of a request."""

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    index: int  # index within its prompt
    place: int  # index within its request
    text: IncrementalDetokenizer
    ids: list[int] = field(default_factory=list)
    reported: tuple[float | None, tuple[tuple[int, float], ...]] = (None, ())  # logprob, top_logprobs of the last id
    done: bool = False

    def draw(self, end_tokens: frozenset[int]) -> Draw:
        """Return the sampling inputs of the row's next token, except the logits."""
        params = self.params
        return Draw(
            params,
            uniform(self.seed, self.index, len(self.ids)),
            [*self.prompt, *self.ids] if params.repetition_penalty != 1 else (),
            Counter(self.ids) if params.presence_penalty or params.frequency_penalty else None,
            tuple(end_tokens) if len(params.forced) <= len(self.ids) < params.min_new_tokens else (),
            len(self.ids),
        )


@dataclass(slots=True, eq=False)
class _Task:
    """A request in the engine's queue, with the outbox that its stream reads."""

    rows: list[_Row]
    queued: bool
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


class ReferenceEngine:
    """Engine that runs transformers' ``generate``. Implements ``handlers.protocols.Engine``.

    Args:
        loaded: the model, its tokenizer and its device.
        info: the model's metadata.
        metrics: the model's metrics.
        max_queue: maximum number of waiting requests, for interactive and background requests (``Job.queued``) each.
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
        self.info = info
        self._metrics = metrics
        self._model = loaded.model
        self._tokenizer = loaded.tokenizer
        self._device = loaded.device
        self._timeout = timeout
        self._chat = ChatEncoder(loaded.tokenizer)
        self.chat_stops: tuple[str, ...] = () if self._chat.own_template else PLAIN_STOPS
        configured = loaded.model.generation_config.eos_token_id
        self._eos = frozenset(known_ids(end_ids(configured, loaded.tokenizer), info.vocabulary_size))
        # Finished rows are fed this token until the others finish; the output is not used.
        self._pad = min(self._eos, default=0)
        self._model.generation_config = GenerationConfig()  # otherwise the model's own defaults apply to every call
        self._head_bytes = widen_head(self._model)
        self._rotary = RotaryState(self._model)
        self._inbox = BlockingRequestQueue[_Task]()
        self._max_queue = max_queue
        self._closing = threading.Event()  # set: no new requests are admitted
        self._aborting = threading.Event()  # set: admitted requests are ended
        self._busy = 0  # number of running requests
        self._gauging = threading.Lock()
        self._seconds = 1.0  # moving average of seconds per batch, for Retry-After
        torch.set_num_threads(num_threads or usable_cores())
        self._thread = threading.Thread(target=self._work, name=f"engine-{info.name}", daemon=True)
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

    async def encode(self, text: str, *, queued: bool = False) -> tuple[int, ...]:
        """Tokenize a raw prompt in the thread pool."""
        return tuple(await asyncio.to_thread(self._tokenizer.encode_prompt, text))

    async def encode_chat(self, messages: Sequence[Message], *, queued: bool = False) -> tuple[int, ...]:
        """Tokenize a chat in the thread pool."""
        return await asyncio.to_thread(self._chat.encode, messages)

    async def encode_plain(self, text: str, *, queued: bool = False) -> tuple[int, ...]:
        """Tokenize a text without control tokens, in the thread pool."""
        return await asyncio.to_thread(self._chat.encode_plain, text)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token, which may be part of a UTF-8 character."""
        return self._tokenizer.token_bytes(token_id)

    async def stream(self, jobs: Sequence[Job]) -> AsyncGenerator[Token, None]:
        """Generate for all jobs and yield one token at a time; see ``handlers.protocols.Engine`` for the errors."""
        queued = any(job.queued for job in jobs)
        try:
            for job in jobs:
                self._check(job)
            self._admit(queued)
            for job in jobs:
                check_token_ids(job, self.info.vocabulary_size, self._tokenizer.token_bytes)
        except ServiceError as error:
            self._metrics.rejected(error.code)
            raise
        loop = asyncio.get_running_loop()
        task = _Task(self._rows(jobs), queued, loop, asyncio.Queue())
        record = self._metrics.request(len(task.rows))
        prompts = {index: row for index, row in enumerate(task.rows) if row.index == 0}  # the first of each prompt
        self._inbox.put(task, queued=queued)
        self._gauge()
        timer = loop.call_later(self._timeout, lambda: task.outbox.put_nowait(timeout_error(self._timeout, task)))
        try:
            while (item := await task.outbox.get()) is not None:
                if isinstance(item, ServiceError):
                    record.failed(item.code)
                    raise item
                for token in item.tokens:
                    if (row := prompts.pop(token.sequence, None)) is not None:
                        record.prompt(len(row.prompt), 0)
                    record.token(token.sequence, item.now, task.started, token.finish_reason)
                    yield token
        finally:
            timer.cancel()
            record.closed(task.started)
            task.cancelled.set()

    def warm_up(self) -> None:
        """Run one short generation on the calling thread, so that the first request does not pay for initialization."""
        ids = known_ids(self._tokenizer.encode("Warm up."), self.info.vocabulary_size) or (self._pad,)
        params = SamplingParams(max_new_tokens=2, temperature=0)
        self._generate([_Row(ids, params, 0, 0, 0, self._text(ids, params))], lambda tokens: True)

    def close(self, grace: float = 0) -> None:
        """Stop admitting requests, finish the admitted ones, then free the model's memory.

        Args:
            grace: seconds after which unfinished requests fail with ``Draining``.
        """
        atexit.unregister(self.close)
        self._closing.set()
        self._inbox.close()
        self._thread.join(grace)
        self._aborting.set()
        self._thread.join()
        self._model = None
        release_memory(self._device)

    def _gauge(self) -> None:
        with self._gauging:  # otherwise the thread with the older values might report last
            self._metrics.stats.busy(self._busy, self._inbox.online, self._inbox.queued, 0)

    def _admit(self, queued: bool) -> None:
        """Raise an error if the engine is closing or the queue is full."""
        if self._closing.is_set():
            raise Draining("the model is being unloaded", retry_after=1)
        if (self._inbox.queued if queued else self._inbox.online) >= self._max_queue:
            raise TooManyRequests(
                f"{self._max_queue} requests are waiting already (MAX_QUEUE)",
                retry_after=max(1, self._seconds * self._max_queue),
            )

    def _check(self, job: Job) -> None:
        """Raise an error if a job's prompt is empty or exceeds the context length."""
        prompt, new = len(job.token_ids), job.params.max_new_tokens
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", param="prompt")
        if prompt + new - 1 > self.info.context_length:  # the last token is never fed to the model
            raise ContextLengthExceeded.of(self.info.context_length, prompt, new)

    def _rows(self, jobs: Sequence[Job]) -> list[_Row]:
        rows: list[_Row] = []
        for job in jobs:
            prompt, params = job.token_ids, job.params
            seed = secrets.randbits(64) if params.seed is None else params.seed
            for index in range(params.n):
                rows.append(_Row(prompt, params, seed, index, len(rows), self._text(prompt, params)))
        return rows

    def _text(self, prompt: tuple[int, ...], params: SamplingParams) -> IncrementalDetokenizer:
        least = max(params.min_new_tokens, len(params.forced) + 1)
        return IncrementalDetokenizer(self._tokenizer, prompt, params.stop, least)

    def _work(self) -> None:
        """Run queued requests one batch of rows at a time until the queue is closed and empty (engine thread)."""
        while (task := self._inbox.take()) is not None:
            if not task.cancelled.is_set():
                begun = time.monotonic()
                task.started = task.started or begun
                self._busy = 1
                self._gauge()
                rows = task.rows[task.finished : task.finished + _MOST_ROWS]
                failure = task.context.run(self._run, task, rows)
                task.finished += len(rows)
                if failure is None and task.finished < len(task.rows):
                    self._inbox.put(task, queued=task.queued)
                else:
                    task.put(failure)
                self._busy = 0
                self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)
            self._gauge()

    def _run(self, task: _Task, rows: list[_Row]) -> ServiceError | None:
        """Generate some rows of a request. Returns the error if that failed, else None."""

        def deliver(tokens: list[Token]) -> bool:
            task.put(_StepOutput(time.monotonic(), tokens))
            return not (task.cancelled.is_set() or self._aborting.is_set())

        try:
            if not self._aborting.is_set():
                self._generate(rows, deliver)
        except ServiceError as error:
            return error
        except Exception:
            _log.exception("a generation failed")
            return InternalError("the generation failed; the log has the details")
        if all(row.done for row in rows) or task.cancelled.is_set():
            return None
        return Draining("the service is shutting down", retry_after=1)

    def _generate(self, rows: list[_Row], deliver: _Deliverer) -> None:
        """Generate rows in batches, and stop after a batch that was cancelled or aborted."""
        for group in self._groups(rows):
            self._rotary.restore()
            self._generate_together(group, deliver)
            if not all(row.done for row in group):  # cancelled or aborted
                return

    def _groups(self, rows: list[_Row]) -> list[list[_Row]]:
        """Split rows into batches that do not change each other's results."""
        if len(rows) == 1 or self._batching == "padded":
            return [rows]
        if self._batching == "alone":
            return [[row] for row in rows]
        lengths = dict.fromkeys(len(row.prompt) for row in rows)
        return [[row for row in rows if len(row.prompt) == length] for length in lengths]

    @functools.cached_property
    def _batching(self) -> Batching:
        """How rows may be batched; determined by the first request with several rows, so that startup is not slower."""
        self._rotary.restore()
        return batching(self._model, self._tokenizer.encode(_PROBE) or [self._pad], self._pad)

    def _generate_together(self, rows: list[_Row], deliver: _Deliverer) -> None:
        ids, mask = left_padded([row.prompt for row in rows], self._pad)  # [B, T] each
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=GenerationConfig(
                    max_new_tokens=max(row.params.max_new_tokens for row in rows),
                    do_sample=False,
                    pad_token_id=self._pad,
                ),
                logits_processor=LogitsProcessorList([_Choose(rows, self._eos)]),
                stopping_criteria=StoppingCriteriaList([_Deliver(rows, self._eos, deliver)]),
            )


class _Choose(LogitsProcessor):
    """Samples each row and masks all other tokens, so that the greedy loop takes the sampled one."""

    def __init__(self, rows: list[_Row], eos: frozenset[int]) -> None:
        self._rows = rows
        self._eos = eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # [B, T], [B, V] -> [B, V]
        only = torch.full_like(scores, float("-inf"))
        for i, row in enumerate(self._rows):
            if row.done:
                only[i, 0] = 0
                continue
            if not bool(torch.isfinite(scores[i].max())):
                raise InternalError("the model produced logits that are not numbers")
            draw = row.draw(self._eos)
            token_id = sample(adjust(scores[i], draw), row.params, draw.u)
            if row.params.logprobs is not None:
                row.reported = log_probabilities(scores[i], token_id, row.params.logprobs)
            only[i, token_id] = 0
        return only


class _Deliver(StoppingCriteria):
    """Detokenizes and delivers each step's tokens, and reports which rows are done."""

    def __init__(self, rows: list[_Row], eos: frozenset[int], deliver: _Deliverer) -> None:
        self._rows = rows
        self._eos = eos
        self._deliver = deliver

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # [B, T] -> [B]
        tokens = []
        for row, token_id in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if row.done:
                continue
            row.ids.append(token_id)
            reason: FinishReason | None = None
            if token_id in self._eos and len(row.ids) > len(row.params.forced):
                text, reason = row.text.flush(), "stop"
            else:
                text = row.text.push(token_id)
                if not row.text.stopped and len(row.ids) >= row.params.max_new_tokens:
                    text, reason = text + row.text.flush(), "length"
                if row.text.stopped:
                    reason = "stop"
            row.done = reason is not None
            logprob, top = row.reported
            tokens.append(Token(row.place, token_id, text, reason, logprob, top))
        wanted = self._deliver(tokens)
        return torch.tensor([row.done or not wanted for row in self._rows], device=input_ids.device)
