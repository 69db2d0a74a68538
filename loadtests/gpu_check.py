"""Checks the torch runner's correctness on this GPU and compares its speed with transformers' continuous batching.

    .venv/bin/python -m loadtests.gpu_check [--model NAME] [--batches 1,16,64,256] [--json FILE]

Run it with the service's interpreter, from the repository's root. It checks that greedy float32 tokens equal those of
transformers' ``generate``, that requests give the same tokens and log-probabilities alone and in a batch, and that a
decode step captured as a graph gives the same bits as an uncaptured one; then it prints tokens per second, with the
time for prompts. The exit status is 1 if a check fails. Unlike other load tests it imports the service, because there
is no server between it and the runner.

``--device cpu --model tiny`` tests the script itself without a GPU. ``tiny-experts`` is a small mixture of experts,
whose captured steps compute all experts.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.engine.block_pool import BlockPool
from runtime.engine.pytorch.runner import TorchRunner
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import Row, Sampled
from runtime.engine.sequence import Sequence as Text
from runtime.loading.convert import convert
from runtime.loading.loader import load
from runtime.loading.tensor_source import StateDictSource
from runtime.model.catalogue import parse_model_name
from runtime.model.families import read_config
from runtime.types import SamplingParams

PROMPT_TOKENS = 85
NEAR_TIE = 1e-3  # two logits this close may swap ranks with another order of summation


def main() -> None:
    """Check, measure and print the result."""
    parser = argparse.ArgumentParser(description="Parity, batch invariance and speed of the torch runner.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as MODEL_NAME, or: tiny, tiny-experts")
    parser.add_argument("--batches", default="1,16,64,256", help="requests at once, for the speed")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens per request")
    parser.add_argument("--prompts", type=int, default=20, help="for the checks")
    parser.add_argument("--runs", type=int, default=3, help="of each measurement; the median counts")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --model tiny tries the script without one")
    torch.backends.cuda.matmul.allow_tf32 = False  # full float32 precision for both
    checks = check(options)
    for name, result in checks.items():
        print(f"{name}: {result}")
    speeds = measure(options)
    print(table(speeds))
    if options.json:
        figures = {"device": _device_name(options.device), "checks": checks, "tokens_per_second": speeds}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(any(not result.startswith("right") for result in checks.values()))


def check(options: argparse.Namespace) -> dict[str, str]:
    """Return each check's result as text, which starts with "right" if it passed."""
    model = _model(options, torch.float32)
    prompts = _prompts(options.prompts, model, seed=1)
    results = {"greedy tokens": _parity(model, prompts, options.new_tokens)}
    for dtype in dict.fromkeys((torch.float32, _fast(options.device))):
        model = model.to(dtype)
        name = str(dtype).removeprefix("torch.")
        results[f"alone and together, {name}"] = _invariance(model, prompts, options.new_tokens)
        results[f"captured steps, {name}"] = _capture(model, prompts)
    return results


def measure(options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Return tokens per second by way of generating and by batch size."""
    model = _model(options, _fast(options.device))
    speeds: dict[str, dict[int, float]] = {}
    for name, settings in {"warmstart": {}, "warmstart, DETERMINISTIC=false": {"deterministic": False}}.items():
        runner = _runner(model, **settings)
        speeds[name] = {}
        for batch in _batches(options):
            texts = _prompts(batch, model, seed=batch)
            speeds[name][batch] = _speed(
                options, batch, lambda texts=texts, runner=runner: generate(runner, texts, options.new_tokens)
            )
        runner.close()
    speeds["transformers, continuous batching"] = {
        batch: _peer(options, model, _prompts(batch, model, seed=batch)) for batch in _batches(options)
    }
    return speeds


def table(speeds: dict[str, dict[int, float]]) -> str:
    """Return the speeds as a Markdown table."""
    batches = next(iter(speeds.values()))
    lines = ["| tokens per second | " + " | ".join(map(str, batches)) + " |", "|---" * (len(batches) + 1) + "|"]
    for name, row in speeds.items():
        lines.append(f"| {name} | " + " | ".join(f"{speed:.0f}" for speed in row.values()) + " |")
    return "\n".join(lines)


def generate(
    runner: TorchRunner, prompts: Iterable[Sequence[int]], tokens: int, params: Sequence[SamplingParams] = ()
) -> list[list[Sampled]]:
    """Generate each prompt's new tokens, greedily by default, all in one batch as the engine would."""
    greedy = SamplingParams(max_new_tokens=tokens, temperature=0)
    texts = [
        Text(tuple(prompt), params[i] if params else greedy, seed=params[i].seed or 0 if params else 0)
        for i, prompt in enumerate(prompts)
    ]
    pool = BlockPool(runner.blocks, runner.block_tokens, cache_blocks=0)
    scheduler = Scheduler(
        pool, max_rows=len(texts), max_tokens=runner.max_tokens, token_budget=runner.max_tokens, eos=frozenset()
    )
    kept: dict[Text, list[Sampled]] = {text: [] for text in texts}
    for text in texts:
        scheduler.add(text)
    while scheduler.busy:
        plan = scheduler.schedule()
        for outcome in scheduler.commit(plan.rows, runner.step(plan.rows)):
            if outcome.error is not None:
                raise outcome.error
            kept[outcome.sequence] += outcome.tokens
    return list(kept.values())


def _parity(model: Any, prompts: list[list[int]], tokens: int) -> str:
    runner = _runner(model)
    near = 0
    for prompt, choices in zip(prompts, generate(runner, prompts, tokens), strict=True):
        got = [choice.id for choice in choices]
        ids = torch.tensor([prompt], device=model.device)
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )[0]
        expected = whole[len(prompt) :].tolist()
        first = next((i for i, pair in enumerate(zip(got, expected, strict=True)) if pair[0] != pair[1]), None)
        if first is None:
            continue
        with torch.inference_mode():
            logits = model(whole[None, : len(prompt) + first]).logits[0, -1]
        gap = float(logits[expected[first]] - logits[got[first]])
        if gap > NEAR_TIE:
            return f"WRONG: token {first} of a text differs, and its logit by {gap:.3g}"
        near += 1
    runner.close()
    return f"right: those of transformers for {len(prompts)} prompts, {near} of them up to a tie in the logits"


def _invariance(model: Any, prompts: list[list[int]], tokens: int) -> str:
    runner = _runner(model)
    rng = random.Random(2)
    cut = [prompt[: rng.randint(1, len(prompt))] for prompt in prompts]
    params = [
        SamplingParams(
            tokens,
            temperature=rng.choice([0, 0.5, 1.0]),
            top_k=rng.choice([0, 50]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.1]),
            logprobs=2,
            seed=i,
        )
        for i in range(len(cut))
    ]
    together = generate(runner, cut, tokens, params)
    alone = [generate(runner, [prompt], tokens, [one])[0] for prompt, one in zip(cut, params, strict=True)]
    runner.close()
    other = sum(one != beside for one, beside in zip(alone, together, strict=True))
    if other:
        return f"WRONG: {other} of {len(cut)} requests get other tokens or log-probabilities beside others"
    return f"right: {len(cut)} requests get the same tokens and log-probabilities"


def _capture(model: Any, prompts: list[list[int]]) -> str:
    """Run one decode step of all prompts twice with and twice without graphs, so that a graph is also replayed."""
    steps = []
    for graphs in (False, True):
        runner = _runner(model, graphs=graphs)
        rows = []
        for i, prompt in enumerate(prompts):
            text = Text(tuple(prompt), SamplingParams(1, temperature=0), seed=0)
            text.blocks = list(range(i * 8, i * 8 + 8))
            runner.forward([Row(text, 0, prompt[:-1], samples=0)])
            rows.append(Row(text, len(prompt) - 1, prompt[-1:]))
        steps.append([runner.forward(rows)[0].clone() for _ in range(2)])
        runner.close()
    if all(torch.equal(a, b) for a, b in zip(*steps, strict=True)):
        return f"right: {len(prompts)} rows have the same bits"
    return "WRONG: logits differ by " + f"{max(float((a - b).abs().max()) for a, b in zip(*steps, strict=True)):.3g}"


def _peer(options: argparse.Namespace, model: Any, prompts: list[list[int]]) -> float:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    generation = GenerationConfig(max_new_tokens=options.new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
    continuous = ContinuousBatchingConfig(max_memory_percent=0.5, allow_block_sharing=False)
    with model.continuous_batching_context_manager(generation, continuous_batching_config=continuous) as manager:

        def once() -> None:
            manager.add_requests(inputs=prompts, max_new_tokens=options.new_tokens)
            left = len(prompts)
            while left:
                answer = manager.get_result(timeout=60)
                if answer is None or answer.error:
                    raise RuntimeError(f"transformers gave no answer: {answer and answer.error}")
                if answer.is_finished():
                    if len(answer.generated_tokens) != options.new_tokens:
                        raise RuntimeError(f"transformers gave a text of {len(answer.generated_tokens)} tokens")
                    left -= 1

        return _speed(options, len(prompts), once)


def _speed(options: argparse.Namespace, batch: int, once: Any) -> float:
    """Return tokens per second, the median of some runs after one that captures graphs and allocates memory."""
    once()
    seconds = []
    for _ in range(options.runs):
        started = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - started)
    return float(batch * options.new_tokens / sorted(seconds)[len(seconds) // 2])


def _model(options: argparse.Namespace, dtype: torch.dtype) -> Any:
    if options.model not in ("tiny", "tiny-experts"):
        spec = parse_model_name(options.model)
        return load(spec, options.device, str(dtype).removeprefix("torch."), lambda stage, share: None).model
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(1)
    shape: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if options.model == "tiny":
        model: Any = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        experts: dict[str, Any] = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
        model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape, **experts, shared_expert_intermediate_size=48))
    return model.eval().to(options.device, dtype)


def _runner(model: Any, **settings: Any) -> TorchRunner:
    model.generation_config.eos_token_id = None  # so that all texts have the same length
    shape = model.config.to_dict() | {"quantization_config": None}  # of the file; the model has none
    config, layout = read_config(shape)
    weights = convert(config, layout, StateDictSource(model.state_dict()))
    tensors = {weight.name: torch.tensor(weight.read()).to(model.device, model.dtype) for weight in weights}
    gigabytes = 8 if model.device.type == "cuda" else 0.5
    return TorchRunner(config, tensors, kv_bytes=int(gigabytes * 2**30), max_tokens=2048, **settings)


def _prompts(count: int, model: Any, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(model.config.vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def _batches(options: argparse.Namespace) -> list[int]:
    return [int(batch) for batch in options.batches.split(",")]


def _fast(device: str) -> torch.dtype:
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
