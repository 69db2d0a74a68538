"""The Prometheus metrics of models: their names, descriptions, labels and buckets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from runtime.telemetry.rolling_stats import GAP_BOUNDS

_FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_STEP_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
CACHE_LABELS = (
    "block_size",
    "num_blocks",
    "enable_prefix_caching",
    "kv_cache_size_tokens",
    "kv_cache_max_concurrency",
)
_COUNT_BUCKETS = (1, 2, 5, 10, 20)
_REQUEST_BUCKETS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 300, 600)


@dataclass(frozen=True, slots=True)
class Collectors:
    """The Prometheus collectors of all models; each metric has the label ``model_name``."""

    load: Gauge
    cold_start: Gauge
    drafted: Counter
    accepted: Counter
    preemptions: Counter
    success: Counter
    failure: Counter
    rejected: Counter
    restarts: Counter
    first_token: Histogram
    e2e_latency: Histogram
    queue: Histogram
    prefill: Histogram
    decode: Histogram
    inference: Histogram
    token_time: Histogram
    prompt_tokens: Histogram
    generation_tokens: Histogram
    max_generation_tokens: Histogram
    params_n: Histogram
    params_max_tokens: Histogram
    request_preemptions: Histogram
    step_tokens: Histogram
    encoded: Counter
    cache_config: Gauge
    weights: Gauge

    @classmethod
    def register(cls, registry: CollectorRegistry) -> Collectors:
        """Create the collectors in a registry.

        Args:
            registry: a registry that has none of them yet.

        Raises:
            ValueError: the registry already has one of them.
        """

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"warmstart:{name}", text, ("model_name", *labels), registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"warmstart:{name}", text, ("model_name",), registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"warmstart:{name}", text, ("model_name",), buckets=buckets, registry=registry)

        return cls(
            load=gauge("model_load_seconds", "Seconds that loading the model took."),
            cold_start=gauge("cold_start_seconds", "Seconds from the start of the process until the model was ready."),
            drafted=counter("spec_decode_num_draft_tokens", "Draft tokens of speculative decoding."),
            accepted=counter("spec_decode_num_accepted_tokens", "Draft tokens that were accepted."),
            preemptions=counter(
                "num_preemptions",
                "Preemptions: sequences that gave their row or KV blocks to others and are computed again.",
            ),
            success=counter("request_success", "Sequences that finished.", "finished_reason"),
            failure=counter("request_failure", "Requests that were admitted and ended with an error.", "code"),
            rejected=counter("request_rejected", "Requests that were not admitted.", "reason"),
            restarts=counter("engine_restarts", "Restarts of the engine thread after it died."),
            first_token=histogram(
                "time_to_first_token_seconds", "From arrival to the first token.", _FIRST_TOKEN_BUCKETS
            ),
            e2e_latency=histogram("e2e_request_latency_seconds", "From arrival to the last token.", _REQUEST_BUCKETS),
            queue=histogram("request_queue_time_seconds", "From arrival to the first step.", _FIRST_TOKEN_BUCKETS),
            prefill=histogram("request_prefill_time_seconds", "From first step to first token.", _FIRST_TOKEN_BUCKETS),
            decode=histogram("request_decode_time_seconds", "From first token to last token.", _REQUEST_BUCKETS),
            inference=histogram("request_inference_time_seconds", "From first step to last token.", _REQUEST_BUCKETS),
            token_time=histogram(
                "request_time_per_output_token_seconds", "Mean time between two tokens of a request.", GAP_BOUNDS
            ),
            prompt_tokens=histogram("request_prompt_tokens", "Prompt tokens of a request.", _TOKEN_BUCKETS),
            generation_tokens=histogram("request_generation_tokens", "Generated tokens of a request.", _TOKEN_BUCKETS),
            max_generation_tokens=histogram(
                "request_max_num_generation_tokens", "Generated tokens of a request's longest sequence.", _TOKEN_BUCKETS
            ),
            params_n=histogram("request_params_n", "Sequences per prompt of a request.", _COUNT_BUCKETS),
            params_max_tokens=histogram(
                "request_params_max_tokens", "Maximum new tokens per sequence of a request.", _TOKEN_BUCKETS
            ),
            request_preemptions=histogram(
                "request_num_preemptions", "Preemptions of a request's sequences.", (0, *_COUNT_BUCKETS)
            ),
            step_tokens=histogram("iteration_tokens_total", "Tokens of an engine step.", _STEP_BUCKETS),
            encoded=counter(
                "encoded_inputs", "Inputs whose vector (embed) or logits (classify) were computed.", "task"
            ),
            cache_config=Gauge(
                "warmstart:cache_config_info",
                "1, with the KV cache's size as labels.",
                ("model_name", *CACHE_LABELS),
                registry=registry,
            ),
            weights=Gauge(
                "warmstart:model_weights_bytes",
                "Bytes of the weights; weight_types: those with the most bytes first.",
                ("model_name", "dtype", "weight_types"),
                registry=registry,
            ),
        )
