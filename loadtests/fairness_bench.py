"""Measures how a backlog of background work and interactive requests affect each other's latency and throughput.

    .venv/bin/python -m loadtests.fairness_bench [--clients 4] [--queued 16] [--max-batch 64] [--rounds 3] [--json FILE]

Run it with the service's interpreter, from the repository's root: the engine runs in the process that calls it, with
the embedded model and without HTTP. In each round the interactive requests run alone, then the background work, then
both, so that the compared values are measured within a minute. Both are closed loops: each client sends its next
request as soon as it has an answer. Load tests import nothing of the service: a child process calls the handlers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from loadtests.service import ROOT

# Prints a line of JSON per phase: its name, each interactive answer's time to first token and its tokens per second
# after that, and tokens per second of all background answers.
CHILD = """
import asyncio, itertools, json, sys, time
from dataclasses import replace
from handlers.local import invoke_stream, shared_context

clients, queued, rounds = map(int, sys.argv[1:4])
seconds, words = float(sys.argv[4]), open(sys.argv[5]).read().split()
numbers = itertools.count(0, 7)  # no prompt comes twice

async def ask(ctx, tokens):
    start = next(numbers) % (len(words) - 60)
    prompt = " ".join([str(start + 1000), *words[start : start + 60]])
    payload = {"prompt": prompt, "max_new_tokens": tokens, "min_new_tokens": tokens, "seed": start}
    async for chunk in invoke_stream("complete", payload, ctx=ctx):
        if "usage" not in chunk:
            yield time.perf_counter()

async def person(until, found):
    while (began := time.perf_counter()) < until:
        times = [moment async for moment in ask(shared_context(), 64)]
        found.append((times[0] - began, (len(times) - 1) / (times[-1] - times[0])))

async def worker(until, count):
    ctx = replace(shared_context(), background=True)
    while time.perf_counter() < until:
        async for moment in ask(ctx, 128):
            count[0] += moment < until

async def phase(name, people, workers):
    found, count, begin = [], [0], time.perf_counter() + (1 if workers else 0)  # by then the backlog is there
    until = begin + seconds
    tasks = [asyncio.create_task(worker(until, count)) for _ in range(workers)]
    await asyncio.sleep(begin - time.perf_counter())
    count[0] = 0
    tasks += [asyncio.create_task(person(until, found)) for _ in range(people)]
    await asyncio.gather(*tasks)
    print(json.dumps({"phase": name, "first": [f for f, _ in found], "pace": [p for _, p in found],
        "queued": count[0] / seconds}))

async def main():
    async for _ in ask(shared_context(), 8):
        pass
    for _ in range(rounds):
        await phase("alone", clients, 0)
        await phase("queue", 0, queued)
        await phase("both", clients, queued)

asyncio.run(main())
"""


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description="People beside a backlog of queued work.")
    parser.add_argument("--clients", type=int, default=4, help="people who wait")
    parser.add_argument("--queued", type=int, default=16, help="queued answers that a worker has under way")
    parser.add_argument("--max-batch", type=int, default=64, help="MAX_BATCH; fewer rows than both want make some wait")
    parser.add_argument("--rounds", type=int, default=3, help="each gives one ratio; medians are printed")
    parser.add_argument("--seconds", type=float, default=10, help="of each phase")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    numbers = (options.clients, options.queued, options.rounds, options.seconds)
    found = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, numbers), str(ROOT / "LICENSE")],
        cwd=ROOT,
        env=os.environ | {"RESPONSE_CACHE": "off", "LOG_LEVEL": "ERROR", "MAX_BATCH": str(options.max_batch)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    phases = [json.loads(line) for line in found.stdout.splitlines()]
    print(table(phases))
    if options.json:
        options.json.write_text(json.dumps(phases, indent=1) + "\n")


def table(phases: list[dict[str, Any]]) -> str:
    """Return a Markdown table: medians of the rounds, and medians of the ratios within each round.

    Args:
        phases: the phases as the child prints them, three of each round.
    """
    rounds = [phases[i : i + 3] for i in range(0, len(phases), 3)]
    rows = {
        "people's time to first token, median, ms": (_first, 0),
        "95th percentile": (_late, 0),
        "people's tokens per second, each": (lambda phase: statistics.median(phase["pace"]), 0),
        "the queue's tokens per second": (lambda phase: phase["queued"], 1),
    }
    lines = ["| | alone | both at once | ratio |", "|---|---:|---:|---:|"]
    for name, (value, alone) in rows.items():
        pairs = [(value(found[alone]), value(found[2])) for found in rounds]
        single, both = (statistics.median(numbers) for numbers in zip(*pairs, strict=True))
        ratio = statistics.median(second / first for first, second in pairs)
        lines.append(f"| {name} | {single:,.1f} | {both:,.1f} | {ratio:.2f}x |")
    return "\n".join(lines)


def _first(phase: dict[str, Any]) -> float:
    return float(1000 * statistics.median(phase["first"]))


def _late(phase: dict[str, Any]) -> float:
    values = sorted(phase["first"])
    return float(1000 * values[-(-len(values) * 19 // 20) - 1])


if __name__ == "__main__":
    main()
