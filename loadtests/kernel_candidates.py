"""Compares torch's linear layers for one decode step with a whole step on the compiled kernels.

    .venv/bin/python -m loadtests.kernel_candidates

Shapes are SmolLM2-135M's (30 layers, with the head), weights random. torch's candidates run the products alone; the
last rows are whole steps of the embedded model: products, attention, norms, rotary positions and sampling. The table
shows medians in milliseconds; the candidates alternate within one run.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from runtime.bench import decode_step
from runtime.loading.fast_engine import open_fast
from runtime.model.catalogue import parse_model_name
from runtime.model.load_timer import Phases
from runtime.settings import Settings

BATCHES = (1, 8, 16, 32)
SHAPES = [*[(960, 576), (576, 576), (3072, 576), (576, 1536)] * 30, (49152, 576)]
ROUNDS = 15

Step = Callable[[], object]
Candidate = Callable[[int], Step]


def plain(dtype: torch.dtype) -> Candidate:
    """Return a candidate that calls torch.nn.functional.linear."""
    weights = [torch.randn(shape).to(dtype) for shape in SHAPES]

    def at(batch: int) -> Step:
        inputs = {k: torch.randn(batch, k).to(dtype) for _, k in set(SHAPES)}
        return lambda: [torch.nn.functional.linear(inputs[w.shape[1]], w) for w in weights]

    return at


def packed_onednn(dtype: torch.dtype) -> Candidate:
    """Return a candidate that calls oneDNN with weights packed once, as Inductor's freezing does."""
    weights = [torch.randn(shape).to(dtype) for shape in SHAPES]
    ops: Any = torch.ops.mkldnn
    packs = {batch: [ops._reorder_linear_weight(w, batch) for w in weights] for batch in BATCHES}

    def at(batch: int) -> Step:
        inputs = {k: torch.randn(batch, k).to(dtype) for _, k in set(SHAPES)}
        pairs = list(zip(SHAPES, packs[batch], strict=True))
        return lambda: [ops._linear_pointwise(inputs[k], w, None, "none", [], "") for (_, k), w in pairs]

    return at


def int8_weight_only() -> Candidate:
    """Return a candidate that calls torch._weight_int8pack_mm: int8 weights, bf16 activations."""
    weights = [torch.randint(-127, 127, shape, dtype=torch.int8) for shape in SHAPES]
    scales = [torch.rand(n).bfloat16() for n, _ in SHAPES]

    def at(batch: int) -> Step:
        inputs = {k: torch.randn(batch, k).bfloat16() for _, k in set(SHAPES)}
        pairs = list(zip(weights, scales, strict=True))
        return lambda: [torch._weight_int8pack_mm(inputs[w.shape[1]], w, s) for w, s in pairs]

    return at


def int8_dynamic() -> Candidate:
    """Return a candidate that calls torch's dynamically quantized linear: int8 weights and activations."""
    engine: Any = torch.backends.quantized
    engine.engine = "onednn" if "onednn" in engine.supported_engines else "fbgemm"
    ops: Any = torch.ops.quantized
    packs = []
    for shape in SHAPES:
        weight = torch.quantize_per_channel(
            torch.randn(shape), torch.full((shape[0],), 0.01), torch.zeros(shape[0], dtype=torch.long), 0, torch.qint8
        )
        packs.append(ops.linear_prepack(weight, None))

    def at(batch: int) -> Step:
        inputs = {k: torch.randn(batch, k) for _, k in set(SHAPES)}
        pairs = list(zip(SHAPES, packs, strict=True))
        return lambda: [ops.linear_dynamic(inputs[k], pack, reduce_range=False) for (_, k), pack in pairs]

    return at


def compiled_step(dtype: str) -> Candidate:
    """Return a candidate that runs a whole step on the compiled kernels."""
    settings = Settings.load(dtype=dtype, device="cpu")
    fast = open_fast(parse_model_name(settings.model_name), settings, "cpu", lambda stage, share: None, Phases())
    return lambda batch: decode_step(fast.runner, batch, 128, fast.snapshot.facts.decoder.vocabulary)


def main() -> int:
    """Measure and print the table."""
    made: dict[str, Callable[[], Candidate]] = {
        "torch linear, float32": lambda: plain(torch.float32),
        "torch linear, bfloat16": lambda: plain(torch.bfloat16),
        "oneDNN packed once, float32": lambda: packed_onednn(torch.float32),
        "oneDNN packed once, bfloat16": lambda: packed_onednn(torch.bfloat16),
        "torch int8 weight-only": int8_weight_only,
        "torch int8 dynamic": int8_dynamic,
        "**compiled, float32, whole step**": lambda: compiled_step("float32"),
        "**compiled, bfloat16, whole step**": lambda: compiled_step("bfloat16"),
        "**compiled, int8, whole step**": lambda: compiled_step("int8"),
    }
    candidates: dict[str, Candidate] = {}
    for name, make in made.items():
        try:
            candidates[name] = make()
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            print(f"{name}: not here ({error})", file=sys.stderr)
    times: dict[tuple[str, int], list[float]] = {}
    with torch.inference_mode():
        for batch in BATCHES:
            steps = {name: candidate(batch) for name, candidate in candidates.items()}
            for round_ in range(ROUNDS + 2):
                for name, step in steps.items():
                    started = time.perf_counter()
                    step()
                    if round_ >= 2:
                        times.setdefault((name, batch), []).append(time.perf_counter() - started)
    print(f"| ms per step | {' | '.join(f'batch {batch}' for batch in BATCHES)} |")
    print(f"|---|{'---:|' * len(BATCHES)}")
    for name in candidates:
        print(f"| {name} | {' | '.join(f'{1000 * statistics.median(times[name, b]):.1f}' for b in BATCHES)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
