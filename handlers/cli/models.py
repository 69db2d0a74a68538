"""``warmstart models ls | load | unload | default | compare``: manage a running service's models over HTTP."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from handlers.cli.options import add_sampling, sampled, settings_of
from handlers.cli.output import table
from handlers.cli.service_options import add_service, remote_of
from runtime.errors import InvalidRequest, ServiceError
from runtime.loading.adapters import with_adapters
from runtime.loading.model_files import on_disk
from runtime.model.catalogue import CATALOGUE, served_models
from runtime.model.progress import LoadProgress
from runtime.telemetry.logging import setup_logging

_LABEL_CHARS = 64  # the longest label that the service accepts


def add(commands: Any) -> None:
    """Add the ``models`` commands to the command line's subparsers; ``models`` alone is ``models ls``."""
    text = "List, load, unload and compare the models of a running service."
    parser = commands.add_parser("models", help=text, description=text)
    parser.set_defaults(run=run_ls)
    add_service(parser)
    family = parser.add_subparsers(metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = family.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        add_service(added, child=True)
        return added

    command("ls", run_ls, "List the models with state, memory, last use, requests and speed (the default command).")
    for name, run, text in (
        ("load", run_load, "Load a model, and show the progress."),
        ("unload", run_unload, "Unload a model once its requests have ended."),
        ("default", run_default, "Make a model the default, after loading it."),
    ):
        command(name, run, text).add_argument("id", help="the model's id, as warmstart models ls prints it")
    sub = command("compare", run_compare, "Answer one prompt with several models or settings.")
    sub.add_argument("prompt")
    sub.add_argument(
        "--variant",
        action="append",
        required=True,
        help="a variant such as model=ID,temperature=0.5,label=NAME; at most eight",
    )
    sub.add_argument("--chat", action="store_true", help="send the prompt as a chat message")
    sub.add_argument("--no-score", action="store_true", help="do not compute how likely each model finds each answer")
    add_sampling(sub)


def run_ls(options: argparse.Namespace) -> None:
    """Run ``ls``: list the service's models; if no service answers, the models that can be served here."""
    remote = remote_of(options)
    try:
        entries = remote.call("GET", "/models")["data"]
    except ConnectionError as error:
        print(f"warmstart: {error}; these are the models that can be served", file=sys.stderr)
        return _list_names(options)
    rows = [("model", "state", "memory", "last used", "requests", "tok/s", "first token", "")]
    print(table(rows + [_row(entry, time.time()) for entry in entries]))


def run_load(options: argparse.Namespace) -> int:
    """Run ``load``: load a model and show the progress until the load has ended.

    Raises:
        ServiceError: the model is not ready afterwards.
    """
    settings = settings_of(options)
    setup_logging(settings.log_format, settings.log_level)
    reporter = LoadProgress(options.id)
    entry: dict[str, Any] = {}
    try:
        for entry in remote_of(options).events("POST", f"/models/{quote(options.id)}/load", {"stream": True}):
            if entry["state"] == "loading" and entry.get("stage"):
                reporter(entry["stage"], entry.get("progress"))
    finally:
        reporter.close()
    if entry.get("state") != "ready":
        raise ServiceError(
            f"{options.id} is {entry.get('state')}: {entry.get('error') or 'see the log of the service'}"
        )
    print(f"{options.id} is ready, {_bytes(entry.get('memory_bytes'))}")
    return 0


def run_unload(options: argparse.Namespace) -> None:
    """Run ``unload``: unload a model once its requests have ended, and print its state."""
    entry = remote_of(options).call("POST", f"/models/{quote(options.id)}/unload")
    running = (
        f"; it is unloaded when its {entry['running']} requests have ended" if entry["state"] == "draining" else ""
    )
    print(f"{entry['id']} is {entry['state']}{running}")


def run_default(options: argparse.Namespace) -> None:
    """Run ``default``: switch the default model."""
    entry = remote_of(options).call("PUT", "/models/default", {"model": options.id})
    print(f"{entry['id']} is the default")


def run_compare(options: argparse.Namespace) -> int:
    """Run ``compare``: print each answer when it is complete, then a table of the measurements.

    Returns:
        1 if a variant failed, else 0.
    """
    payload = {
        "variants": [variant(text) for text in options.variant],
        "max_new_tokens": options.max_new_tokens,
        "score": not options.no_score,
        "stream": True,
        **sampled(options),
    }
    prompt = {"messages": [{"role": "user", "content": options.prompt}]} if options.chat else {"prompt": options.prompt}
    answers: list[dict[str, Any]] = []
    for event in remote_of(options).events("POST", "/models/compare", payload | prompt):
        if "answer" in event:
            answer = event["answer"]
            said = answer["error"]["message"] if answer["error"] else answer["text"]
            print(f"--- {answer['label']} ({answer['model']})\n{said.strip()}\n", flush=True)
        answers = event.get("answers", answers)
    print(table(_figures(answers)))
    return int(any(answer["error"] for answer in answers))


def variant(text: str) -> dict[str, Any]:
    """Parse a variant such as ``model=distilgpt2,temperature=0.5`` to its fields; the text is its default label.

    The service checks the values.

    Raises:
        InvalidRequest: a part is not NAME=VALUE.
    """
    fields = {"label": text[:_LABEL_CHARS]} if text else {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise InvalidRequest(f"--variant {text}: {part!r} is not NAME=VALUE", param="variants")
        fields[name.strip()] = value.strip()
    return fields


def _row(entry: dict[str, Any], now: float) -> tuple[str, ...]:
    state = entry["state"]
    if entry.get("stage"):
        share = "" if entry.get("progress") is None else f" {entry['progress']:.0%}"
        state += f" ({entry['stage']}{share})"
    elif entry.get("error"):
        state += f" ({entry['error']})"
    used = entry.get("last_used")
    return (
        entry["id"],
        state,
        _bytes(entry.get("memory_bytes")),
        "-" if used is None else f"{max(0.0, now - used):.0f} s ago",
        str(entry["requests"]),
        f"{entry['tokens_per_second']:.1f}",
        _milliseconds(entry.get("time_to_first_token_seconds")),
        ", ".join(mark for mark in ("default", "pinned") if entry[mark]),
    )


def _figures(answers: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    judges = list(dict.fromkeys(name for answer in answers for name in answer["mean_logprobs"]))
    headings = ("answer", "model", "end", "tokens", "seconds", "first token", "tok/s", "memory")
    rows = [
        (
            str(answer["label"]),
            str(answer["model"]),
            answer["error"]["code"] if answer["error"] else str(answer["finish_reason"]),
            _shown(answer["completion_tokens"], "d"),
            _shown(answer["seconds"], ".2f"),
            _milliseconds(answer["time_to_first_token_seconds"]),
            _shown(answer["tokens_per_second"], ".1f"),
            _bytes(answer["memory_bytes"]),
            *(_shown(answer["mean_logprobs"].get(name), ".3f") for name in judges),
        )
        for answer in answers
    ]
    return [(*headings, *(f"logprob by {name}" for name in judges)), *rows]


def _shown(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)


def _bytes(number: float | None) -> str:
    return f"{number / 1e6:,.0f} MB" if number else "-"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _list_names(options: argparse.Namespace) -> None:
    settings = settings_of(options)
    folder = settings.adapters_dir
    served = with_adapters(served_models(settings.model_name, settings.models, folder), folder)
    for spec in ({spec.id: spec for spec in served} | CATALOGUE).values():
        marks = ["on disk" if on_disk(spec) else "not on disk"] + (["default"] if spec == served[0] else [])
        print(f"{spec.id:<32} {spec.kind:<7} {', '.join(marks)}")
