"""Builds the argument parser of ``warmstart COMMAND``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from handlers.cli import admin, audit, batch, encode, generate, keys, models, sign, submit
from handlers.cli import consume as consume_command
from handlers.cli.options import add_sampling
from handlers.operations import OPERATIONS

Command = Callable[[argparse.Namespace], int | None]
"""A function that runs a command with its parsed options; returns the exit status, None for 0."""


def build_parser(serve: Command, consume: Command, *more: Callable[[Any], None]) -> argparse.ArgumentParser:
    """Return the parser with all commands; ``run`` of the parsed options is the command's function.

    Args:
        serve: the function of ``warmstart serve``.
        consume: the function of ``warmstart consume``.
        more: functions that add further commands to the subparsers.
    """
    parser = argparse.ArgumentParser(prog="warmstart", description="Serve small language models from plain Python.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, *, model: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        if model:
            added.add_argument("--model", help="the model, instead of MODEL_NAME")
        return added

    sub = command("serve", serve, "Run the HTTP service.")
    sub.add_argument("--host", help="the address to listen on, instead of HOST")
    sub.add_argument("--port", type=int, help="the port, instead of PORT")
    sub = command(
        "invoke",
        generate.run_invoke,
        "Call an operation with a JSON payload, or with each line of standard input.",
    )
    sub.add_argument("operation", choices=OPERATIONS)
    sub.add_argument(
        "payload", nargs="?", default="-", help="a JSON object; - (the default) reads JSON lines from standard input"
    )
    sub = command("generate", generate.run_generate, "Complete a text.")
    sub.add_argument("prompt")
    sub.add_argument("--stream", action="store_true", help="print tokens as they are generated")
    add_sampling(sub)
    sub = command("chat", generate.run_chat, "Chat in the terminal. Ctrl-C stops an answer, Ctrl-D ends.")
    sub.add_argument("--system", help="the system prompt")
    add_sampling(sub)
    encode.add(commands)
    models.add(commands)
    batch.add(commands)
    consume_command.add(commands, consume)
    submit.add(commands)
    keys.add(commands)
    sign.add(commands)
    audit.add(commands)
    sub = command("pull", admin.run_pull, "Download or convert a model ahead of time.", model=False)
    sub.add_argument("name", help="catalogue name, hub id with optional @revision, folder, or .gguf file")
    sub = command(
        "bench", admin.run_bench, "Measure the model on this machine: prefill, decode, bandwidth, cold start."
    )
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    sub.add_argument("--perplexity", metavar="FILE", help="also measure the perplexity of this text")
    sub = command("config", admin.run_config, "Print all settings.", model=False)
    sub.add_argument("--markdown", action="store_true", help="print a Markdown table")
    for add in more:
        add(commands)
    return parser
