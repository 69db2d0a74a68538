"""runtime.audit.chain: what is sealed cannot be changed without notice."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from functools import partial

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.audit.chain import (
    ZERO,
    AuditKeys,
    BrokenChain,
    Checker,
    open_head,
    prompt_hash,
    read,
    seal,
    seal_head,
    unverified_mac,
)
from tests.support.soak import soak

SECRET = "a secret of at least thirty-two characters"
KEYS = AuditKeys.derive(SECRET)


def lines(count: int, start: int = 1, previous: bytes = ZERO) -> list[bytes]:
    """A chain of so many records."""
    made = []
    for number in range(start, start + count):
        record = {"seq": number, "text": f"record {number}"} | ({"prev": previous.hex()} if number == start else {})
        line, previous = seal(KEYS.chain, previous, json.dumps(record, separators=(",", ":")).encode())
        made.append(line)
    return made


def problem(made: list[bytes], first: int = 1) -> str | None:
    """What a checker says first."""
    checker = Checker(KEYS.chain, first)
    try:
        for line in made:
            checker.follow(line)
    except BrokenChain as error:
        return str(error)
    return None


def test_keys_are_hkdf() -> None:
    """Another implementation of RFC 5869 derives the same keys, and they are three different ones."""
    for label in ("chain", "prompt", "head"):
        other = HKDF(SHA256(), 32, None, b"warmstart audit " + label.encode()).derive(SECRET.encode())
        assert getattr(KEYS, label) == other
    assert len({KEYS.chain, KEYS.prompt, KEYS.head}) == 3


def test_a_line_is_plain_json_with_the_mac_last() -> None:
    """Anybody with the key can check a line with nothing but keyed BLAKE2b (RFC 7693)."""
    first, second = lines(2)
    body, _, rest = second.partition(b',"mac":"')
    previous = bytes.fromhex(json.loads(first)["mac"])
    mac = hashlib.blake2b(previous + body, key=KEYS.chain, digest_size=32).hexdigest()
    assert rest == mac.encode() + b'"}\n'
    assert json.loads(second) == {"seq": 2, "text": "record 2", "mac": rest[:64].decode()}


def test_a_whole_chain_is_followed() -> None:
    """Count, last number and last MAC are known at the end."""
    made = lines(5)
    checker = Checker(KEYS.chain)
    assert [checker.follow(line)["seq"] for line in made] == [1, 2, 3, 4, 5]
    assert (checker.count, checker.sequence) == (5, 5)
    assert checker.mac.hex() == json.loads(made[-1])["mac"]


@given(st.data())
def test_any_edit_of_any_byte_is_found(data: st.DataObject) -> None:
    """Whatever byte of a line is replaced by whatever other, added or taken away."""
    made = lines(4)
    where = data.draw(st.integers(0, 3))
    place = data.draw(st.integers(0, len(made[where]) - 1))
    kind = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    byte = bytes([data.draw(st.integers(0, 255))])
    line = made[where]
    edited = line[:place] + (b"" if kind == "delete" else byte) + line[place + (kind != "insert") :]
    made[where] = edited
    assert (problem(made) is None) == (edited == line)


@pytest.mark.parametrize("where", range(4))
def test_a_removed_line_is_found(where: int) -> None:
    """But for the last, which a chain alone cannot miss."""
    made = lines(5)
    del made[where]
    assert problem(made) == (
        f"record {where + 1} is missing before record {where + 2}: removed, or moved"
        + ("; if they were archived, use --since 2" if where == 0 else "")
    )


@given(st.permutations(range(5)))
def test_any_other_order_is_found(order: list[int]) -> None:
    """Only one order is right."""
    made = lines(5)
    assert (problem([made[number] for number in order]) is None) == (order == sorted(order))


def test_what_is_found_is_named() -> None:
    """Repeated, missing, edited, forged, of another key and no record at all are told apart."""
    one, two, three, four = lines(4)
    assert problem([one, two, two]) == "record 2 is in the place of record 3: repeated, or moved"
    assert problem([one, four]) == "records 2 to 3 are missing before record 4: removed, or moved"
    assert problem([one, two.replace(b"record 2", b"record 9")]) == "record 2 was edited or added: its MAC is wrong"
    forged, _ = seal(bytes(32), ZERO, b'{"seq":1}')
    assert problem([forged]) == (
        "record 1 was edited or added: its MAC is wrong, or the key is not the one it was written with"
    )
    for nothing in (b"", b"\n", b"{}\n", b"[]\n", b'{"seq":true}\n', b'{"seq":1,"prev":7}\n', b"\xff\n", b"[" * 99_999):
        assert problem([one, nothing]) == "this is not a record of an audit log"
    assert problem([three, four], first=3) == "record 3 was edited or added: its MAC is wrong, " + (
        "or the key is not the one it was written with"
    )


def test_a_chain_may_be_checked_from_where_it_names_what_it_follows() -> None:
    """Older files may be archived: a file's first record says which MAC it follows, under its own MAC."""
    later = lines(3, start=7, previous=bytes(range(32)))
    assert problem(later, first=7) is None
    assert problem(later, first=6) == (
        "record 6 is missing before record 7: removed, or moved; if they were archived, use --since 7"
    )


@given(st.integers(0, 300), st.binary(max_size=3))
def test_an_edited_head_is_refused(place: int, instead: bytes) -> None:
    """The head is sealed too: nobody can make one that tells of fewer records."""
    head = seal_head(KEYS.head, 41, bytes(32))
    assert open_head(KEYS.head, head) == (41, bytes(32))
    edited = head[:place] + instead + head[place + 1 :]
    if edited != head:
        with pytest.raises(BrokenChain):
            open_head(KEYS.head, edited)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"seq":1}', b'{"seq":1,"mac":5}', b"[" * 99_999])
def test_what_is_no_head_is_refused(content: bytes) -> None:
    """Whatever the file holds."""
    with pytest.raises(BrokenChain):
        open_head(KEYS.head, content)


_PIECES = (
    b'{"seq":',
    b"1",
    b"7",
    b',"mac":"',
    b"00" * 32,
    b'"',
    b"}",
    b",",
    b'"prev":',
    b"null",
    b"[",
    b"\n",
    b'"tag":',
)


@settings(max_examples=soak(10_000))
@given(st.binary(max_size=40) | st.lists(st.sampled_from(_PIECES), max_size=9).map(b"".join))
def test_any_bytes_are_refused(content: bytes) -> None:
    """Whatever a file holds, reading it as a line or as a head ends with the one error there is for that."""
    for read_it in (Checker(KEYS.chain).follow, Checker(KEYS.chain, 7).follow, partial(open_head, KEYS.head)):
        try:
            read_it(content)
        except BrokenChain:
            continue
        raise AssertionError("it was taken for one of ours")
    with suppress(BrokenChain):
        unverified_mac(content)


def test_read_wants_a_number_and_a_mac() -> None:
    """A record without them is none."""
    assert read(b'{"seq":3}') == {"seq": 3}
    with pytest.raises(BrokenChain):
        read(b'{"seq":3,"prev":"00"}')


def keyed(canonical: bytes) -> str:
    """The hash of a prompt's JSON."""
    return hashlib.blake2b(canonical, key=KEYS.prompt, digest_size=32).hexdigest()


def test_prompt_hash() -> None:
    """It is the same however the JSON was written, another for another text or key, and none where nothing is asked."""
    asked = {"messages": [{"role": "user", "content": "caf\u00e9"}], "temperature": 1}
    same = json.loads('{"messages": [{"content": "caf\\u00e9", "role": "user"}], "seed": 5}')
    canonical = b'{"messages":[{"content":"caf\\u00e9","role":"user"}]}'
    assert prompt_hash(KEYS.prompt, asked) == keyed(canonical)
    assert prompt_hash(KEYS.prompt, asked) == prompt_hash(KEYS.prompt, same)
    others = [
        prompt_hash(bytes(32), asked),
        prompt_hash(KEYS.prompt, {"prompt": asked["messages"]}),
        prompt_hash(KEYS.prompt, {"prompt": "caf\u00e9"}),
    ]
    assert len({prompt_hash(KEYS.prompt, asked), *others}) == 4
    assert prompt_hash(KEYS.prompt, {"model": "x"}) is None
    search = {"query": "caf\u00e9", "documents": ["a"]}
    canonical = b'{"documents":["a"],"query":"caf\\u00e9"}'
    assert prompt_hash(KEYS.prompt, search | {"top_n": 1}) == keyed(canonical)
    assert prompt_hash(KEYS.prompt, {"input": ["a"]}) is not None


@given(st.text(st.characters(codec=None)) | st.lists(st.text()) | st.none(), st.booleans())
def test_prompt_hash_of_any_prompt(prompt: object, with_messages: bool) -> None:
    """It is that of the canonical JSON, whatever the prompt is and whatever else is asked."""
    asked = {"prompt": prompt} | ({"messages": []} if with_messages else {})
    canonical = json.dumps(asked, separators=(",", ":"), sort_keys=True)
    assert prompt_hash(KEYS.prompt, asked | {"model": "x"}) == keyed(canonical.encode())
