"""Verifies an audit log: its files in order, line by line, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.audit.chain import AuditKeys, BrokenChain, Checker, open_head
from runtime.audit.files import predecessors

_MAX_LINE_BYTES = 1_048_576


@dataclass(slots=True)
class VerifyResult:
    """The result of a verification.

    Args:
        count: the number of valid records, up to the first invalid one.
        sequence: the sequence number of the last valid record.
        mac: the MAC of that record in hexadecimal; both together are an anchor to store elsewhere.
        problem: the first problem and its position; None if there is none.
        notes: notes on events that are not tampering: crashes, outages, starts.
    """

    count: int = 0
    sequence: int = 0
    mac: str = ""
    problem: str | None = None
    notes: list[str] = field(default_factory=list)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Return each log after the files that it was rotated into, without duplicates."""
    return list(dict.fromkeys(file for path in paths for file in (*predecessors(path), path)))


def verify(
    files: Sequence[Path], keys: AuditKeys, *, since: int = 1, anchors: Sequence[tuple[int, str]] = ()
) -> VerifyResult:
    """Verify the chain across files, and that it reaches the record in the last file's head.

    Args:
        files: the files in order, as ``files_of`` returns them.
        keys: the keys derived from AUDIT_KEY.
        since: the sequence number of the first record; earlier records are stored elsewhere.
        anchors: sequence numbers and hexadecimal MACs of records that must be in the files.

    Raises:
        OSError: a file cannot be read.
    """
    report = VerifyResult()
    checker = Checker(keys.chain, since)
    wanted: dict[int, list[tuple[str, str]]] = {}
    for sequence, mac in anchors:
        wanted.setdefault(sequence, []).append((mac.lower(), "--expect"))
    try:
        if head := _head(files[-1], keys, report):  # read first, because a service may be writing meanwhile
            wanted.setdefault(head[0], []).append((head[1].hex(), f"{files[-1]}.head"))
        stopped = True
        for file in files:
            number = 0
            for number, line in enumerate(_lines(file), 1):
                if not line.endswith(b"\n") and file == files[-1] and not stopped:
                    report.notes.append(
                        f"{file}: the last record is incomplete: the service crashed, or is writing it now"
                    )
                    break
                try:
                    record = checker.follow(line)
                    for mac, source in wanted.pop(checker.sequence, ()):
                        if checker.mac.hex() != mac:
                            raise BrokenChain(f"record {checker.sequence} does not have the MAC that {source} names")
                except BrokenChain as error:
                    raise BrokenChain(f"{file}:{number}: {error}") from None
                stopped = _note(record, f"{file}:{number}", stopped, report)
            if number == 0 and len(files) > 1:
                report.notes.append(f"{file} is empty")
        _check_end(wanted, checker)
        if checker.count and not stopped:
            report.notes.append("there is no stop record at the end: the service is running, or it was killed")
    except BrokenChain as error:
        report.problem = str(error)
    report.count, report.sequence, report.mac = checker.count, checker.sequence, checker.mac.hex()
    return report


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while line := stream.readline(_MAX_LINE_BYTES):
            yield line


def _head(file: Path, keys: AuditKeys, report: VerifyResult) -> tuple[int, bytes] | None:
    head = Path(f"{file}.head")
    try:
        return open_head(keys.head, head.read_bytes())
    except FileNotFoundError:
        report.notes.append(f"{head} is missing, so that removed last records cannot be detected; see --expect")
    except BrokenChain as error:
        raise BrokenChain(f"{head}: {error}") from None
    return None


def _check_end(wanted: dict[int, list[tuple[str, str]]], checker: Checker) -> None:
    """Raise Broken if a record that must be there was not reached."""
    if not wanted:
        return
    sequence = max(wanted)
    source = wanted[sequence][0][1]
    if sequence > checker.sequence:
        first = checker.sequence + 1
        missing = f"record {first} is" if first == sequence else f"records {first} to {sequence} are"
        raise BrokenChain(f"{missing} missing at the end, although {source} names record {sequence}")
    raise BrokenChain(f"record {sequence}, which {source} names, is not in these files")


def _note(record: dict[str, Any], place: str, stopped: bool, report: VerifyResult) -> bool:
    """Add notes on a record about the log itself; return whether the service has stopped as of this record."""
    event = record.get("event")
    if lost := record.get("lost"):
        report.notes.append(f"{place}: {lost} records before this one could not be written")
    if event == "start":
        if not stopped:
            report.notes.append(f"{place}: the service ended without a stop record before this start")
        if cut := record.get("cut_bytes"):
            report.notes.append(f"{place}: at this start {cut} bytes of an incomplete record were moved to .cut")
        if head := record.get("head"):
            report.notes.append(f"{place}: at this start the .head file was {head}")
    elif event == "disturbed":
        report.notes.append(f"{place}: the file was {record.get('what')} by another process while the service ran")
    return stopped if event == "rotated" else event == "stop"  # rotation may precede the start record
