"""``warmstart keys create | list | revoke``: manage API keys and signing keys."""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from handlers.cli.options import settings_of
from handlers.cli.output import table
from handlers.operations import SCOPES
from runtime.errors import InvalidRequest, SettingsError
from runtime.keys.file import edit, read
from runtime.keys.records import KeyRecord, digest, new_id, new_key, new_secret, parse_records
from runtime.types import Caller

_UNITS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LAST_YEAR = 9999


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``keys`` commands to the command line's subparsers."""
    text = "Create, list and revoke API keys."
    family = commands.add_parser("keys", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = family.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--file", type=Path, help="the file of keys, instead of API_KEYS_FILE")
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    sub = command("create", run_create, "Create a key, print it once, and store its record.")
    sub.add_argument("--name", required=True, help="the key's name for people; several keys may have the same name")
    sub.add_argument(
        "--scopes", default="*", help=f"what the key may call, separated by commas: {', '.join(sorted(SCOPES))}"
    )
    sub.add_argument(
        "--expires",
        type=expiry,
        help="when the key expires: in 90d, 12h, 30m or 2w, or on 2027-01-01 (UTC); by default never",
    )
    sub.add_argument("--requests-per-minute", type=int, metavar="N", help="the key's own rate limit; 0 for no limit")
    sub.add_argument("--tokens-per-minute", type=int, metavar="N", help="the key's own token limit; 0 for no limit")
    sub.add_argument("--signing", action="store_true", help="create a key for RFC 9421 signatures instead")
    command("list", run_list, "List the keys that the service accepts, without their secrets.")
    command("revoke", run_revoke, "Revoke a key. A running service refuses it within a second.").add_argument(
        "id", help="the key's id, or its name if no other key has the same name"
    )


def run_create(options: argparse.Namespace) -> None:
    """Run ``create``: print a new key, and add its record to the keys file, or print the record if there is no file."""
    path = _file(options)
    record, shown = _new_record(options)
    if path is not None:
        _edit(path, lambda records: [*records, record])
    about = {"id": record.caller.id, "secret" if options.signing else "key": shown}
    if options.json:
        print(json.dumps(about | ({} if path else {"record": json.loads(record.line())})))
        return
    print(shown, flush=True)  # before the line on stderr also where both go to one file
    kind = "signing key" if options.signing else "API key"
    prefix = "its record is below, for API_KEYS" if path is None else f"its record is in {path}"
    print(f"{kind} {record.caller.id}, shown this once; {prefix}", file=sys.stderr)
    if path is None:
        print(record.line())


def run_list(options: argparse.Namespace) -> None:
    """Run ``list``: print the keys of ``--file``, or without it those of API_KEYS and API_KEYS_FILE."""
    now = time.time()
    rows = [_row(record, now) for record in _all(options)]
    if options.json:
        print(json.dumps(rows))
        return
    headings = ("id", "name", "kind", "scopes", "created", "expires", "state")
    shown = [
        (
            row["id"],
            row["name"],
            row["kind"],
            ",".join(row["scopes"]),
            _date(row["created"]),
            "never" if row["expires"] is None else _date(row["expires"]),
            row["state"],
        )
        for row in rows
    ]
    print(table([headings, *shown]))


def run_revoke(options: argparse.Namespace) -> None:
    """Run ``revoke``: remove a key's record from the keys file.

    Raises:
        InvalidRequest: there is no keys file, it has no such key, or several keys have that name.
    """
    path = _file(options)
    if path is None:
        raise InvalidRequest(
            "there is no file of keys; set API_KEYS_FILE or --file, or remove the record from API_KEYS"
        )
    revoked: list[KeyRecord] = []

    def without(records: list[KeyRecord]) -> list[KeyRecord]:
        matching = [record for record in records if record.caller.id == options.id]
        matching = matching or [record for record in records if record.caller.name == options.id]
        if not matching:
            raise InvalidRequest(f"{path} has no key {options.id!r}")
        if len(matching) > 1:
            ids = ", ".join(record.caller.id for record in matching)
            raise InvalidRequest(f"several keys have the name {options.id!r}; revoke one by its id: {ids}")
        revoked[:] = matching
        return [record for record in records if record not in matching]

    _edit(path, without)
    about = {"id": revoked[0].caller.id, "name": revoked[0].caller.name}
    print(json.dumps(about | {"state": "revoked"}) if options.json else f"{about['id']} ({about['name']}) is revoked")


def expiry(text: str) -> int:
    """Parse an expiry to Unix time in seconds: a span from now (``90d``), or an ISO 8601 date or time, UTC by default.

    Raises:
        argparse.ArgumentTypeError: the text is neither, or the time is past or not before the year 9999.
    """
    now = time.time()
    if span := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
        at = now + int(span[1]) * _UNITS[span[2]]
    else:
        try:
            given = datetime.fromisoformat(text)
            at = (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a duration like 90d nor a date like 2027-01-01"
            ) from None
    if not now < at < datetime(_LAST_YEAR, 1, 1, tzinfo=UTC).timestamp():
        raise argparse.ArgumentTypeError(f"{text!r} is not in the future, or after the year 9998")
    return int(at)


def _new_record(options: argparse.Namespace) -> tuple[KeyRecord, str]:
    """Create a key; return its record and the part shown once: the API key, or the signing key's secret in base64."""
    caller = Caller(
        new_id(),
        options.name,
        frozenset(options.scopes.replace(",", " ").split()),
        options.requests_per_minute,
        options.tokens_per_minute,
    )
    created = int(time.time())
    if options.signing:
        secret = new_secret()
        record, shown = KeyRecord(caller, created, options.expires, secret=secret), base64.b64encode(secret).decode()
    else:
        shown = new_key()
        record = KeyRecord(caller, created, options.expires, digest(shown))
    try:
        parse_records(record.line(), SCOPES)  # refuse here what the service would refuse
    except ValueError as error:
        raise InvalidRequest(str(error).removeprefix("record 1: ")) from None
    return record, shown


def _file(options: argparse.Namespace) -> Path | None:
    path: Path | None = options.file or settings_of(options).api_keys_file
    return path


def _edit(path: Path, change: Any) -> None:
    try:
        edit(path, change)
    except ValueError as error:
        raise InvalidRequest(f"the file was not changed: {error}") from None


def _all(options: argparse.Namespace) -> list[KeyRecord]:
    try:
        if options.file is not None:
            return read(options.file)
        settings = settings_of(options)
        own = parse_records(settings.api_keys.get_secret_value())
        return own + (read(settings.api_keys_file) if settings.api_keys_file else [])
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _row(record: KeyRecord, now: float) -> dict[str, Any]:
    return {
        "id": record.caller.id,
        "name": record.caller.name,
        "kind": "signing" if record.secret else "bearer",
        "scopes": sorted(record.caller.scopes),
        "created": record.created,
        "expires": record.expires,
        "state": "expired" if record.expired(now) else "valid",
        "requests_per_minute": record.caller.requests_per_minute,
        "tokens_per_minute": record.caller.tokens_per_minute,
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
