"""Looks up valid keys, from the setting API_KEYS and from a file that is reloaded when it changes."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Set
from pathlib import Path

from runtime.errors import SettingsError
from runtime.keys.records import MAX_FILE_BYTES, KeyRecord, check_distinct, digest, parse_records, well_formed
from runtime.types import Caller

_log = logging.getLogger("warmstart.keys")

_CHECK_SECONDS = 1.0  # between two checks of the file: a revoked key stays valid for so long at most


class KeyRing:
    """The valid keys of the service. For use from one event loop.

    A lookup checks the file for changes, at most once a second. If the file is invalid, half-written or missing, the
    keys stay as they were, and each such change logs one line. An empty file is valid and holds no key.

    Args:
        text: the setting API_KEYS: records as ``runtime.keys.records.parse_records`` reads them.
        path: a file of more records; None for none.
        clock: Unix time in seconds.
        scopes: all scopes that records may have; if empty, every name is accepted.

    Raises:
        SettingsError: a record is invalid, or the file cannot be read.
    """

    def __init__(
        self,
        text: str,
        path: Path | None,
        clock: Callable[[], float] = time.time,
        *,
        scopes: Collection[str] = (),
    ) -> None:
        self._path = path
        self.on_change: Callable[[Set[str], Set[str]], None] = lambda new, gone: None
        """Called with the ids of added and of removed keys whenever the file was reloaded."""
        self._clock = clock
        self._scopes = scopes
        self._seen: object = None
        self._warned = False
        # Stands for every unknown key, so that its lookup takes the same path. No key has this digest.
        self._unknown_key = KeyRecord(Caller("", "", frozenset()), 0, None, secrets.token_bytes(32))
        try:
            self._setting_records = parse_records(text, scopes)
        except ValueError as error:
            raise SettingsError(f"API_KEYS: {error}") from None
        self._checked_at = clock()
        try:
            self._set_records([] if path is None else self._read(path))
        except (OSError, ValueError) as error:
            raise SettingsError(f"API_KEYS_FILE: {error}") from None
        if not self._bearers and not self._signers:
            _log.warning("there is no API key yet, so all requests are refused; create one with warmstart keys create")

    def bearer(self, key: str) -> Caller | None:
        """Return the caller that an API key authenticates; None if the key is invalid.

        The lookup is by SHA-256, of which not even the first bytes can be chosen without trying keys: its duration
        reveals nothing about the existing keys.
        """
        now = self._check_file()
        key_digest = digest(key)
        record = self._bearers.get(key_digest, self._unknown_key)
        if not hmac.compare_digest(record.digest, key_digest) or record.expired(now):
            return None
        return record.caller

    def signing(self, key_id: str) -> tuple[Caller, bytes] | None:
        """Return the caller and the secret of a signing key; None if the key is unknown or expired."""
        now = self._check_file()
        record = self._signers.get(key_id)
        return None if record is None or record.expired(now) else (record.caller, record.secret)

    def invalid_reason(self, key: str) -> str:
        """Return why an API key is invalid, for the log; never send it to the client."""
        record = self._bearers.get(digest(key))
        if record is not None:
            return f"expired key {record.caller.id}"
        return "unknown key" if well_formed(key) else "malformed key"

    def _check_file(self) -> float:
        now = self._clock()
        if (
            self._path is not None and not 0 <= now - self._checked_at < _CHECK_SECONDS
        ):  # negative if the clock was set back
            self._checked_at = now
            self._reload(self._path)
        return now

    def _reload(self, path: Path) -> None:
        try:
            seen: object = _version(os.stat(path))
        except OSError as error:
            seen = error.errno
        if seen == self._seen:
            return
        self._seen = seen
        before = self._ids()
        try:
            self._set_records(self._read(path))
        except (OSError, ValueError) as error:
            _log.error("API_KEYS_FILE: %s; the keys read before stay valid", error)
        else:
            _log.info("API_KEYS_FILE: reloaded, %d keys", len(self._bearers) + len(self._signers))
            self.on_change(self._ids() - before, before - self._ids())

    def _read(self, path: Path) -> list[KeyRecord]:
        """Read the file's records, and note its version even if they are invalid."""
        # O_NONBLOCK, because opening a pipe would block for ever.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            self._seen = _version(status)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{path} is not a regular file")
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
        if status.st_mode & 0o077 and not self._warned:
            self._warned = True
            _log.warning("API_KEYS_FILE: other users may read or write %s; run chmod 600", path)
        try:
            return parse_records(data.decode(), self._scopes)
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def _ids(self) -> set[str]:
        return {record.caller.id for record in (*self._bearers.values(), *self._signers.values())}

    def _set_records(self, others: list[KeyRecord]) -> None:
        records = [*self._setting_records, *others]
        check_distinct(records)
        self._bearers = {record.digest: record for record in records if record.digest}
        self._signers = {record.caller.id: record for record in records if record.secret}


def _version(status: os.stat_result) -> tuple[int, ...]:
    """Return a value that differs whenever a file's content may; the change time also detects a fixed mode."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
