"""deploy.ray.affinity: keys of prompts, and the order of replicas."""

from __future__ import annotations

import json

import pytest

from deploy.ray.affinity import BLOCK_CHARS, BLOCKS_PER_REQUEST, Affinity, PrefixTable, affinity_of, prompt_keys

LONG = "x" * BLOCK_CHARS * 3
LOADS = {"a": 0, "b": 0, "c": 0}


def _chat(*contents: str, **fields: object) -> bytes:
    messages = [{"role": "user" if number % 2 == 0 else "assistant", "content": c} for number, c in enumerate(contents)]
    return json.dumps({"messages": messages} | fields).encode()


def _affinity(body: bytes, *headers: tuple[bytes, bytes]) -> Affinity:
    return affinity_of(headers, body, b"x-session-id")


def test_a_conversation_shares_the_keys_of_its_earlier_turns() -> None:
    """Each turn begins with the one before."""
    first, second = _affinity(_chat(LONG)), _affinity(_chat(LONG, "answer " * 20, "and then?"))
    assert len(first.keys) == 3
    assert second.keys[:3] == first.keys
    assert len(second.keys) > 3


@pytest.mark.parametrize(
    "other",
    [
        _chat("y" + LONG),
        _chat(LONG, model="b"),
        _chat(LONG, tools=[{"type": "function", "function": {"name": "f"}}]),
        json.dumps({"prompt": LONG}).encode(),
    ],
)
def test_other_prompts_share_nothing(other: bytes) -> None:
    """Another beginning, model or set of tools has other keys from the first on."""
    assert _affinity(other).keys[:1] != _affinity(_chat(LONG)).keys[:1]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"[" * 100_000, b'{"prompt": [[1, 2], 3], "tools": 7}', b"\xff"])
def test_any_body_has_an_affinity(body: bytes) -> None:
    """A body that the service will refuse is no error here."""
    assert _affinity(body).keys == ()


def test_the_session() -> None:
    """The header names it, else the prompt cache key."""
    named = _chat("x", prompt_cache_key="k")
    assert _affinity(named).session == "k"
    assert _affinity(named, (b"x-session-id", b"s")).session == "s"
    assert _affinity(b"", (b"x-session-id", b"s")).session == "s"


def test_the_longest_beginning_wins() -> None:
    """Of replicas with equal load, the one with most of the prompt comes first."""
    table = PrefixTable()
    keys = prompt_keys("", LONG)
    table.add(Affinity(keys=keys[:1]), "a")
    table.add(Affinity(keys=keys), "b")
    assert table.order(Affinity(keys=keys), LOADS)[0] == "b"
    assert table.order(Affinity(keys=keys[:1]), {"a": 1, "b": 1, "c": 1})[0] in "ab"


def test_load_is_worth_blocks() -> None:
    """A replica with more of the prompt is preferred as long as that outweighs its requests."""
    table = PrefixTable()
    affinity = Affinity(keys=prompt_keys("", "x" * BLOCK_CHARS * BLOCKS_PER_REQUEST * 2))
    table.add(affinity, "b")
    for more, first in ((1, "b"), (2, "a"), (3, "a")):
        assert table.order(affinity, {"a": 0, "b": more, "c": 1})[0] == first


def test_a_beginning_that_all_share_is_spread() -> None:
    """A short one does not bring all prompts to one replica."""
    table = PrefixTable()
    loads = dict(LOADS)
    for number in range(9):
        affinity = Affinity(keys=prompt_keys("", LONG + str(number) * BLOCK_CHARS))
        chosen = table.order(affinity, loads)[0]
        table.add(affinity, chosen)
        loads[chosen] += 1
    assert set(loads.values()) == {3}


def test_the_slack_is_a_limit() -> None:
    """A replica with more requests than the slack allows is never preferred; the others come by their load."""
    table = PrefixTable(slack=2)
    affinity = Affinity(keys=prompt_keys("", "x" * BLOCK_CHARS * 100))
    table.add(affinity, "b")
    assert table.order(affinity, {"a": 1, "b": 2, "c": 0})[0] == "b"
    assert table.order(affinity, {"a": 1, "b": 3, "c": 0}) == ["c", "a", "b"]


def test_sessions_stay() -> None:
    """A session has one replica, sessions are spread, and a replica less moves only its own sessions."""
    table = PrefixTable()
    before = {f"s{i}": table.order(Affinity(f"s{i}"), LOADS)[0] for i in range(300)}
    assert all(80 < list(before.values()).count(replica) < 120 for replica in LOADS)
    after = {session: table.order(Affinity(session), {"a": 0, "b": 0})[0] for session in before}
    assert {session for session in before if before[session] != after[session]} == {
        session for session, replica in before.items() if replica == "c"
    }
    assert table.order(Affinity("s0"), LOADS | {before["s0"]: 9})[0] != before["s0"]


def test_new_prompts_go_to_the_least_loaded() -> None:
    """Without any affinity the load decides."""
    assert PrefixTable().order(Affinity(), {"a": 3, "b": 1, "c": 2}) == ["b", "c", "a"]
    assert PrefixTable().order(Affinity(), {}) == []


def test_the_table_is_bounded_and_forgets_replicas() -> None:
    """The oldest keys go first, and the keys of replicas that have ended go with them."""
    table = PrefixTable(capacity=4)
    old, new = prompt_keys("", "a" * BLOCK_CHARS * 3), prompt_keys("", "b" * BLOCK_CHARS * 3)
    table.add(Affinity(keys=old), "a")
    table.add(Affinity(keys=new), "b")
    assert len(table) == 4
    assert table.order(Affinity(keys=new), LOADS)[0] == "b"
    table.keep(["a"])
    assert len(table) == 1
