"""Which replica has most of a request's prompt in its prefix cache: keys of prompts, and who has computed which.

A prompt's keys are hashes of its beginnings, one for every block of characters, each over all the blocks before it. So
two prompts share as many keys as they share blocks at their beginning. Replicas keep keys and values of prompts that
they have computed, and a router that remembers which keys it has sent where finds the replica that must compute least.

Neither the tokens nor the chat template are known here: texts that share a beginning share its tokens, which is all
that is needed. Source of the method: SGLang's cache-aware load balancing and vLLM's prefix caching (a hash for each
block of tokens, chained).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BLOCK_CHARS = 64
"""Characters of a block: about 16 tokens of English text, the engine's own block."""

MAX_BLOCKS = 1024
"""The blocks of a prompt that are looked at, which are 64 KiB of text."""

BLOCKS_PER_REQUEST = 4
"""Blocks that a replica must have more of the prompt to be preferred in spite of one more request that it has.

So a short beginning that all prompts share does not bring all of them to one replica, and a long conversation stays.
"""

_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Affinity:
    """What a request says about the replica that should get it.

    Args:
        session: the session's name, "" without one: the header ``x-session-id`` or the field ``prompt_cache_key``.
        keys: the keys of its prompt, from the shortest beginning to the longest.
    """

    session: str = ""
    keys: tuple[bytes, ...] = ()


def affinity_of(headers: Iterable[tuple[bytes, bytes]], body: bytes, session_header: bytes) -> Affinity:
    """Return a request's affinity. A body that is not a JSON object has none; the application refuses it.

    Args:
        headers: the request's header fields, names in lower case.
        body: the request's body.
        session_header: the name of the header with the session, in lower case.
    """
    session = next((value.decode("latin-1") for name, value in headers if name == session_header), "")
    try:
        payload = json.loads(body) if body else None
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict):
        return Affinity(session)
    if not session and isinstance(named := payload.get("prompt_cache_key"), str):
        session = named
    return Affinity(session, prompt_keys(str(payload.get("model") or ""), prompt_text(payload)))


def prompt_text(payload: Mapping[str, Any]) -> str:
    """Return the text that stands for a payload's prompt: equal beginnings of it are equal beginnings of the prompt.

    Tools and instructions come first, as in chat templates; messages are separated by a character that no text has.
    """
    parts: list[str] = []
    for name in ("tools", "system", "instructions", "prompt", "messages", "input"):
        value = payload.get(name)
        if value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        parts.extend(entry if isinstance(entry, str) else _compact(entry) for entry in entries)
    return "\0".join(parts)


def _compact(value: Any) -> str:
    if isinstance(value, dict) and isinstance(value.get("content"), str) and len(value) == 2:
        return f"{value.get('role')}\1{value['content']}"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def prompt_keys(model: str, text: str) -> tuple[bytes, ...]:
    """Return the keys of a prompt, one for each whole block of it.

    Args:
        model: the model's name: another model shares nothing.
        text: the prompt.
    """
    keys = []
    key = hashlib.blake2b(model.encode(errors="replace"), digest_size=_DIGEST_BYTES).digest()
    for end in range(BLOCK_CHARS, min(len(text), MAX_BLOCKS * BLOCK_CHARS) + 1, BLOCK_CHARS):
        block = text[end - BLOCK_CHARS : end].encode(errors="replace")
        key = hashlib.blake2b(key + block, digest_size=_DIGEST_BYTES).digest()
        keys.append(key)
    return tuple(keys)


class PrefixTable:
    """Remembers which replicas have got which keys, and orders replicas for a request.

    Args:
        slack: how many more requests than the least loaded replica a replica may have and still be preferred.
        capacity: the number of keys that are remembered; the least recently used are forgotten first.
    """

    def __init__(self, slack: int = 8, capacity: int = 100_000) -> None:
        self._slack, self._capacity = slack, capacity
        self._replicas: OrderedDict[bytes, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def order(self, affinity: Affinity, loads: Mapping[str, int]) -> list[str]:
        """Return the replicas, the one that should get the request first.

        A session's replica comes first (rendezvous hashing: a replica more or less moves only the sessions that it
        gets or had), else the one that has got the longest beginning of the prompt, ``BLOCKS_PER_REQUEST`` less for
        each request that it has more than the least loaded one. Either only with at most ``slack`` requests more. The
        others follow by their load.

        Args:
            affinity: the request's affinity.
            loads: the requests that each replica has now.
        """
        if not loads:
            return []
        limit = min(loads.values()) + self._slack
        seed = affinity.session or (affinity.keys[0].hex() if affinity.keys else "")
        ranked = sorted(loads, key=lambda replica: (loads[replica], _weight(seed, replica)))
        preferred = None
        if affinity.session:
            preferred = min(loads, key=lambda replica: _weight(affinity.session, replica))
            if loads[preferred] > limit:
                preferred = None
        if preferred is None:
            matched = self._matched(affinity.keys, [replica for replica in ranked if loads[replica] <= limit])
            worth = {name: blocks - BLOCKS_PER_REQUEST * loads[name] for name, blocks in matched.items()}
            preferred = max(worth, key=worth.__getitem__)  # of equal ones the least loaded
        if preferred is not None:
            ranked.remove(preferred)
            ranked.insert(0, preferred)
        return ranked

    def add(self, affinity: Affinity, replica: str) -> None:
        """Remember that a replica gets a request."""
        for key in affinity.keys:
            self._replicas.setdefault(key, set()).add(replica)
            self._replicas.move_to_end(key)
        while len(self._replicas) > self._capacity:
            self._replicas.popitem(last=False)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget all replicas but these: the others have ended, and their caches with them."""
        kept = set(replicas)
        for key, owners in list(self._replicas.items()):
            owners &= kept
            if not owners:
                del self._replicas[key]

    def _matched(self, keys: Sequence[bytes], replicas: list[str]) -> dict[str, int]:
        """Return how many blocks of a prompt each replica has got, from its beginning, in the replicas' order."""
        found = dict.fromkeys(replicas, 0)
        left = set(replicas)
        for number, key in enumerate(keys, 1):
            left &= self._replicas.get(key, set())
            if not left:
                break
            found.update(dict.fromkeys(left, number))
        return found


def _weight(seed: str, replica: str) -> bytes:
    """Return a replica's weight in rendezvous hashing; the lowest one wins."""
    return hashlib.blake2b(f"{seed}\0{replica}".encode(errors="replace"), digest_size=_DIGEST_BYTES).digest()
