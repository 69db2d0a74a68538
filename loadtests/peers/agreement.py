"""Compares the kernels' log-probabilities with llama.cpp's, for one GGUF file.

    python -m loadtests.peers.agreement FILE --llama-server PROGRAM [--types gguf float32]

``llama-server`` continues a text greedily, without its cache of prompts and with keys and values in float32, and says
the most likely tokens of each place and their log-probabilities. The kernels then compute the logits of the same text
with llama.cpp's continuation. Printed are, for each type of weights, in how many places the most likely token is the
same, by how much it is behind at most where it is not, and how far apart the log-probabilities of llama.cpp's most
likely tokens are. Both round activations to 8 bits where weights are quantized, in other groups, so the numbers are
not the same; files of F32 show whether both compute the same model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from loadtests.peers.process import running
from loadtests.service import ROOT, free_port
from runtime.bench import logits_of
from runtime.engine.native.runner import NativeRunner
from runtime.host import usable_cores
from runtime.loading.loader import open_serving
from runtime.model.catalogue import parse_model_name
from runtime.model.gguf_header import read_header
from runtime.model.gguf_tokenizer import build_tokenizer
from runtime.model.packing import SnapshotKind

_PROMPT, _NEW, _MOST_LIKELY = 64, 32, 10  # tokens
_SECONDS = 600.0

Place = dict[int, float]  # the log-probabilities of the most likely tokens, the most likely one first


def continuation(program: Path, file: Path, prompt: Sequence[int], new: int) -> list[Place]:
    """Return the most likely tokens of each place of llama.cpp's greedy continuation.

    Args:
        program: the ``llama-server`` binary.
        file: the model.
        prompt: ids of the tokens of the text.
        new: number of tokens to continue it by.
    """
    port, cores = free_port(), str(usable_cores())
    command = [str(program), "-m", str(file), "-c", "512", "-np", "1", "-t", cores, "-tb", cores]
    command += ["--port", str(port), "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-warmup"]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder, running(command, {}, ROOT, Path(folder) / "log") as server:

        def healthy() -> bool:
            try:
                return httpx.get(f"{url}/health").status_code == 200
            except httpx.TransportError:
                return False

        server.until(healthy, _SECONDS, "llama-server serves the model")
        options = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "n_probs": _MOST_LIKELY}
        body = {"prompt": list(prompt), "n_predict": new, **options}
        answer = httpx.post(f"{url}/completion", json=body, timeout=_SECONDS).raise_for_status()
        places: list[dict[str, Any]] = answer.json()["completion_probabilities"]
    return [{token["id"]: token["logprob"] for token in place["top_logprobs"]} for place in places]


def compare(file: Path, kind: SnapshotKind, prompt: Sequence[int], wanted: Sequence[Place], cache: Path) -> str:
    """Return a row of the table: how the kernels' log-probabilities differ from others.

    Args:
        file: the model.
        kind: the types of its weights.
        prompt: ids of the tokens of the text.
        wanted: the others, at each place of the continuation.
        cache: folder for the snapshot.
    """
    snapshot = open_serving(parse_model_name(str(file)), kind, cache, lambda stage, share: None)
    runner = NativeRunner(snapshot, kv_bytes=256 << 20, max_tokens=512, threads=usable_cores())
    text = [*prompt, *map(_most_likely, wanted)]
    logits = np.concatenate([part.copy() for part in logits_of(runner, text)])[len(prompt) - 1 : -1]
    runner.close()
    return f"| {kind} | {differences(logits, wanted)} |"


def differences(logits: NDArray[np.float32], wanted: Sequence[Place]) -> str:
    """Return the cells of a row: how the log-probabilities of some logits differ from others.

    Args:
        logits: the logits at each place [T, V].
        wanted: the others, at each place.
    """
    found = logits.astype(np.float64)
    found -= found.max(1, keepdims=True)
    found -= np.log(np.exp(found).sum(1, keepdims=True))
    behind = [row.max() - row[_most_likely(place)] for row, place in zip(found, wanted, strict=True)]
    pairs = [(row[token], value) for row, place in zip(found, wanted, strict=True) for token, value in place.items()]
    apart = np.array([value - other for value, other in pairs])
    return (
        f"{behind.count(0)} of {len(behind)} | {max(behind):.4f} | {np.sqrt(np.mean(apart**2)):.5f} "
        f"| {np.abs(apart).max():.5f} | {logits.std():.3f}"
    )


def _most_likely(place: Place) -> int:
    return next(iter(place))


def main() -> None:
    """Print the table for the file on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--llama-server", type=Path, required=True, metavar="PROGRAM")
    parser.add_argument("--types", nargs="+", default=["gguf"], choices=["float32", "bfloat16", "int8", "int4", "gguf"])
    parser.add_argument("--new", type=int, default=_NEW, help="number of tokens")
    options = parser.parse_args()
    tokenizer = build_tokenizer(read_header(options.file).metadata)
    prompt = tokenizer.encode((ROOT / "loadtests/quality.txt").read_text())[:_PROMPT]
    wanted = continuation(options.llama_server, options.file, prompt, options.new)
    print("| weights | same token | at most behind | log-probabilities apart, RMS | at most | spread of logits |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.types:
            print(compare(options.file, kind, prompt, wanted, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
