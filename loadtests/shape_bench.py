"""Compares the service with transformers' ``generate`` on distilgpt2's shape with random weights.

    .venv/bin/python -m loadtests.shape_bench [--repeats 3] [--json FILE]

The shape is GPT-2 with 6 layers, 768 wide, 50,257 tokens. Run it with the service's interpreter, from the repository's
root. All answer the same batches: N concurrent greedy prompts, 64 new tokens each, measured from the first prompt's
arrival to the last answer's end; prompts never repeat. Load tests import nothing of the service: child processes make
the model and call ``generate`` and the handlers.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtests.answers import read_whole
from loadtests.load.http_answer import BadAnswer
from loadtests.peers.client import Client
from loadtests.service import ROOT, running_service

NEW_TOKENS = 64
BATCHES = (1, 8, 16)
WORDS = 60  # of a prompt: about 85 tokens
TEXT = ROOT / "LICENSE"

# The vocabulary is filled with entries that no merge produces, so that every id has a text. Weights this wide make
# logits differ clearly: narrower ones repeat one token, which would favour speculative decoding.
MAKE_MODEL = """
import json, sys
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

folder, text, size = sys.argv[1], open(sys.argv[2]).read(), 50_257
made = Tokenizer(models.BPE())
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
made.train_from_iterator(text.splitlines(), trainers.BpeTrainer(
    vocab_size=4_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
whole = json.loads(made.to_str())
vocabulary = whole["model"]["vocab"]
vocabulary.update({f"<{i}>": i for i in range(len(vocabulary), size - 1)}, **{"<|endoftext|>": size - 1})
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer.from_str(json.dumps(whole)), bos_token="<|endoftext|>", eos_token="<|endoftext|>")
tokenizer.save_pretrained(folder)
torch.manual_seed(7)
config = GPT2Config(n_layer=6, n_embd=768, n_head=12, vocab_size=size, initializer_range=0.2,
    bos_token_id=size - 1, eos_token_id=size - 1)
GPT2LMHeadModel(config).eval().save_pretrained(folder)
"""

# Reads a JSON list of prompts per line, and prints [tokens, seconds] for each batch.
GENERATE = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, dtype, new_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
for line in sys.stdin:
    started = time.perf_counter()
    inputs = tokenizer(json.loads(line), return_tensors="pt", padding=True)
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
            pad_token_id=tokenizer.pad_token_id)
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1]:])
    made = len(texts) * (output.shape[1] - inputs["input_ids"].shape[1])
    print(json.dumps([made, time.perf_counter() - started]), flush=True)
"""

HANDLERS = """
import asyncio, json, sys, time
from handlers.local import invoke

async def main():
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        started = time.perf_counter()
        answers = await asyncio.gather(*(
            invoke("complete", {"prompt": prompt, "max_new_tokens": int(sys.argv[1]), "temperature": 0})
            for prompt in json.loads(line)))
        made = sum(answer["usage"]["completion_tokens"] for answer in answers)
        print(json.dumps([made, time.perf_counter() - started]), flush=True)

asyncio.run(main())
"""


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description="distilgpt2's shape against transformers' generate.")
    parser.add_argument("--repeats", type=int, default=3, help="batches of each size; medians are printed")
    parser.add_argument("--batches", type=_counts, default=BATCHES, help="prompts at once: 1,8,16")
    parser.add_argument("--dtypes", type=_names, default=["auto"], help="the service's DTYPE: auto,float32,bfloat16")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the running service is ended
    rows: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MAKE_MODEL, folder, TEXT], check=True)
        batches = [size for size in options.batches for _ in range(options.repeats + 1)]  # the first of each warms up
        for dtype in options.dtypes:
            rows[f"Warmstart over HTTP, {dtype}"] = _rates(over_http(folder, dtype, batches))
            variables = {"MODEL_NAME": folder, "DTYPE": dtype, "LOG_LEVEL": "ERROR", "RESPONSE_CACHE": "off"}
            command = [sys.executable, "-c", HANDLERS, str(NEW_TOKENS)]
            rows[f"Warmstart's handlers in process, {dtype}"] = _rates(in_child(command, variables, batches))
        for dtype in ("float32", "bfloat16"):
            command = [sys.executable, "-c", GENERATE, folder, dtype, str(NEW_TOKENS)]
            rows[f"generate, {dtype}"] = _rates(in_child(command, {}, batches))
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def prompts(size: int, numbers: Iterator[int]) -> list[str]:
    """Return a batch of prompts that differ from the first word on."""
    words = TEXT.read_text().split()
    starts = [number % (len(words) - WORDS) for number in itertools.islice(numbers, size)]
    return [" ".join([str(start + 1_000), *words[start : start + WORDS]]) for start in starts]


def over_http(folder: str, dtype: str, batches: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return (concurrent prompts, tokens, seconds) of each batch, measured over HTTP.

    Raises:
        RuntimeError: the service does not start.
        BadAnswer: an answer is wrong.
    """
    with running_service(MODEL_NAME=folder, DTYPE=dtype, RESPONSE_CACHE="off") as service:
        service.wait("/readyz")
        return asyncio.run(_all_over_http(service.port, batches))


async def _all_over_http(port: int, batches: Sequence[int]) -> list[tuple[int, int, float]]:
    numbers, clients, found = _numbers(), [Client(port) for _ in range(max(batches))], []
    for size in batches:
        asked = prompts(size, numbers)
        started = time.perf_counter()
        answers = await asyncio.gather(*(_complete(*pair) for pair in zip(clients, asked, strict=False)))
        found.append((size, sum(answers), time.perf_counter() - started))
    for client in clients:
        client.close()
    return found


async def _complete(client: Client, prompt: str) -> int:
    body = {"prompt": prompt, "max_new_tokens": NEW_TOKENS, "temperature": 0}
    response, began, ended = await client.request("POST", "/complete", json.dumps(body).encode())
    if response.status != 200:
        raise BadAnswer(f"{response.status}: {response.body()[:300]!r}")
    return read_whole(response.body(), began, ended).completion_tokens


def in_child(command: Sequence[str], variables: dict[str, str], batches: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return (concurrent prompts, tokens, seconds) of each batch, from a child that reads batches and prints the rest.

    Raises:
        RuntimeError: the child ends early.
    """
    numbers, found = _numbers(), []
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin
        assert child.stdout
        for size in batches:
            print(json.dumps(prompts(size, numbers)), file=child.stdin, flush=True)
            if not (line := child.stdout.readline()):
                raise RuntimeError(f"the child ended with status {child.wait()}")
            found.append((size, *json.loads(line)))
        child.stdin.close()
    return found


def table(rows: dict[str, dict[int, list[float]]]) -> str:
    """Return a Markdown table: tokens per second by batch size, and Warmstart's divided by those of ``generate``.

    Args:
        rows: tokens per second of each repetition, by name and by number of concurrent prompts.
    """
    sizes = list(next(iter(rows.values())))
    middle = {name: [statistics.median(row[size]) for size in sizes] for name, row in rows.items()}
    lines = ["| tokens per second | " + " | ".join(f"{size} at once" for size in sizes) + " |"]
    lines.append("|---|" + "---:|" * len(sizes))
    lines += [f"| {name} | " + " | ".join(f"{rate:,.1f}" for rate in rates) + " |" for name, rates in middle.items()]
    for mine, theirs in itertools.product(middle, middle):
        if mine.startswith("Warmstart") and not theirs.startswith("Warmstart"):
            ratios = (a / b for a, b in zip(middle[mine], middle[theirs], strict=True))
            lines.append(f"| {mine} / {theirs} | " + " | ".join(f"{ratio:.2f}x" for ratio in ratios) + " |")
    return "\n".join(lines)


def _rates(found: Sequence[tuple[int, int, float]]) -> dict[int, list[float]]:
    """Return tokens per second of each batch by its size, without the first batch of each size."""
    rates: dict[int, list[float]] = {}
    for size, tokens, seconds in found:
        rates.setdefault(size, []).append(tokens / seconds)
    return {size: values[1:] for size, values in rates.items()}


def _numbers() -> Iterator[int]:
    return itertools.count(0, 7)  # with this step, prompts with the same words are far apart


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
