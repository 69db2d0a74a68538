"""Records the timings of each request for the metrics, the statistics and the trace. Times are monotonic seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prometheus_client import Counter

from runtime.telemetry.model_collectors import Collectors
from runtime.telemetry.rolling_stats import RollingStats
from runtime.telemetry.tracing import GenerationTimings, current_trace
from runtime.types import FinishReason, Job


class ModelMetrics:
    """The metrics of one model, with the label bound once, because looking a label up takes longer than counting.

    Args:
        collectors: the collectors of all models.
        name: the model's id, the value of the label.
        started: the process's start as Unix time.
        clock: returns monotonic time in seconds.
    """

    def __init__(self, collectors: Collectors, name: str, started: float, clock: Callable[[], float]) -> None:
        self._started = started
        self._name = name
        self.clock = clock
        self.stats = RollingStats(clock)
        self.load = collectors.load.labels(name)
        self.cold_start = collectors.cold_start.labels(name)
        self.drafted = collectors.drafted.labels(name)
        self.accepted = collectors.accepted.labels(name)
        self.preemptions = collectors.preemptions.labels(name)
        self.success: dict[FinishReason, Counter] = {
            "stop": collectors.success.labels(name, "stop"),
            "length": collectors.success.labels(name, "length"),
        }
        self.restarts = collectors.restarts.labels(name)
        self.first_token = collectors.first_token.labels(name)
        self.e2e_latency = collectors.e2e_latency.labels(name)
        self.queue = collectors.queue.labels(name)
        self.prefill = collectors.prefill.labels(name)
        self.decode = collectors.decode.labels(name)
        self.inference = collectors.inference.labels(name)
        self.token_time = collectors.token_time.labels(name)
        self.prompt_tokens = collectors.prompt_tokens.labels(name)
        self.generation_tokens = collectors.generation_tokens.labels(name)
        self.max_generation_tokens = collectors.max_generation_tokens.labels(name)
        self.params_n = collectors.params_n.labels(name)
        self.params_max_tokens = collectors.params_max_tokens.labels(name)
        self.request_preemptions = collectors.request_preemptions.labels(name)
        self.step_tokens = collectors.step_tokens.labels(name)
        self._encoded = collectors.encoded
        self._cache_config = collectors.cache_config
        self._weights = collectors.weights
        self._failure = collectors.failure
        self._rejected = collectors.rejected

    def ready(self, load_seconds: float) -> None:
        """Record that the model is loaded and warm, and how many seconds loading took."""
        self.load.set(load_seconds)
        self.cold_start.set(max(0.0, time.time() - self._started))

    def kv_cache(self, block_tokens: int, blocks: int, context_length: int, *, prefix_caching: bool) -> None:
        """Record the size of the KV cache.

        Args:
            block_tokens: the size of a block in tokens.
            blocks: the number of blocks.
            context_length: the model's context length in tokens, for the number of such texts that fit at once.
            prefix_caching: whether it caches prefixes.
        """
        tokens = block_tokens * blocks
        concurrency = f"{tokens / context_length:.2f}"
        labels = block_tokens, blocks, str(prefix_caching).lower(), tokens, concurrency
        self._cache_config.labels(self._name, *labels).set(1)

    def encoded(self, task: str, inputs: int) -> None:
        """Count inputs that were computed: ``embed`` for their vectors, ``classify`` for their logits."""
        self._encoded.labels(self._name, task).inc(inputs)

    def weights(self, dtype: str, types: Sequence[str], size: int) -> None:
        """Record what the weights are.

        Args:
            dtype: their number type as ``DTYPE`` names it.
            types: the number types of the matrices, those with the most bytes first.
            size: their bytes.
        """
        self._weights.labels(self._name, dtype, ",".join(types)).set(size)

    def rejected(self, reason: str) -> None:
        """Count a request that was not admitted; ``reason`` is the error's code."""
        self._rejected.labels(self._name, reason).inc()
        self.stats.ended("rejected")

    def failed(self, code: str) -> None:
        """Count an admitted request that ended with an error of this code."""
        self._failure.labels(self._name, code).inc()
        self.stats.ended("failed")

    def request(self, jobs: Sequence[Job]) -> RequestRecord:
        """Start the record of a request that arrives now. A request that is not admitted leaves its record unused."""
        return RequestRecord(self, self._name, jobs)


class RequestRecord:
    """Records one request token by token. The request's stream calls it, whichever engine runs the request.

    Args:
        metrics: the model's metrics.
        model: the model's id.
        jobs: the request's jobs.
    """

    __slots__ = (
        "_arrived",
        "_cached",
        "_ended",
        "_first",
        "_firsts",
        "_generated",
        "_last",
        "_metrics",
        "_model",
        "_params",
        "_prompt",
        "_started",
        "_tokens",
        "_trace",
        "_unfinished",
        "preemptions",
    )

    def __init__(self, metrics: ModelMetrics, model: str, jobs: Sequence[Job]) -> None:
        sequences = sum(job.params.n for job in jobs)
        self._params = jobs[0].params  # those of the others differ in the maximum number of tokens at most
        self._generated = [0] * sequences  # tokens of each sequence
        self._metrics = metrics
        self._model = model
        self._trace = current_trace.get()
        self._arrived = metrics.clock()
        self._started = self._first = 0.0
        self._firsts = 0.0  # the sum of the times of all sequences' first tokens
        self._last = [0.0] * sequences  # the time of each sequence's latest token
        self._unfinished = sequences
        self._prompt = self._cached = self._tokens = 0
        self._ended = False
        self.preemptions = 0  # of all sequences that have ended

    def prompt(self, tokens: int, cached: int) -> None:
        """Count a prompt that produced its first token: all its tokens, and those found in the prefix cache."""
        self._prompt += tokens
        self._cached += cached
        self._metrics.stats.prompt(tokens, cached)

    def token(self, sequence: int, now: float, started: float, reason: FinishReason | None) -> None:
        """Record a token of a sequence.

        Args:
            sequence: the sequence's index within the request.
            now: the time at which the token was generated.
            started: the time at which the request's first step began.
            reason: the finish reason, set on the sequence's last token only.
        """
        metrics, last = self._metrics, self._last[sequence]
        self._tokens += 1
        self._generated[sequence] += 1
        if last:
            metrics.stats.token(now, now - last)
        else:
            metrics.stats.token(now, None)
            self._firsts += now
            if not self._first:
                self._started, self._first = started, now
                metrics.first_token.observe(now - self._arrived)
                metrics.stats.first_token(now - self._arrived)
        self._last[sequence] = now
        if reason is not None:
            metrics.success[reason].inc()
            self._unfinished -= 1
            if not self._unfinished:
                self._finish(now)

    def failed(self, code: str) -> None:
        """Record that the request ended with an error of this code."""
        self._ended = True
        self._metrics.failed(code)

    def closed(self, started: float) -> None:
        """Record that the stream was closed; a request that has not ended counts as cancelled.

        Args:
            started: the time at which its first step began, 0 if there was none.
        """
        metrics = self._metrics
        if not self._ended:
            metrics.stats.ended("cancelled")
        started_sequences = sum(1 for last in self._last if last)
        if self._tokens > started_sequences:
            metrics.stats.pace((sum(self._last) - self._firsts) / (self._tokens - started_sequences))
        if self._trace is not None:
            self._trace.generated(
                GenerationTimings(
                    model=self._model,
                    arrived=self._arrived,
                    started=started,
                    first=self._first,
                    last=max(self._last),
                    ended=metrics.clock(),
                    prompt_tokens=self._prompt,
                    cached_tokens=self._cached,
                    tokens=self._tokens,
                )
            )

    def _finish(self, now: float) -> None:
        self._ended = True
        metrics = self._metrics
        metrics.stats.ended("finished")
        metrics.e2e_latency.observe(now - self._arrived)
        metrics.queue.observe(self._started - self._arrived)
        metrics.prefill.observe(self._first - self._started)
        metrics.decode.observe(now - self._first)
        metrics.inference.observe(now - self._started)
        if self._tokens > len(self._last):
            metrics.token_time.observe((sum(self._last) - self._firsts) / (self._tokens - len(self._last)))
        metrics.prompt_tokens.observe(self._prompt)
        metrics.generation_tokens.observe(self._tokens)
        metrics.max_generation_tokens.observe(max(self._generated))
        metrics.params_n.observe(self._params.n)
        metrics.params_max_tokens.observe(self._params.max_new_tokens)
        metrics.request_preemptions.observe(self.preemptions)
