"""Compares number types of a model's weights in processor time, so that other load on the machine matters little.

    .venv/bin/python -m loadtests.weight_types [--model NAME] [--types int8,gguf,int4]

One thread decodes 1 to 32 sequences and prefills 128 tokens with each type in turn; the rates are those of the shortest
step, in tokens per second of processor time. The result is printed as a Markdown table.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

from runtime.bench import decode_step
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings
from runtime.types import SamplingParams

_BATCHES = (1, 4, 8, 16, 32)
_PREFILL = 128
_CONTEXT = 64
_ROUNDS = 12
_KV_BYTES = 512 << 20


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--types", default="int8,gguf,int4")
    options = parser.parse_args()
    kinds: list[Any] = options.types.split(",")
    spec, cache = parse_model_name(options.model), Settings.load().cache_dir
    snapshots = [open_serving(spec, kind, cache, lambda stage, share: None) for kind in kinds]
    runners = [NativeRunner(snapshot, kv_bytes=_KV_BYTES, max_tokens=256, threads=1) for snapshot in snapshots]
    vocabulary = snapshots[0].facts.decoder.vocabulary
    print("| | " + " | ".join(kinds) + " | " + " | ".join(f"{kind} / {kinds[0]}" for kind in kinds[1:]) + " |")
    print("|---|" + "---:|" * (2 * len(kinds) - 1))
    _line("weights, MB", [snapshot.nbytes / 1e6 for snapshot in snapshots])
    for batch in _BATCHES:
        steps = [decode_step(runner, batch, _CONTEXT, vocabulary) for runner in runners]
        rates = [batch / seconds for seconds in _shortest(steps)]
        _line(f"decode, {batch} rows", rates)
    steps = [_prefill(runner, vocabulary) for runner in runners]
    _line(f"prefill of {_PREFILL} tokens", [_PREFILL / seconds for seconds in _shortest(steps)])
    for runner in runners:
        runner.close()


def _shortest(steps: list[Callable[[], object]]) -> list[float]:
    """Return the shortest processor time of each step in seconds, of several in turn."""
    best = [float("inf")] * len(steps)
    for _ in range(_ROUNDS):
        for i, step in enumerate(steps):
            started = time.process_time()
            step()
            best[i] = min(best[i], time.process_time() - started)
    return best


def _prefill(runner: NativeRunner, vocabulary: int) -> Callable[[], object]:
    """Return a function that computes a prompt."""
    ids = tuple(random.Random(1).choices(range(vocabulary), k=_PREFILL))
    sequence = Sequence(ids, SamplingParams(max_new_tokens=1, temperature=0), seed=0)
    sequence.blocks = list(range(-(-sequence.capacity // runner.block_tokens)))
    rows = [Row(sequence, 0, sequence.tokens)]
    return lambda: runner.step(rows)


def _line(label: str, numbers: list[float]) -> None:
    ratios = [f"{number / numbers[0]:.2f}" for number in numbers[1:]]
    print(f"| {label} | " + " | ".join([*(f"{number:.1f}" for number in numbers), *ratios]) + " |", flush=True)


if __name__ == "__main__":
    main()
