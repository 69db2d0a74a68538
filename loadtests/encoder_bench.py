"""Measures embeddings: texts per second beside other programs on the same model, and what they cost a chat beside them.

    .venv/bin/python -m loadtests.encoder_bench --model FOLDER [--dtype int8] [--seconds 10] [--rounds 3]
        [--sentence-transformers PYTHON] [--fastembed PYTHON] [--llama-server URL] [--chat NAME]

FOLDER is a folder of sentence-transformers, such as that of all-MiniLM-L6-v2. Every program gets the same texts of 128
tokens, 32 at a time, and runs for the same time in turns, so that all see the same machine. Other libraries run in the
environments whose Python is given; fastembed with ONNX Runtime runs the folder's ``onnx/model.onnx``. A
``llama-server --embeddings`` must run already, with the same model and number of threads.

With ``--chat`` the real service serves that model beside the encoder, and eight clients stream answers of 96 tokens,
alone and while two clients embed without a pause.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtests.service import Service, running_service
from runtime.loading.load_engine import load_engine
from runtime.model.catalogue import parse_model_name
from runtime.settings import Settings

_TOKENS, _BATCH, _TEXTS = 128, 32, 256
_TEXT = Path(__file__).with_name("quality.txt")
_FEW = 4  # of a request beside a chat, so that many requests end in a phase
_CLIENTS, _NEW_TOKENS = 8, 96
_PEER = """
import json, sys, time
kind, folder, file, seconds = sys.argv[1:]
texts = json.load(open(file))
if kind == "sentence-transformers":
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(folder, device="cpu")
    embed = lambda batch: model.encode(batch, batch_size=len(batch), show_progress_bar=False)
else:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType
    TextEmbedding.add_custom_model("bench", PoolingType.MEAN, True, ModelSource(hf="bench/bench"), dim=384)
    model = TextEmbedding("bench", specific_model_path=folder)
    embed = lambda batch: list(model.embed(batch, batch_size=len(batch)))
embed(texts[:32])
print("ready", flush=True)
for line in sys.stdin:
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < float(seconds):
        at = done % len(texts)
        embed(texts[at:at + 32])
        done += 32
    print(done / (time.perf_counter() - started), flush=True)
"""


def main() -> None:
    """Run the comparison, then the chat, and print each as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentence-transformers", metavar="PYTHON")
    parser.add_argument("--fastembed", metavar="PYTHON")
    parser.add_argument("--llama-server", metavar="URL")
    parser.add_argument("--chat", metavar="NAME", help="a model that generates")
    given = parser.parse_args()
    _compare(given)
    if given.chat:
        _beside_chat(given)


def _compare(given: argparse.Namespace) -> None:
    started = time.perf_counter()
    settings = Settings.load(model_name=given.model, dtype=given.dtype)
    engine: Any = load_engine(parse_model_name(given.model), settings, lambda stage, share: None)
    texts = _texts(engine)
    asyncio.run(_embed(engine, texts[:1]))
    first = time.perf_counter() - started
    peers: dict[str, Callable[[], float]] = {f"Warmstart {given.dtype}": lambda: _own(engine, texts, given.seconds)}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        for kind in ("sentence-transformers", "fastembed"):
            python = getattr(given, kind.replace("-", "_"))
            if python:
                peers[kind] = _process(python, kind, given, file.name)
        if given.llama_server:
            peers["llama-server"] = lambda: _http(given.llama_server, texts, given.seconds)
        found = {name: [] for name in peers}  # type: dict[str, list[float]]
        for _ in range(given.rounds):
            for name, run in peers.items():
                found[name].append(run())
    own = statistics.median(found[f"Warmstart {given.dtype}"])
    sys.stdout.write(f"\nfrom the start of the load to the first vector: {first:.2f} s\n\n")
    sys.stdout.write("| program | texts/s of 128 tokens | ratio |\n|---|---:|---:|\n")
    for name, rates in found.items():
        rate = statistics.median(rates)
        sys.stdout.write(f"| {name} | {rate:.0f} ({min(rates):.0f}-{max(rates):.0f}) | {own / rate:.2f}x |\n")
    engine.close()


def _texts(engine: Any) -> list[str]:
    """Return texts of the wanted number of tokens, from different places of a text."""
    words = _TEXT.read_text().split()

    async def cut() -> list[str]:
        texts = [" ".join(words[i % len(words) :] + words[: i % len(words)]) for i in range(0, 7 * _TEXTS, 7)]
        inputs = await engine.tokenize_inputs(texts, max_tokens=_TOKENS, truncate="end")
        return [await engine.decode(list(text.ids[1:-1]), "texts") for text in inputs]

    return asyncio.run(cut())


async def _embed(engine: Any, texts: Sequence[str]) -> None:
    await engine.embed(await engine.tokenize_inputs(texts, truncate="end"))


def _own(engine: Any, texts: Sequence[str], seconds: float) -> float:
    """Return texts per second of two callers, so that one's texts are tokenized while the other's are computed."""

    async def run() -> float:
        started, done = time.perf_counter(), 0

        async def caller() -> None:
            nonlocal done
            while time.perf_counter() - started < seconds:
                at = done % len(texts)
                done += _BATCH
                await _embed(engine, texts[at : at + _BATCH])

        await asyncio.gather(caller(), caller())
        return done / (time.perf_counter() - started)

    return asyncio.run(run())


def _process(python: str, kind: str, given: argparse.Namespace, file: str) -> Callable[[], float]:
    """Start another library and return a function that measures it."""
    command = [python, "-c", _PEER, kind, given.model, file, str(given.seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise RuntimeError(f"{kind} does not start with {python}")

    def run() -> float:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    return run


def _http(url: str, texts: Sequence[str], seconds: float) -> float:
    """Return texts per second of two clients of OpenAI's route, of any server."""
    started, done, lock = time.perf_counter(), [0], threading.Lock()

    def client() -> None:
        while time.perf_counter() - started < seconds:
            with lock:
                at = done[0] % len(texts)
                done[0] += _BATCH
            body = json.dumps({"model": "any", "input": list(texts[at : at + _BATCH])}).encode()
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=600)
            connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
            connection.close()

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done[0] / (time.perf_counter() - started)


def _beside_chat(given: argparse.Namespace) -> None:
    settings = {"MODEL_NAME": given.chat, "MODELS": json.dumps([given.chat, given.model]), "DTYPE": given.dtype}
    with running_service(**settings, RESPONSE_CACHE="off") as service:
        service.wait("/readyz")
        encoder = Path(given.model).name
        texts = _TEXT.read_text().split("\n\n")
        _post(service, "/v1/embeddings", {"model": encoder, "input": texts[:4], "truncate": "end"})
        _stream(service, given.chat, 8)
        sys.stdout.write("\n| eight streaming clients | p50 ms | p95 ms | texts/s beside |\n|---|---:|---:|---:|\n")
        for _ in range(given.rounds):
            for embeds in (False, True):
                gaps, rate = _phase(service, given, encoder, texts, embeds=embeds)
                cuts = statistics.quantiles(gaps, n=20)
                name = "while texts are embedded" if embeds else "alone"
                sys.stdout.write(f"| {name} | {1000 * cuts[9]:.1f} | {1000 * cuts[18]:.1f} | {rate:.0f} |\n")


def _phase(
    service: Service, given: argparse.Namespace, encoder: str, texts: Sequence[str], *, embeds: bool
) -> tuple[list[float], float]:
    """Return the seconds between tokens of all clients, and the texts per second that were embedded meanwhile."""
    gaps: list[float] = []
    ended = threading.Event()
    embedded = [0]

    def chat() -> None:
        end = time.perf_counter() + given.seconds
        while time.perf_counter() < end:
            gaps.extend(_stream(service, given.chat, _NEW_TOKENS))

    def embed() -> None:
        while not ended.is_set():
            body = {"model": encoder, "input": list(texts[:_FEW]), "truncate": "end", "encoding_format": "base64"}
            _post(service, "/v1/embeddings", body)
            embedded[0] += len(body["input"])

    clients = [threading.Thread(target=chat) for _ in range(_CLIENTS)]
    others = [threading.Thread(target=embed) for _ in range(2 if embeds else 0)]
    started = time.perf_counter()
    for thread in (*others, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    rate = embedded[0] / (time.perf_counter() - started)
    ended.set()
    for thread in others:
        thread.join()
    return gaps, rate


def _post(service: Service, path: str, body: Any) -> Any:
    connection = service.connect()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status} {text[:300]!r}")
    return json.loads(text)


def _stream(service: Service, model: str, tokens: int) -> list[float]:
    """Return the seconds between the tokens of one streamed answer."""
    messages = [{"role": "user", "content": f"Write a long letter. {time.perf_counter_ns()}"}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    connection: http.client.HTTPConnection = service.connect()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    times = [time.perf_counter() for line in answer if line.startswith(b"data: {") and b'"content"' in line]
    connection.close()
    return [later - earlier for earlier, later in itertools.pairwise(times[1:])]


if __name__ == "__main__":
    main()
