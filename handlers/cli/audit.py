"""``warmstart audit verify | hash``: verify an audit log; compute a request's ``prompt_hash`` to find it in the log."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from handlers.cli.options import settings_of
from runtime.audit.chain import AuditKeys, prompt_hash
from runtime.audit.verify import files_of, verify
from runtime.errors import InvalidRequest, SettingsError
from runtime.settings import MIN_SECRET_CHARS
from runtime.strict_json import loads


def add(commands: Any) -> None:
    """Add the ``audit`` commands to the command line's subparsers."""
    parser = commands.add_parser(
        "audit", help="Verify the audit log.", description="Verify the audit log, or compute a prompt's hash."
    )
    family = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = family.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--key-file", type=Path, help="a file with the key, instead of AUDIT_KEY")
        return added

    sub = command(
        "verify",
        run_verify,
        "Verify the audit log, and print the first record that was changed, added, removed, repeated or moved.",
    )
    sub.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="the files in their order; by default AUDIT_LOG"
    )
    sub.add_argument(
        "--since", type=int, default=1, metavar="SEQ", help="the number of the first record, if older ones are archived"
    )
    sub.add_argument(
        "--expect", action="append", default=[], metavar="SEQ:MAC", help="a record that the files must have"
    )
    command("hash", run_hash, "Print the prompt_hash of a request, whose JSON is read from standard input.")


def run_verify(options: argparse.Namespace) -> int:
    """Run ``audit verify``: print the number of intact records and the first problem.

    Returns:
        1 if there is a problem, else 0.

    Raises:
        InvalidRequest: an option is wrong, or no log file is known.
        SettingsError: the key is too short.
    """
    anchors = [_anchor(text) for text in options.expect]
    if options.since < 1:
        raise InvalidRequest(f"--since: record numbers begin with 1; {options.since} is too small", param="since")
    files = options.files
    if not files:
        path = settings_of(options).audit_log
        if path is None:
            raise InvalidRequest("there is no file to verify; name one, or set AUDIT_LOG", param="files")
        files = [path]
    report = verify(files_of(files), _keys(options), since=options.since, anchors=anchors)
    for note in report.notes:
        print(f"note: {note}")
    if report.problem is not None:
        print(f"{report.count} records are intact, the last is {report.sequence}:{report.mac}")
        print(f"warmstart: {report.problem}", file=sys.stderr)
        return 1
    print(f"ok: {report.count} records, the last is {report.sequence}:{report.mac}")
    return 0


def run_hash(options: argparse.Namespace) -> None:
    """Run ``audit hash``: print the hash that the log has in place of the prompt read from standard input.

    Raises:
        InvalidRequest: the input is not a JSON object with a prompt, messages, or other texts of a request.
    """
    payload = loads(sys.stdin.read())
    hashed = prompt_hash(_keys(options).prompt, payload) if isinstance(payload, dict) else None
    if hashed is None:
        raise InvalidRequest(
            "standard input must be a JSON object with a prompt, messages, or other texts of a request"
        )
    print(hashed)


def _anchor(text: str) -> tuple[int, str]:
    match = re.fullmatch(r"([0-9]{1,18}):([0-9A-Fa-f]{64})", text, re.ASCII)
    if match is None:
        raise InvalidRequest(f"--expect: {text[:100]!r} is not SEQ:MAC, as warmstart audit verify prints it")
    return int(match[1]), match[2]


def _keys(options: argparse.Namespace) -> AuditKeys:
    if options.key_file is not None:
        name, secret = "--key-file", options.key_file.read_text("utf-8").strip()
    else:
        name, secret = "AUDIT_KEY", settings_of(options).audit_key.get_secret_value()
    if len(secret) < MIN_SECRET_CHARS:
        raise SettingsError(f"{name}: the key must have at least {MIN_SECRET_CHARS} characters")
    return AuditKeys.derive(secret)
