"""Benchmark of a model on this machine: prefill and decode rates, memory bandwidth, cold start time and perplexity.

Steps are timed at the runner, so that the results are those of the kernels; ``loadtests`` measures load over HTTP. All
times are medians.
"""

from __future__ import annotations

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.device import select_device
from runtime.engine.runners import BenchRunner
from runtime.engine.sequence import Row, Sequence
from runtime.errors import InvalidRequest, ModelUnavailable
from runtime.host import usable_cores
from runtime.loading.fast_engine import open_fast
from runtime.model.catalogue import ModelSpec
from runtime.model.config import UnsupportedDecoder
from runtime.model.load_timer import Phases
from runtime.model.progress import LoadProgress
from runtime.settings import Settings
from runtime.types import SamplingParams

_DECODE_BATCHES = (1, 2, 4, 8, 16, 32)
_PREFILL_TOKENS = (16, 64, 256, 1024)
_CONTEXT = 128  # context length in tokens before the decoded ones
_STEPS = 30
_READ_BYTES = 256 << 20  # far larger than the CPU caches
_WINDOW = 512  # tokens per perplexity window
_PIECE = 64  # tokens whose logits are in memory at a time


def bench(spec: ModelSpec, settings: Settings, *, text: str | None = None) -> dict[str, Any]:
    """Load a model and measure it on this machine.

    Args:
        spec: the model.
        settings: the service's settings, such as device, dtype and threads.
        text: a text to compute the perplexity of; None skips that.

    Returns:
        Plain data for ``table`` or JSON: rates in tokens per second, times in seconds, bandwidth in bytes per second.

    Raises:
        ModelUnavailable: the model cannot be loaded, or only the reference engine can run it.
    """
    phases = Phases()
    phases.imports()
    reporter = LoadProgress(spec.id)
    try:
        fast = open_fast(spec, settings, select_device(settings.device), reporter, phases)
    except UnsupportedDecoder as reason:
        raise ModelUnavailable(
            f"{spec.id} runs on the reference engine only, which has no steps to time: {reason}"
        ) from None
    finally:
        reporter.close()
    runner, snapshot = fast.runner, fast.snapshot
    vocabulary = snapshot.facts.decoder.vocabulary
    max_context = min(runner.max_tokens, snapshot.facts.decoder.context_length - 1, runner.blocks * runner.block_tokens)
    with phases.phase("warm-up"):
        _prefill(runner, 4, vocabulary)
    try:
        results: dict[str, Any] = {
            "model": spec.id,
            "dtype": fast.dtype,
            "weight_types": list(snapshot.weight_types),
            "optimizations": list(fast.optimizations),
            "machine": {"cpu": _cpu(), "cores": usable_cores(), "python": platform.python_version()},
            "weights_bytes": snapshot.nbytes,
            "cold_start_seconds": dict(phases.seconds),
            "prefill": {n: _prefill(runner, n, vocabulary) for n in _PREFILL_TOKENS if n <= max_context},
            "decode": {},
        }
        context = min(_CONTEXT, max_context - _STEPS - 1)
        for batch in _DECODE_BATCHES:
            if batch * (context + _STEPS + runner.block_tokens) <= runner.blocks * runner.block_tokens:
                results["decode"][batch] = batch / _median(decode_step(runner, batch, context, vocabulary), _STEPS)
        # Bytes read per decoded token: weights, and the keys and values before it.
        read = snapshot.step_bytes + runner.block_bytes * context // runner.block_tokens
        results["bandwidth"] = {"achieved": read * results["decode"][1], "measured": _read_bandwidth(runner)}
        if text is not None:
            ids = snapshot.tokenizer.encode(text)
            results["perplexity"] = perplexity(ids, lambda window: logits_of(runner, window))
        return results
    finally:
        runner.close()


def table(results: dict[str, Any]) -> str:
    """Format the results of ``bench`` as Markdown."""
    bandwidth = results["bandwidth"]
    machine = results["machine"]
    lines = [
        f"{results['model']}, {', '.join((results['dtype'], *results['optimizations']))}",
        f"{machine['cpu']}, {machine['cores']} cores, weights {results['weights_bytes'] / 1e6:.0f} MB",
        "",
        "| cold start | seconds |",
        "|---|---:|",
        *(f"| {name} | {seconds:.2f} |" for name, seconds in results["cold_start_seconds"].items()),
        "",
        "| prefill, tokens at once | tok/s |",
        "|---:|---:|",
        *(f"| {tokens} | {rate:.0f} |" for tokens, rate in results["prefill"].items()),
        "",
        "| decode, batch | tok/s | ms per step |",
        "|---:|---:|---:|",
        *(f"| {batch} | {rate:.0f} | {1000 * batch / rate:.1f} |" for batch, rate in results["decode"].items()),
        "",
        f"One stream reads {bandwidth['achieved'] / 1e9:.1f} GB/s, of the {bandwidth['measured'] / 1e9:.1f} GB/s that "
        f"this machine reads ({bandwidth['achieved'] / bandwidth['measured']:.0%}).",
    ]
    if "perplexity" in results:
        lines.append(f"Perplexity {results['perplexity']:.3f}.")
    return "\n".join(lines)


def _sequence(tokens: list[int], first_block: int, runner: BenchRunner) -> Sequence:
    sequence = Sequence(tuple(tokens), SamplingParams(max_new_tokens=_STEPS + 1, temperature=0), seed=0)
    sequence.blocks = list(range(first_block, first_block + -(-sequence.capacity // runner.block_tokens)))
    return sequence


def _median(step: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _prefill(runner: BenchRunner, tokens: int, vocabulary: int) -> float:
    generator = random.Random(tokens)  # noqa: S311 - the same numbers each time
    sequence = _sequence(generator.choices(range(vocabulary), k=tokens), 0, runner)
    rows = [Row(sequence, 0, sequence.tokens)]
    return tokens / _median(lambda: runner.step(rows), 7)


def decode_step(runner: BenchRunner, batch: int, context: int, vocabulary: int) -> Callable[[], object]:
    """Prefill a batch of sequences and return a function that decodes one more token of each.

    Args:
        runner: a runner with enough KV blocks.
        batch: number of sequences.
        context: context length in tokens of each sequence, prefilled by this call.
        vocabulary: vocabulary size; token ids are drawn from it.

    Returns:
        The decode step, which may be called up to thirty times.
    """
    generator = random.Random(batch)  # noqa: S311
    blocks = -(-(context + _STEPS) // runner.block_tokens)
    sequences = [_sequence(generator.choices(range(vocabulary), k=context), i * blocks, runner) for i in range(batch)]
    for sequence in sequences:
        runner.step([Row(sequence, 0, sequence.tokens)])

    def step() -> None:
        rows = [Row(s, len(s.tokens), [generator.randrange(vocabulary)]) for s in sequences]
        runner.step(rows)
        for row in rows:
            row.sequence.tokens += row.token_ids

    return step


def _read_bandwidth(runner: BenchRunner) -> float:
    """Measure the memory bandwidth of all threads together, in bytes per second, on an array larger than the caches."""
    data = np.ones(_READ_BYTES // 4, np.float32)
    return _READ_BYTES / _median(lambda: runner.read(data), 7)


def perplexity(ids: list[int], logits: Callable[[list[int]], Iterable[NDArray[np.float32]]]) -> float:
    """Compute a text's perplexity: exp of the mean negative log-probability of all tokens but each window's first.

    Args:
        ids: the text's token ids.
        logits: function from the tokens of a window to the logits after each of them, [tokens, V] in total, yielded
            in pieces.

    Raises:
        InvalidRequest: the text has fewer than two tokens.
    """
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, _WINDOW):
        window = ids[start : start + _WINDOW]
        targets = iter(window[1:])  # one fewer than there are logits
        for piece in logits(window):
            logprobs = piece.astype(np.float64)
            logprobs -= logprobs.max(axis=1, keepdims=True)
            logprobs -= np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
            for row, target in zip(logprobs, targets, strict=False):
                total -= row[target]
                count += 1
    if not count:
        raise InvalidRequest("the text is too short for a perplexity")
    return math.exp(total / count)


def logits_of(runner: BenchRunner, window: list[int]) -> Iterator[NDArray[np.float32]]:
    """Yield the logits after each token of a window, in the form that ``perplexity`` takes."""
    sequence = _sequence(window, 0, runner)
    for at in range(0, len(window), _PIECE):
        piece = window[at : at + _PIECE]
        yield runner.logits([Row(sequence, at, piece, samples=len(piece))])


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or os.uname().machine
