"""``warmstart batch run | wait | ls | cancel``: run files of requests on a service, behind its interactive requests."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from handlers.cli.output import table
from handlers.cli.remote import Remote
from handlers.cli.service_options import add_service, remote_of
from runtime.batch_types import ENDED_STATES
from runtime.errors import InvalidRequest

_POLL_SECONDS = 1.0
_LINE_SECONDS = 60.0
_PAGE = 100  # batches of one call
_MAX_LINE_BYTES = 1 << 20  # of the first row, to find its endpoint


def add(commands: Any) -> None:
    """Add the ``batch`` commands to the command line's subparsers."""
    text = "Run files of requests on a service with FILES_DIR, behind its interactive requests."
    parser = commands.add_parser("batch", help=text, description=text)
    add_service(parser)
    family = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = family.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        add_service(added, child=True)
        return added

    sub = command("run", run_run, "Upload a file of requests, run it as a batch, and write the answers.")
    sub.add_argument("file", type=Path, help="JSON lines with custom_id, method, url and body")
    sub.add_argument("--endpoint", metavar="PATH", help="the path of all requests, by default the first line's url")
    sub.add_argument("--window", default="24h", help="the time after which the rest is given up: 1m to 30d (24h)")
    sub.add_argument("--no-wait", action="store_true", help="print the batch's id instead of waiting for its end")
    _add_outputs(sub, "FILE")
    sub = command("wait", run_wait, "Wait for the end of a batch, and write the answers.")
    sub.add_argument("id", help="the batch's id")
    _add_outputs(sub, "ID")
    command("ls", run_ls, "List your batches, the newest first.")
    command("cancel", run_cancel, "Cancel a batch; rows that are answered are kept.").add_argument(
        "id", help="the batch's id"
    )


def _add_outputs(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("--output", type=Path, help=f"file for the answers, by default {name}.output.jsonl")
    parser.add_argument("--errors", type=Path, help=f"file for the errors, by default {name}.errors.jsonl")


def run_run(options: argparse.Namespace) -> int:
    """Run ``run``: upload the file, create the batch, wait for its end, and write both files.

    Returns:
        As ``run_wait``; 0 with ``--no-wait``.

    Raises:
        InvalidRequest: the first line names no endpoint, and the options neither.
        ServiceError: the service refuses the file or the batch.
    """
    path: Path = options.file
    endpoint = options.endpoint or _endpoint(path)
    remote = remote_of(options)
    file = remote.upload("/v1/files", {"purpose": "batch"}, path)
    request = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": options.window}
    batch = remote.call("POST", "/v1/batches", request)
    if options.no_wait:
        print(batch["id"])
        return 0
    return _finish(remote, batch, options, path.with_suffix(""))


def run_wait(options: argparse.Namespace) -> int:
    """Run ``wait``: show the progress of a batch until it has ended, and write both files.

    Returns:
        0 if every row was answered, else 1.
    """
    remote = remote_of(options)
    batch = remote.call("GET", _path(options.id))
    return _finish(remote, batch, options, Path(batch["id"]))


def run_ls(options: argparse.Namespace) -> None:
    """Run ``ls``: list the caller's batches."""
    remote = remote_of(options)
    rows: list[tuple[str, ...]] = [("batch", "status", "rows", "answered", "failed", "endpoint", "created")]
    after = ""
    while True:
        page = remote.call("GET", f"/v1/batches?limit={_PAGE}{after}")
        rows += map(_row, page["data"])
        if not page["has_more"]:
            break
        after = f"&after={quote(page['last_id'])}"
    print(table(rows))


def run_cancel(options: argparse.Namespace) -> None:
    """Run ``cancel``: cancel a batch, and print its state."""
    batch = remote_of(options).call("POST", f"{_path(options.id)}/cancel")
    print(f"{batch['id']} is {batch['status']}")


def _finish(remote: Remote, batch: dict[str, Any], options: argparse.Namespace, name: Path) -> int:
    batch = _wait(remote, batch)
    for key, kind in (("output_file_id", "output"), ("error_file_id", "errors")):
        path: Path = getattr(options, kind) or name.with_name(f"{name.name}.{kind}.jsonl")
        if batch[key] is None:
            path.write_bytes(b"")  # not that of an earlier run
        else:
            remote.download(f"/v1/files/{quote(batch[key])}/content", path)
    for error in (batch["errors"] or {"data": []})["data"]:
        place = "" if error["line"] is None else f"line {error['line']}: "
        print(f"warmstart: {place}{error['message']}", file=sys.stderr)
    return int(batch["status"] != "completed" or batch["request_counts"]["failed"] > 0)


def _wait(remote: Remote, batch: dict[str, Any]) -> dict[str, Any]:
    """Show the progress of a batch until it has ended; a service that restarts meanwhile is waited for."""
    shown = _Progress()
    try:
        while batch["status"] not in ENDED_STATES:
            shown.show(batch["status"], _progress(batch))
            time.sleep(_POLL_SECONDS)
            try:
                batch = remote.call("GET", _path(batch["id"]))
            except ConnectionError as error:
                shown.show("away", f"{batch['id']}: {error}; trying again")
        shown.show(batch["status"], _progress(batch))
    except KeyboardInterrupt:
        shown.end()
        print(f"warmstart: the batch goes on: warmstart batch wait {batch['id']}", file=sys.stderr)
        raise
    shown.end()
    return batch


class _Progress:
    """Shows the progress on standard error: in one line of a terminal; elsewhere each state, and a line a minute."""

    def __init__(self) -> None:
        self._state = self._text = ""
        self._shown_at = 0.0

    def show(self, state: str, text: str) -> None:
        """Show a text about a state."""
        if sys.stderr.isatty():
            print(f"\r{text:<{len(self._text)}}", end="", file=sys.stderr, flush=True)
        elif state != self._state or time.monotonic() >= self._shown_at + _LINE_SECONDS:
            print(text, file=sys.stderr, flush=True)
            self._shown_at = time.monotonic()
        self._state, self._text = state, text

    def end(self) -> None:
        """End the line of a terminal."""
        if self._text and sys.stderr.isatty():
            print(file=sys.stderr)


def _progress(batch: dict[str, Any]) -> str:
    counts = batch["request_counts"]
    rows = (
        f", {counts['completed']} of {counts['total']} answered, {counts['failed']} failed" if counts["total"] else ""
    )
    return f"{batch['id']} is {batch['status']}{rows}"


def _row(batch: dict[str, Any]) -> tuple[str, ...]:
    counts = batch["request_counts"]
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch["created_at"]))
    numbers = (str(counts[name]) for name in ("total", "completed", "failed"))
    return (batch["id"], batch["status"], *numbers, batch["endpoint"], created)


def _endpoint(path: Path) -> str:
    """Return the ``url`` of a file's first line.

    Raises:
        InvalidRequest: it has none.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        line = file.readline(_MAX_LINE_BYTES)
    try:
        url = json.loads(line)["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if not isinstance(url, str):
        raise InvalidRequest(f"the first line of {path} has no url; give --endpoint", param="endpoint")
    return url


def _path(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"
