"""What tests of the audit log share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runtime.audit.chain import AuditKeys
from runtime.audit.log import AuditLog
from runtime.audit.verify import VerifyResult, files_of, verify

SECRET = "a secret of at least thirty-two characters"
KEYS = AuditKeys.derive(SECRET)


def opened(path: Path, max_bytes: int = 10**9, **options: Any) -> AuditLog:
    """A log that takes records."""
    log = AuditLog(path, KEYS, max_bytes, **options)
    log.open()
    return log


def written(path: Path, count: int = 3, **options: Any) -> None:
    """A whole run of a service: start, some requests, stop."""
    log = opened(path, **options)
    for number in range(count):
        assert log.write("request", {"number": number})
    log.close()


def records(path: Path) -> list[dict[str, Any]]:
    """All records of one file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def check(path: Path, **options: Any) -> VerifyResult:
    """The log and its predecessors, checked."""
    return verify(files_of([path]), KEYS, **options)
