"""Measures the kernels with the shapes of well-known models and random weights: ``python -m loadtests.model_shapes``.

Speed depends on a model's shape, not on its weights, so this needs no download. For each model it prints the size of
its int8 weights, decoded tokens per second for 1 and 8 sequences with 200 positions in the cache, prompt tokens per
second, and the share of the memory bandwidth that decoding one sequence reaches. Of a mixture of experts, one sequence
reads the experts of one token in each layer. ``--write`` stores the rates for ``docs/models.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from loadtests.load.machine import machine_facts
from loadtests.service import ROOT
from loadtests.shapes import LARGE, SHAPES, with_layers
from runtime.engine.native import build
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.host import usable_cores
from runtime.loading.snapshot_writer import Weight, lay_out
from runtime.model.config import DecoderConfig
from runtime.model.families import read_config
from runtime.model.packing import scale_count
from runtime.model.snapshot import Facts, Snapshot
from runtime.model.tensors import matrices, vectors
from runtime.model.tokenizer import Tokenizer
from runtime.types import SamplingParams

RATES = ROOT / "loadtests/model_rates.json"
POSITIONS = 200
PROMPT = 256


def random_snapshot(config: DecoderConfig) -> Snapshot:
    """Return a snapshot with random int8 weights in memory."""
    packed = matrices(config)
    tensors = packed | vectors(config)
    weights = [Weight(name, shape, name in packed, lambda: np.empty(0, np.float32)) for name, shape in tensors.items()]
    places, size = lay_out(weights, "int8")
    buffer = mmap.mmap(-1, size)
    values = np.frombuffer(buffer, np.uint8)
    random = np.random.default_rng(0)
    for name, place in places.items():
        if place.matrix and place.scales is not None:
            values[place.offset : place.offset + place.size] = random.integers(1, 256, place.size, np.uint8)
            steps = values[place.scales : place.scales + 4 * scale_count(*place.shape)].view(np.float32)
            steps[:] = 1 / (74 * math.sqrt(place.shape[1]))  # so that a product keeps its inputs' size
        else:
            numbers = values[place.offset : place.offset + place.size].view(np.float32)
            # A router of equal numbers would give every token the same experts.
            numbers[:] = random.normal(0, 0.02, len(numbers)) if "router" in name else 1.0 if "norm" in name else 0.01
    facts = Facts("random", None, "Random", 0, "int8", config, (0,))
    return Snapshot(facts, Tokenizer(Backend(BPE()), None, {}), buffer, places, "")


def rates(shape: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Measure one model.

    Args:
        shape: the content of its ``config.json``.
        repeats: steps of each kind; medians are returned.

    Returns:
        Megabytes of weights, tokens per second by kind of step, and the share of the memory bandwidth.
    """
    config, _ = read_config(shape)
    snapshot = random_snapshot(config)
    runner = NativeRunner(snapshot, kv_bytes=1 << 30, max_tokens=512, threads=usable_cores())
    buffer = np.ones(1 << 26, np.float32)  # 256 MiB, more than any cache
    seconds = _seconds(lambda: runner.read(buffer), repeats)
    decode = {count: _seconds(partial(runner.step, _rows(count, 1)), repeats) for count in (1, 8)}
    prompt = _seconds(partial(runner.step, _rows(1, PROMPT)), max(2, repeats // 4))
    runner.close()
    megabytes = snapshot.nbytes / 1e6
    return {
        "megabytes": round(megabytes),
        "decode_1": round(1 / decode[1], 1),
        "decode_8": round(8 / decode[8], 1),
        "prompt": round(PROMPT / prompt),
        "bandwidth_share": round((snapshot.step_bytes / decode[1]) / (buffer.nbytes / seconds), 2),
    }


def _rows(count: int, tokens: int) -> list[Row]:
    rows = []
    for number in range(count):
        text = [7 + number + i for i in range(tokens)]  # equal tokens would have the same experts
        sequence = Sequence(tuple(text), SamplingParams(max_new_tokens=1, temperature=0), seed=0)
        sequence.blocks = list(range(number * 32, number * 32 + 32))
        rows.append(Row(sequence, POSITIONS if tokens == 1 else 0, text))
    return rows


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a call in seconds."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.model_shapes", description=__doc__.partition("\n")[0])
    usual = [name for name in SHAPES if name not in LARGE]
    parser.add_argument(
        "--models", nargs="*", default=usual, choices=list(SHAPES), help=f"not by default: {sorted(LARGE)}"
    )
    parser.add_argument("--layers", type=int, help="number of layers, in place of the shape's own")
    parser.add_argument("--repeats", type=int, default=20, help="steps of each kind; medians are printed")
    parser.add_argument("--write", action="store_true", help=f"store the rates in {RATES.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write and options.layers:
        parser.error("--write stores the rates of whole models, so it cannot be used with --layers")
    try:
        shapes = {name: with_layers(SHAPES[name], options.layers) for name in options.models}
    except ValueError as error:
        parser.error(str(error))
    build.build()
    result: dict[str, Any] = {"machine": f"{machine_facts().get('processor', platform.machine())}", "models": {}}
    result["machine"] += f", {usable_cores()} cores"
    print("| model | MB | 1 sequence tok/s | 8 sequences tok/s | prompt tok/s | share of bandwidth |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, shape in shapes.items():
        row = result["models"][name] = rates(shape, options.repeats)
        print(f"| {name} | " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
    if options.write:
        Path(RATES).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
