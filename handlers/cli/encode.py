"""The commands ``warmstart embed`` and ``warmstart rerank``: vectors and relevance of texts, in this process.

Each ``run_`` function takes the parsed options.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections.abc import Iterator
from typing import Any

from handlers.cli.generate import context_of, json_line
from handlers.local import invoke
from runtime.errors import InvalidRequest

_LINES_AT_ONCE = 256  # lines of standard input that are embedded together


def add(commands: Any) -> None:
    """Add the two commands to the command line's subparsers."""

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--model", help="the model, instead of MODEL_NAME")
        added.add_argument(
            "--truncate", choices=("start", "end"), help="cut texts that are too long, instead of an error"
        )
        return added

    sub = command("embed", run_embed, "Print the vector of each text as a line of JSON.")
    sub.add_argument("texts", nargs="*", metavar="TEXT", help="the texts; by default the lines of standard input")
    sub.add_argument("--input-type", help="what the texts are: query, document, or another use that the model knows")
    sub.add_argument("--prompt-name", help="the model's prompt to put before each text")
    sub.add_argument("--dimensions", type=int, help="number of dimensions, if the model's vectors can have fewer")
    sub = command("rerank", run_rerank, "Print documents by their relevance to a query: score, number and text.")
    sub.add_argument("query")
    sub.add_argument(
        "documents", nargs="*", metavar="DOCUMENT", help="the documents; by default the lines of standard input"
    )
    sub.add_argument("--top-n", type=int, help="print only as many")
    sub.add_argument("--json", action="store_true", help="print the whole answer as JSON")


def run_embed(options: argparse.Namespace) -> None:
    """Run ``embed``: print one JSON list of numbers per text, in their order, while the texts are read.

    Raises:
        ServiceError: errors of the operation ``embeddings``.
    """
    ctx = context_of(options)
    fields = _given(options, "input_type", "prompt_name", "dimensions", "truncate")
    texts = iter(options.texts) if options.texts else _lines()
    while some := list(itertools.islice(texts, _LINES_AT_ONCE)):
        answer = asyncio.run(invoke("embeddings", {"input": some, **fields}, ctx=ctx))
        for entry in answer["data"]:
            print(json_line(entry["embedding"]), flush=True)


def run_rerank(options: argparse.Namespace) -> None:
    """Run ``rerank``: print a line per document, the most relevant first.

    Raises:
        ServiceError: errors of the operation ``rerank``.
    """
    ctx = context_of(options)
    documents = options.documents or list(_lines())
    if not documents:
        raise InvalidRequest("there are no documents: name some, or write them to standard input, one per line")
    payload = {"query": options.query, "documents": documents, **_given(options, "top_n", "truncate")}
    answer = asyncio.run(invoke("rerank", payload, ctx=ctx))
    if options.json:
        print(json_line(answer))
        return
    for result in answer["results"]:
        text = " ".join(result["document"]["text"].split())
        print(f"{result['relevance_score']:.4f}\t{result['index']}\t{text}")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that were given, as the fields of a request."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _lines() -> Iterator[str]:
    """Yield the lines of standard input that are not blank."""
    for line in sys.stdin:
        if text := line.strip():
            yield text
