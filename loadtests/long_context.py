"""Compares keys and values of 16 and of 8 bits in long texts: time, memory, and how well numbers are found.

    .venv/bin/python -m loadtests.long_context [--model NAME] [--tokens 1024 4096] [--repeats 5]

Times are processor time of one thread, for a step of one token and of 128 tokens behind a context.

Two of the tasks of RULER (arXiv:2404.06654): a sentence with a number among sentences that repeat (``noise``), and one
among hundreds of its kind (``keys``). The text ends with that sentence's beginning; the digits must be the likeliest
next tokens. The result is a Markdown table, with the mean log-probability of a number's tokens.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from runtime.bench import decode_step, logits_of
from runtime.engine.native.runner import NativeRunner
from runtime.engine.sequence import Row, Sequence
from runtime.host import usable_cores
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
from runtime.model.config import KVDType
from runtime.model.snapshot import Snapshot
from runtime.settings import Settings
from runtime.types import SamplingParams

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "ledge")
KV_TYPES: tuple[KVDType, ...] = ("float16", "int8")
_KV_BYTES = 2 << 30
_REPEATS = 9
_KEY_TOKENS = 16  # at most, of a sentence with a number


def main() -> None:
    """Ask for numbers at several depths of texts of several lengths, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--repeats", type=int, default=5, help="texts of each kind and length")
    options = parser.parse_args()
    settings = Settings.load()
    snapshot = open_serving(parse_model_name(options.model), "int8", settings.cache_dir, lambda _stage, _share: None)
    for tokens in options.tokens:
        print_rates(snapshot, tokens)
    print("\n| task | tokens | " + " | ".join(f"{kv}: found, log-probability" for kv in KV_TYPES) + " |")
    print("|---|---:|" + "---|" * len(KV_TYPES))
    for name, made in (("noise", noise), ("keys", keys)):
        for tokens in options.tokens:
            cells = []
            for kv in KV_TYPES:
                runner = NativeRunner(
                    snapshot, kv_bytes=_KV_BYTES, max_tokens=2048, threads=usable_cores(), kv_dtype=kv
                )
                scores = []
                for repeat in range(options.repeats):
                    depth = (repeat + 0.5) / options.repeats
                    text, number = made(random.Random(repeat), depth, tokens, snapshot.tokenizer.encode)
                    scores.append(score(runner, snapshot.tokenizer.encode, text, number))
                runner.close()
                found = sum(exact for exact, _ in scores)
                mean = np.mean([likely for _, likely in scores])
                cells.append(f"{found} of {len(scores)}, {mean:.3f}")
            print(f"| {name} | {tokens} | " + " | ".join(cells) + " |", flush=True)


def print_rates(snapshot: Snapshot, context: int) -> None:
    """Print the times of steps behind a context, both types in turn, and the bytes of a token's keys and values."""
    vocabulary = snapshot.facts.decoder.vocabulary
    times: dict[str, dict[str, list[float]]] = {kv: {"one": [], "many": []} for kv in KV_TYPES}
    bytes_of = {}
    runners = {
        kv: NativeRunner(snapshot, kv_bytes=_KV_BYTES, max_tokens=context, threads=1, kv_dtype=kv) for kv in KV_TYPES
    }
    steps = {kv: decode_step(runner, 1, context - 128, vocabulary) for kv, runner in runners.items()}
    piece = [token % vocabulary for token in range(1000, 1000 + 128)]
    for _ in range(_REPEATS):
        for kv, runner in runners.items():
            bytes_of[kv] = runner.block_bytes // runner.block_tokens
            sequence = Sequence(tuple(piece), SamplingParams(max_new_tokens=1, temperature=0), seed=0)
            sequence.blocks = list(range(-(-(context + 1) // runner.block_tokens)))
            for name, step in (
                ("one", steps[kv]),
                ("many", partial(runner.step, [Row(sequence, context - 128, piece)])),
            ):
                started = time.process_time()
                step()
                times[kv][name].append(1000 * (time.process_time() - started))
    for kv, runner in runners.items():
        one, many = (statistics.median(times[kv][name]) for name in ("one", "many"))
        print(f"{context} tokens, {kv}: {bytes_of[kv]} bytes a token, 1 token {one:.1f} ms, 128 tokens {many:.0f} ms")
        runner.close()


def noise(rng: random.Random, depth: float, tokens: int, encode: Callable[[str], list[int]]) -> tuple[str, str]:
    """Return a text that ends before a number, and the number, which it has once before.

    Args:
        rng: chooses the number.
        depth: where the number is, 0 for the beginning, 1 for the end.
        tokens: the text's length.
        encode: the tokenizer.
    """
    number = str(rng.randrange(10_000, 100_000))
    count = tokens // len(encode(NOISE)) - 1
    before = round(count * depth)
    needle = f"The special number of the harbour is {number}. "
    return NOISE * before + needle + NOISE * (count - before) + "The special number of the harbour is", " " + number


def keys(rng: random.Random, depth: float, tokens: int, encode: Callable[[str], list[int]]) -> tuple[str, str]:
    """Return the same among sentences that all have numbers; the arguments are those of ``noise``."""
    names = [f"{one} {two} {three}" for one in WORDS for two in WORDS for three in WORDS]
    rng.shuffle(names)
    lines = [f"The number of {name} is {rng.randrange(10_000, 100_000)}.\n" for name in names]
    length = np.cumsum([len(encode(line)) for line in lines[: tokens // 8]])
    kept = lines[: int(np.searchsorted(length, tokens - _KEY_TOKENS))]
    begin, _, number = kept[int(len(kept) * depth)].rstrip(".\n").rpartition(" ")
    return "".join(kept) + begin, " " + number


def score(runner: NativeRunner, encode: Callable[[str], list[int]], text: str, number: str) -> tuple[bool, float]:
    """Return whether each token of the number is the likeliest one, and their mean log-probability."""
    prompt, whole = encode(text), encode(text + number)
    answer = whole[len(prompt) :]
    # Copied, because a view keeps the whole piece: 17 GB for 16,384 tokens and a vocabulary of 262,144.
    rows = np.concatenate([piece[-len(answer) - 1 :].copy() for piece in logits_of(runner, whole)])
    rows = rows[-len(answer) - 1 : -1]
    top = rows.max(axis=1, keepdims=True)
    likely = rows - top - np.log(np.exp(rows - top).sum(axis=1, keepdims=True))
    found = np.array_equal(rows.argmax(axis=1), answer)
    return found, float(np.mean([row[token] for row, token in zip(likely, answer, strict=True)]))


if __name__ == "__main__":
    main()
