"""Measures structured output: correctness of many answers, and its cost and gain beside free text.

    .venv/bin/python -m loadtests.structured_bench [--answers 1000] [--clients 16] [--rounds 3] [--suite FOLDER]

Run it with the service's interpreter, from the repository's root: the engine runs in the process that calls it, with
the embedded model and without HTTP. ``--suite`` adds the schemas of a folder of the public JSON Schema Test Suite
(``tests/draft2020-12``) that the grammar library supports. Free and constrained phases alternate within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from handlers.context import Context
from handlers.local import invoke_stream, shared_context
from loadtests.service import ROOT
from runtime.errors import ServiceError

_SCALARS: tuple[dict[str, Any], ...] = (
    {"type": "string", "maxLength": 30},
    {"type": "integer", "minimum": 0, "maximum": 1000},
    {"type": "number", "minimum": -1, "maximum": 1},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green", "blue"]},
    {"const": "fixed text"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {"type": ["string", "null"], "maxLength": 10},
)
_TEN = {
    "type": "object",
    "properties": {
        **{name: {"type": "string", "maxLength": 24} for name in ("name", "email", "city", "country", "job", "note")},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
        "active": {"type": "boolean"},
        "colour": {"enum": ["red", "green", "blue"]},
    },
    "required": ["name", "email", "city", "country", "job", "note", "age", "score", "active", "colour"],
    "additionalProperties": False,
}
# Both constrain each token and force none; counting makes each position another state, whose mask is computed anew.
_LETTERS, _COUNTED = "[A-Za-z ,.]+", "[A-Za-z ,.]{4000}"


@dataclass(slots=True)
class Answer:
    """An answer: its text, times in seconds, number of tokens and finish reason."""

    text: str
    first: float
    seconds: float
    tokens: int
    reason: str


def own_schemas() -> Iterator[dict[str, Any]]:
    """Yield more than a hundred schemas whose texts are of bounded length."""
    for scalar in _SCALARS:
        yield scalar
        yield {"type": "array", "items": scalar, "minItems": 1, "maxItems": 3}
        yield {"type": "object", "properties": {"value": scalar}, "required": ["value"], "additionalProperties": False}
    for one, other in itertools.combinations(_SCALARS, 2):
        yield {
            "type": "object",
            "properties": {"first": one, "second": {"type": "array", "items": other, "maxItems": 2}},
            "required": ["first", "second"],
            "additionalProperties": False,
        }
    for one, other in itertools.pairwise(_SCALARS):
        yield {"anyOf": [{"type": "array", "prefixItems": [one], "items": False, "minItems": 1}, other]}
        yield {
            "$defs": {"part": {"type": "object", "properties": {"x": one}, "required": ["x"]} | _CLOSED},
            "type": "object",
            "properties": {"part": {"$ref": "#/$defs/part"}, "more": {"$ref": "#/$defs/part"}},
            "required": ["part"],
        } | _CLOSED
    yield _TEN


_CLOSED = {"additionalProperties": False}


def suite_schemas(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the schemas of the public test suite."""
    for file in sorted(folder.glob("*.json")):
        for group in json.loads(file.read_text()):
            if isinstance(group["schema"], dict):
                yield {key: value for key, value in group["schema"].items() if key not in ("$schema", "$id")}


async def ask(ctx: Context, number: int, tokens: int, **fields: Any) -> Answer:
    """Ask a question that no other request asks."""
    words = (ROOT / "LICENSE").read_text().split()
    start = number * 7 % (len(words) - 40)
    prompt = f"Number {number}. Describe a person, a colour and a place. " + " ".join(words[start : start + 40])
    payload = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    began, first, text, reason, used = time.perf_counter(), 0.0, [], "", 0
    async for chunk in invoke_stream("chat", payload, ctx=ctx):
        for choice in chunk["choices"]:
            if choice["delta"].get("content"):
                first = first or time.perf_counter() - began
                text.append(choice["delta"]["content"])
            reason = choice["finish_reason"] or reason
        used = (chunk.get("usage") or {}).get("completion_tokens", used)
    return Answer("".join(text), first, time.perf_counter() - began, used, reason)


def json_format(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the field that asks for JSON of a schema."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


async def correctness(schemas: list[dict[str, Any]], answers: int, clients: int) -> None:
    """Print how many answers end, parse and validate."""
    counts = dict.fromkeys(("valid", "cut off", "wrong", "refused"), 0)
    refused: dict[str, int] = {}
    gate = asyncio.Semaphore(clients)
    numbers = itertools.count()

    async def one(schema: dict[str, Any]) -> None:
        async with gate:
            try:
                temperature = 1.0 if next(numbers) % 2 else 0.0
                found = await ask(shared_context(), next(numbers), 400, temperature=temperature, **json_format(schema))
            except ServiceError as error:
                counts["refused"] += 1
                refused[str(error)[:100]] = refused.get(str(error)[:100], 0) + 1
                return
        if found.reason != "stop":
            counts["cut off"] += 1
            return
        try:
            jsonschema.validate(
                json.loads(found.text), schema, format_checker=jsonschema.FormatChecker(["date", "uuid"])
            )
            counts["valid"] += 1
        except (ValueError, jsonschema.ValidationError) as error:
            counts["wrong"] += 1
            print(f"wrong: {json.dumps(schema)[:300]}\n  {found.text[:200]!r}\n  {str(error)[:200]}")

    await asyncio.gather(*(one(schema) for schema in itertools.islice(itertools.cycle(schemas), answers)))
    print(f"{len(schemas)} schemas, {answers} answers, {clients} clients: {counts}")
    for message, count in sorted(refused.items(), key=lambda item: -item[1])[:12]:
        print(f"  refused {count}: {message}")


async def speed(rounds: int, clients: int, seconds: float) -> None:
    """Print the ratios of constrained to free text."""
    numbers = itertools.count(100_000)
    forms: dict[str, dict[str, Any]] = {
        "free": {"min_tokens": 64, "max_tokens": 64},
        "letters": {"guided_regex": _LETTERS, "min_tokens": 64, "max_tokens": 64},
        "counted letters": {"guided_regex": _COUNTED, "min_tokens": 64, "max_tokens": 64},
        "ten fields": {"max_tokens": 300, **json_format(_TEN)},
    }

    async def phase(form: str, users: int) -> tuple[float, list[float]]:
        until = time.perf_counter() + seconds
        answers: list[Answer] = []

        async def user() -> None:
            while time.perf_counter() < until:
                fields = dict(forms[form])
                answers.append(await ask(shared_context(), next(numbers), fields.pop("max_tokens"), **fields))

        began = time.perf_counter()
        await asyncio.gather(*(user() for _ in range(users)))
        return sum(answer.tokens for answer in answers) / (time.perf_counter() - began), [a.first for a in answers]

    for form in forms:  # grammars are compiled
        await phase(form, 1)
    rows: dict[tuple[str, int], list[tuple[float, list[float]]]] = {}
    for _ in range(rounds):
        for users, form in itertools.product((1, clients), forms):
            rows.setdefault((form, users), []).append(await phase(form, users))
    print("| text | clients | tok/s | ratio to free | first text p50 ms | p95 ms |\n|---|---|---|---|---|---|")
    for (form, users), found in rows.items():
        rate = statistics.median(r for r, _ in found)
        ratio = statistics.median(r / f for (r, _), (f, _) in zip(found, rows["free", users], strict=True))
        firsts = sorted(first for _, times in found for first in times)
        p50, p95 = (1000 * firsts[int(len(firsts) * share)] for share in (0.5, 0.95))
        print(f"| {form} | {users} | {rate:.0f} | {ratio:.2f} | {p50:.1f} | {p95:.1f} |")


async def run(options: argparse.Namespace) -> None:
    """Run all phases."""
    schemas = list(own_schemas())
    async for _ in invoke_stream("complete", {"prompt": "a", "max_new_tokens": 2}, ctx=shared_context()):
        pass
    if options.answers:
        await correctness(schemas, options.answers, options.clients)
        if options.suite:
            suite = list(suite_schemas(options.suite))
            await correctness(suite, len(suite), options.clients)
    await speed(options.rounds, options.clients, options.seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Structured output beside free text.")
    parser.add_argument("--answers", type=int, default=1000, help="constrained answers that are validated")
    parser.add_argument("--clients", type=int, default=16, help="requests at once")
    parser.add_argument("--rounds", type=int, default=3, help="medians of these are printed")
    parser.add_argument("--seconds", type=float, default=6, help="of each phase")
    parser.add_argument("--suite", type=Path, help="a folder of the JSON Schema Test Suite")
    options = parser.parse_args()
    os.environ |= {"RESPONSE_CACHE": "off", "LOG_LEVEL": "ERROR"}
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
