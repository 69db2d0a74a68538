"""The audit log's chain: each line ends with a MAC over the MAC of the line before it and over itself.

``mac[n] = BLAKE2b(mac[n - 1] || line n up to its mac)``, keyed with the chain key and 32 bytes long (RFC 7693), and
``mac[0]`` is all zeros. The keys are derived from AUDIT_KEY with HKDF-SHA-256 (RFC 5869), one for each purpose. A line
is JSON in ASCII, ``seq`` first and ``mac`` last; the first line of each file, and of each start, also names the MAC
that it follows (``prev``), so that a file can be checked without the ones before it.

Whoever lacks AUDIT_KEY cannot change, add, remove, repeat or move a line without ``Checker`` finding it. What no chain
can find by itself:

* Lines missing at the end. ``FILE.head`` (``seal_head``) tells the last line of a second ago; whoever saved an older
  pair of log and head can put both back, which only a sequence number and MAC kept elsewhere show (``--expect``).
* What happened in the last second before a crash, and requests that were running then: they have no line.
* The work of somebody who holds AUDIT_KEY: all of it can be written anew, save what was anchored elsewhere.
* Requests that a service under somebody's control does not record.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from json.encoder import encode_basestring_ascii
from typing import Any, Final

ZERO: Final = bytes(32)
"""What the first record follows."""

_MARK = b',"mac":"'
_SUFFIX = len(_MARK) + 64 + len(b'"}\n')
_canonical = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode


class Broken(Exception):
    """The chain does not hold; the message says why."""


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """What AUDIT_KEY becomes: keys of 32 bytes for lines, prompt hashes and the head."""

    chain: bytes
    prompt: bytes
    head: bytes

    @classmethod
    def derive(cls, secret: str) -> AuditKeys:
        """HKDF-SHA-256 (RFC 5869) without a salt; the labels are ``warmstart audit chain`` and so on."""
        extracted = hmac.digest(ZERO, secret.encode(), "sha256")
        chain, prompt, head = (
            hmac.digest(extracted, b"warmstart audit " + label + b"\x01", "sha256")
            for label in (b"chain", b"prompt", b"head")
        )
        return cls(chain, prompt, head)


def _mac(key: bytes, data: bytes) -> blake2b:
    # Not HMAC-SHA-256: among all else that a request does, OpenSSL takes 20 us for one, and this takes 6.
    made = _keyed(key).copy()
    made.update(data)
    return made


@lru_cache(8)
def _keyed(key: bytes) -> blake2b:
    """Copied, because its key takes a third of the time."""
    return blake2b(digest_size=len(ZERO), key=key)


def seal(key: bytes, previous: bytes, body: bytes) -> tuple[bytes, bytes]:
    """A record as a line of the log.

    Args:
        key: of the chain.
        previous: MAC of the line before.
        body: the record as JSON, an object of ASCII characters that is not empty.

    Returns:
        The line, and its MAC.
    """
    body = body[:-1]
    mac = _mac(key, previous + body).digest()
    return b'%b,"mac":"%b"}\n' % (body, mac.hex().encode()), mac


def opened(key: bytes, previous: bytes, line: bytes) -> bytes | None:
    """The MAC of a line that follows ``previous``; None if it does not, or is none."""
    mac = _mac(key, previous + line[:-_SUFFIX]).digest()
    return mac if hmac.compare_digest(line[-_SUFFIX:], b'%b%b"}\n' % (_MARK, mac.hex().encode())) else None


def shown_mac(line: bytes) -> bytes:
    """The MAC that a line shows, right or not.

    Raises:
        Broken: it shows none.
    """
    try:
        return bytes.fromhex(line[-_SUFFIX:].removeprefix(_MARK)[:64].decode())
    except ValueError:
        raise Broken("this is not a record of an audit log") from None


def read(line: bytes) -> dict[str, Any]:
    """The record in a line; its ``seq`` is a number, and ``prev``, if there is one, as hexadecimal as a MAC.

    Raises:
        Broken: there is none.
    """
    try:
        record = json.loads(line)
        if type(record["seq"]) is int and len(bytes.fromhex(record.get("prev", ZERO.hex()))) == len(ZERO):
            return dict(record)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise Broken("this is not a record of an audit log")


def seal_head(key: bytes, sequence: int, mac: bytes) -> bytes:
    """The content of ``FILE.head``: the last record's number and MAC, with a MAC of its own."""
    tag = _mac(key, b"%d:%b" % (sequence, mac))
    return json.dumps({"seq": sequence, "mac": mac.hex(), "tag": tag.hexdigest()}).encode() + b"\n"


def open_head(key: bytes, content: bytes) -> tuple[int, bytes]:
    """The number and the MAC in a head.

    Raises:
        Broken: it was changed, or made with another key.
    """
    try:
        head = json.loads(content)
        sequence, mac = head["seq"], bytes.fromhex(head["mac"])
        if type(sequence) is int and hmac.compare_digest(content, seal_head(key, sequence, mac)):
            return sequence, mac
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise Broken("it was changed, or not made with this key")


def prompt_hash(key: bytes, payload: dict[str, Any]) -> str | None:
    """Tells a prompt from others and says nothing else of it: keyed BLAKE2b of its canonical JSON, in hexadecimal.

    Args:
        key: for prompt hashes.
        payload: a request; hashed are its ``prompt`` and ``messages``, as JSON in ASCII, names sorted, no blanks.

    Returns:
        None if it has neither.
    """
    prompt = payload.get("prompt")
    if prompt.__class__ is str and "messages" not in payload:  # most are; an encoder takes 8 us longer
        text = f'{{"prompt":{encode_basestring_ascii(prompt)}}}'
    elif asked := {name: payload[name] for name in ("messages", "prompt") if name in payload}:
        text = _canonical(asked)
    else:
        return None
    return _mac(key, text.encode("ascii")).hexdigest()


class Checker:
    """Follows a chain line by line.

    Args:
        key: of the chain.
        first: number that the first record must have; the ones before it are known to be elsewhere.
    """

    def __init__(self, key: bytes, first: int = 1) -> None:
        self._key = key
        self._first = first
        self.count = 0
        self.sequence = first - 1
        """Of the last record."""
        self.mac = ZERO

    def follow(self, line: bytes) -> dict[str, Any]:
        """Check the next line, with its line break, and return its record.

        Raises:
            Broken: says what is wrong here. The checker is of no more use then.
        """
        previous = self.mac
        if self.count == 0 and self._first > 1:
            previous = bytes.fromhex(read(line).get("prev", ZERO.hex()))
        mac = opened(self._key, previous, line)
        record = read(line)
        self._in_order(record["seq"])
        if mac is None:
            hint = ", or the key is not the one it was written with" if self.count == 0 else ""
            raise Broken(f"record {record['seq']} was edited or added: its MAC is wrong{hint}")
        self.count, self.sequence, self.mac = self.count + 1, record["seq"], mac
        return record

    def _in_order(self, found: int) -> None:
        expected = self.sequence + 1
        if found > expected:
            missing = f"record {expected} is" if found == expected + 1 else f"records {expected} to {found - 1} are"
            archived = f"; if they were archived, say --since {found}" if self.count == 0 else ""
            raise Broken(f"{missing} missing before record {found}: removed, or moved{archived}")
        if found < expected:
            raise Broken(f"record {found} stands where {expected} should: repeated, or moved")
