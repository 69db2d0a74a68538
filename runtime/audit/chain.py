"""The MAC chain of the audit log: each line ends with a MAC over the previous line's MAC and the line itself.

``mac[n] = BLAKE2b(mac[n - 1] || line n up to its mac)``, keyed with the chain key and 32 bytes long (RFC 7693), and
``mac[0]`` is all zeros. The keys are derived from AUDIT_KEY with HKDF-SHA-256 (RFC 5869), one for each purpose. A line
is JSON in ASCII, ``seq`` first and ``mac`` last; the first line of each file, and of each start, also contains the MAC
of the previous line (``prev``), so that a file can be verified without the ones before it.

Without AUDIT_KEY nobody can change, add, remove, repeat or move a line without ``Checker`` detecting it. A chain alone
cannot detect:

* Lines missing at the end. ``FILE.head`` (``seal_head``) stores the last line as of a second ago. An attacker who saved
  an older pair of log and head can restore both, which only a sequence number and MAC stored elsewhere reveal
  (``--expect``).
* Events of the last second before a crash, and requests that were running then: they have no line.
* Changes by somebody who has AUDIT_KEY: the whole log can be rewritten, except for anchors stored elsewhere.
* Requests that a compromised service does not record.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Any, Final

ZERO: Final = bytes(32)
"""The MAC before the first record."""

_TEXTS = ("documents", "input", "messages", "prompt", "queries", "query", "text_1", "text_2")
_MAX_MODEL_CHARS = 512
_MARK = b',"mac":"'
_SUFFIX = len(_MARK) + 64 + len(b'"}\n')
_canonical = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


class BrokenChain(Exception):
    """The chain is broken; the message says why."""


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """The keys derived from AUDIT_KEY, 32 bytes each: for lines, for prompt hashes and for the head file."""

    chain: bytes
    prompt: bytes
    head: bytes

    @classmethod
    def derive(cls, secret: str) -> AuditKeys:
        """Derive the keys with HKDF-SHA-256 (RFC 5869) without a salt; labels: ``warmstart audit chain`` and so on."""
        extracted = hmac.digest(ZERO, secret.encode(), "sha256")
        chain, prompt, head = (
            hmac.digest(extracted, b"warmstart audit " + label + b"\x01", "sha256")
            for label in (b"chain", b"prompt", b"head")
        )
        return cls(chain, prompt, head)


def _mac(key: bytes, data: bytes) -> blake2b:
    # Not HMAC-SHA-256: within a request, OpenSSL takes 20 us for one, and this takes 6.
    made = _keyed(key).copy()
    made.update(data)
    return made


@lru_cache(8)
def _keyed(key: bytes) -> blake2b:
    """Return a keyed BLAKE2b to copy for each MAC, because keying takes a third of the time."""
    return blake2b(digest_size=len(ZERO), key=key)


def seal(key: bytes, previous: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Turn a record into a line of the log.

    Args:
        key: the chain key.
        previous: the MAC of the previous line.
        body: the record as a JSON object in ASCII with at least one member.

    Returns:
        The line with its line break, and its MAC.
    """
    body = body[:-1]
    mac = _mac(key, previous + body).digest()
    return b'%b,"mac":"%b"}\n' % (body, mac.hex().encode()), mac


def verify_line(key: bytes, previous: bytes, line: bytes) -> bytes | None:
    """Verify a line, and return its MAC; None if its MAC is wrong.

    Args:
        key: the chain key.
        previous: the MAC of the previous line.
        line: the line with its line break.
    """
    mac = _mac(key, previous + line[:-_SUFFIX]).digest()
    return mac if hmac.compare_digest(line[-_SUFFIX:], b'%b%b"}\n' % (_MARK, mac.hex().encode())) else None


def unverified_mac(line: bytes) -> bytes:
    """Return the MAC in a line without verifying it.

    Raises:
        BrokenChain: the line has no MAC.
    """
    try:
        return bytes.fromhex(line[-_SUFFIX:].removeprefix(_MARK)[:64].decode())
    except ValueError:
        raise BrokenChain("this is not a record of an audit log") from None


def read(line: bytes) -> dict[str, Any]:
    """Parse a line into its record, and check that ``seq`` is an integer and ``prev``, if present, a hexadecimal MAC.

    Raises:
        BrokenChain: the line is not a valid record.
    """
    try:
        record = json.loads(line)
        if type(record["seq"]) is int and len(bytes.fromhex(record.get("prev", ZERO.hex()))) == len(ZERO):
            return dict(record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise BrokenChain("this is not a record of an audit log")


def seal_head(key: bytes, sequence: int, mac: bytes) -> bytes:
    """Return the content of ``FILE.head``: the last record's sequence number and MAC, authenticated by another MAC.

    Args:
        key: the head key.
        sequence: the last record's sequence number.
        mac: the last record's MAC.
    """
    tag = _mac(key, b"%d:%b" % (sequence, mac))
    return json.dumps({"seq": sequence, "mac": mac.hex(), "tag": tag.hexdigest()}).encode() + b"\n"


def open_head(key: bytes, content: bytes) -> tuple[int, bytes]:
    """Verify the content of ``FILE.head``, and return its sequence number and MAC.

    Raises:
        BrokenChain: the content was changed, or made with another key.
    """
    try:
        head = json.loads(content)
        sequence, mac = head["seq"], bytes.fromhex(head["mac"])
        if type(sequence) is int and hmac.compare_digest(content, seal_head(key, sequence, mac)):
            return sequence, mac
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise BrokenChain("it was changed, or written with another key")


def shown_model(payload: Mapping[str, Any]) -> str | None:
    """Return the model that a request names, as records show it: callers choose the length of the name."""
    model = payload.get("model")
    return model[:_MAX_MODEL_CHARS] if isinstance(model, str) else None


def prompt_hash(key: bytes, payload: dict[str, Any]) -> str | None:
    """Return the keyed BLAKE2b of a prompt's canonical JSON in hexadecimal, which does not reveal the prompt.

    Args:
        key: the key for prompt hashes.
        payload: the request; of its fields those that hold texts (``_TEXTS``) are hashed, as ASCII JSON with sorted
            names and no blanks.

    Returns:
        None if the request has none of them.
    """
    prompt = payload.get("prompt")
    if prompt.__class__ is str and "messages" not in payload:  # the usual case; an encoder takes 8 us longer
        text = f'{{"prompt":{encode_basestring_ascii(prompt)}}}'
    elif asked := {name: payload[name] for name in _TEXTS if name in payload}:
        text = _canonical(asked)
    else:
        return None
    return _mac(key, text.encode("ascii")).hexdigest()


class Checker:
    """Verifies a chain line by line.

    Args:
        key: the chain key.
        first: the sequence number that the first record must have; earlier records are stored elsewhere.
    """

    def __init__(self, key: bytes, first: int = 1) -> None:
        self._key = key
        self._first = first
        self.count = 0
        self.sequence = first - 1
        """The last record's sequence number."""
        self.mac = ZERO

    def follow(self, line: bytes) -> dict[str, Any]:
        """Verify the next line, with its line break, and return its record.

        Raises:
            BrokenChain: the line is invalid; the message says why. The checker cannot be used any further.
        """
        previous = self.mac
        if self.count == 0 and self._first > 1:
            previous = bytes.fromhex(read(line).get("prev", ZERO.hex()))
        mac = verify_line(self._key, previous, line)
        record = read(line)
        self._check_sequence(record["seq"])
        if mac is None:
            hint = ", or the key is not the one it was written with" if self.count == 0 else ""
            raise BrokenChain(f"record {record['seq']} was edited or added: its MAC is wrong{hint}")
        self.count, self.sequence, self.mac = self.count + 1, record["seq"], mac
        return record

    def _check_sequence(self, number: int) -> None:
        expected = self.sequence + 1
        if number > expected:
            missing = f"record {expected} is" if number == expected + 1 else f"records {expected} to {number - 1} are"
            archived = f"; if they were archived, use --since {number}" if self.count == 0 else ""
            raise BrokenChain(f"{missing} missing before record {number}: removed, or moved{archived}")
        if number < expected:
            raise BrokenChain(f"record {number} is in the place of record {expected}: repeated, or moved")
