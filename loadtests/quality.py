"""Measures the perplexity of a text and the answer to a question with every engine and data type of this machine.

    .venv/bin/python -m loadtests.quality [--model NAME] [--text FILE]

Each engine gets the same tokens in windows of 512. The result is printed as a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.bench import logits_of, perplexity
from runtime.engine.native import runner as native
from runtime.engine.pytorch.linear import widen_head
from runtime.engine.pytorch.model import weights_from_snapshot
from runtime.engine.pytorch.runner import TorchRunner
from runtime.host import usable_cores
from runtime.loading import kernels
from runtime.loading.loader import load, open_serving
from runtime.model.catalogue import ModelSpec, parse_model_name
from runtime.model.chat_encoder import ChatEncoder
from runtime.model.packing import SnapshotKind
from runtime.settings import Settings
from runtime.types import Message

Logits = Callable[[list[int]], Iterable[NDArray[np.float32]]]

QUESTION = "What is the capital of France?"
_KV_BYTES = 256 << 20
_NEW_TOKENS = 24
_PATHS = (
    ("native", "float32"),
    ("native", "bfloat16"),
    ("native", "int8"),
    ("native", "int4"),
    ("native", "gguf"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch", "int8"),
    ("reference", "float32"),
    ("reference", "bfloat16"),
)


def main() -> None:
    """Measure every engine and data type, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--text", type=Path, default=Path(__file__).with_name("quality.txt"))
    options = parser.parse_args()
    spec, settings = parse_model_name(options.model), Settings.load()
    torch.set_num_threads(usable_cores())
    snapshot = open_serving(spec, "float32", settings.cache_dir, _silent)
    tokenizer, ends = snapshot.tokenizer, snapshot.facts.end_ids
    ids = tokenizer.encode(options.text.read_text())
    question = ChatEncoder(tokenizer).encode([Message("user", QUESTION)])
    print(f"{spec.id}, {len(ids)} tokens of {options.text.name}", end="\n\n")
    print("| engine | type | perplexity | beside float32 | first token's logits apart | " + QUESTION + " |")
    print("|---|---|---:|---:|---:|---|")
    exact = 0.0
    for engine, dtype in _PATHS:
        if engine == "native" and kernels.host_kernels(settings.cache_dir) is None:
            continue
        if dtype == "gguf" and not spec.location.endswith(".gguf"):
            continue
        logits, close = _open(spec, engine, dtype, settings)
        found = perplexity(ids, logits)
        exact = exact or found
        answer, margin = _answer(logits, list(question), ends)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        print(f"| {engine} | {dtype} | {found:.3f} | {found / exact - 1:+.2%} | {margin:.3f} | {text} |", flush=True)
        close()


def _open(spec: ModelSpec, engine: str, dtype: str, settings: Settings) -> tuple[Logits, Callable[[], object]]:
    """Open an engine; return the function that computes its logits and the one that closes it."""
    if engine == "reference":
        model = load(spec, "cpu", dtype, _silent).model
        widen_head(model)

        def forward(window: list[int]) -> Iterator[NDArray[np.float32]]:
            with torch.inference_mode():
                yield model(torch.tensor([window])).logits[0].float().numpy()

        return forward, lambda: None
    kind: SnapshotKind = dtype  # type: ignore[assignment]  # these are the kinds
    snapshot = open_serving(spec, kind, settings.cache_dir, _silent)
    runner: native.NativeRunner | TorchRunner
    if engine == "native":
        runner = native.NativeRunner(snapshot, kv_bytes=_KV_BYTES, max_tokens=2048, threads=usable_cores())
    else:
        number = torch.float32 if dtype == "float32" else torch.bfloat16
        weights = weights_from_snapshot(snapshot, number, torch.device("cpu"))
        runner = TorchRunner(snapshot.facts.decoder, weights, kv_bytes=_KV_BYTES)
    return lambda window: logits_of(runner, window), runner.close


def _answer(logits: Logits, ids: list[int], ends: Sequence[int]) -> tuple[list[int], float]:
    """Return the greedy continuation, and how much the first token's logit exceeds the second-highest one."""
    new: list[int] = []
    margin = 0.0
    while len(new) < _NEW_TOKENS and not set(new) & set(ends):
        last = list(logits(ids + new))[-1][-1]
        second, first = np.sort(last)[-2:]
        margin = margin if new else float(first - second)
        new.append(int(last.argmax()))
    return new, margin


def _silent(stage: str, share: float | None) -> None:
    """Ignore the progress of loading."""


if __name__ == "__main__":
    main()
