"""runtime.keys.records: keys, their checksum, and the text of their records."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.keys.records import KeyRecord, digest, new_id, new_key, new_secret, parse_records, well_formed
from runtime.types import Caller
from tests.support.soak import soak

SHA = "a" * 64
SECRET = base64.b64encode(bytes(range(32))).decode()
GOOD: dict[str, Any] = {"id": "k_1", "name": "ci", "scopes": ["*"], "created": 1, "expires": None, "sha256": SHA}
CANARY = "wsk_CANARYcanaryCANARYcanary0123456789"


def _text(**fields: Any) -> str:
    """A good record with other fields; a field that is ... is left out."""
    return json.dumps({name: value for name, value in (GOOD | fields).items() if value is not ...})


def test_keys_are_random_and_recognisable() -> None:
    """The prefix, 27 random base62 characters, which are more than 160 bits, and the checksum; no two alike."""
    keys = [new_key() for _ in range(1000)]
    assert all(re.fullmatch(r"wsk_[0-9A-Za-z]{33}", key) for key in keys)
    assert all(well_formed(key) for key in keys)
    assert len(set(keys)) == len({new_id() for _ in keys}) == len({new_secret() for _ in keys}) == len(keys)
    assert 62**27 > 2**160
    assert {len(set(column)) for column in zip(*(key[4:31] for key in keys), strict=True)} == {62}


def test_the_checksum_is_crc_32() -> None:
    """Anybody can check it: the last six characters are the CRC-32 of all before, in base62, most significant first."""
    key = new_key()
    number = 0
    for character in key[-6:]:
        number = number * 62 + "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".index(character)
    assert number == zlib.crc32(key[:-6].encode())


def test_a_mistyped_key_is_seen() -> None:
    """One other character, two exchanged, one more or less, another prefix: none is well-formed."""
    key = new_key()
    wrong = [key[:i] + ("Z" if key[i] != "Z" else "Y") + key[i + 1 :] for i in range(len(key))]
    swaps = (i for i in range(4, len(key) - 7) if key[i] != key[i + 1])
    wrong += [key[:i] + key[i + 1] + key[i] + key[i + 2 :] for i in swaps]
    wrong += [key[:-1], key + "0", "", "W" + key[1:], "é" * len(key), "\ud800" * len(key)]
    assert not any(map(well_formed, wrong))


def test_a_record_keeps_no_key() -> None:
    """Neither the line nor the repr of a record shows the key, nor the repr what is kept of it."""
    key, secret = new_key(), new_secret()
    caller = Caller("k_1", "ci", frozenset({"*"}))
    bearer, signer = KeyRecord(caller, 1, None, digest(key)), KeyRecord(caller, 1, None, secret=secret)
    assert key not in bearer.line() + repr(bearer)
    assert digest(key).hex() not in repr(bearer)
    assert repr(secret) not in repr(signer)
    assert base64.b64encode(secret).decode() in signer.line()  # both sides compute with it


@pytest.mark.parametrize("expires", [None, 2, 2.5])
@pytest.mark.parametrize("kept", [{"digest": bytes(range(32))}, {"secret": bytes(range(40))}])
@pytest.mark.parametrize("limits", [(None, None), (0, None), (5, 10)])
def test_there_and_back(expires: float | None, kept: dict[str, bytes], limits: tuple[Any, Any]) -> None:
    """A record's line is read as the record it was."""
    record = KeyRecord(Caller("k_1", "Übung 1", frozenset({"chat", "models"}), *limits), 1, expires, **kept)
    assert parse_records(record.line()) == [record]
    assert "\n" not in record.line()


@pytest.mark.parametrize("between", ["\n", " ", "", "\r\n\t \n"])
def test_any_blanks_stand_between(between: str) -> None:
    """JSON lines, records on one line, and pretty-printed ones are all read, in their order."""
    second = json.dumps(GOOD | {"id": "k_2", "sha256": "b" * 64}, indent=2)
    records = parse_records(between.join(["", _text(), second, ""]))
    assert [record.caller.id for record in records] == ["k_1", "k_2"]


def test_no_records() -> None:
    """Blanks alone hold none."""
    assert parse_records("") == parse_records(" \n") == []


def test_expiry_is_a_moment() -> None:
    """Good until then, not from then on; without one, always."""
    (record,) = parse_records(_text(expires=100))
    assert (record.expired(99.9), record.expired(100), record.expired(101)) == (False, True, True)
    assert not parse_records(_text())[0].expired(1e12)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        pytest.param({field: ...}, f"{field}: is missing", id=f"no {field}")
        for field in ("id", "name", "scopes", "created", "expires")
    ]
    + [
        pytest.param({field: value}, f"{field}: must be", id=f"{field} {str(value)[:20]!a}")
        for field, values in {
            "id": [1, None, "", "a b", "k\n", "k" * 65, "é", []],
            "name": [1, None, "", " ", "a\nb", "a\x00", " a", "n" * 101, "\ud800"],
            "scopes": [None, "*", [], [1], [""], ["a b"], ["*", "*"], [["*"]], {"*": 1}, ['"'], ["s"] * 101],
            "created": [None, "1", -1, True, 1e12, [], {}],
            "expires": ["never", -1, True, 1e12, [], {}, 10**30],
            "sha256": [None, 1, "", "a" * 63, "a" * 65, "g" * 64, "a" * 63 + "\n", "é" * 64],
            "hmac_secret": [None, 1, "", "====", "AAAA", SECRET[:-1], SECRET + "!", "é" * 44, "A" * 1400, []],
            "requests_per_minute": [None, -1, 1.5, "1", True, 10**8],
            "tokens_per_minute": [None, -1, 1.5, "1", True, 10**10],
        }.items()
        for value in values
    ]
    + [
        pytest.param({"sha256": ...}, "sha256: a record must have either this or hmac_secret", id="no key"),
        pytest.param({"hmac_secret": SECRET}, "sha256: a record must have either this or hmac_secret", id="two keys"),
        pytest.param({"scope": "*"}, "scope: is not a field", id="unknown field"),
        pytest.param({CANARY: "*"}, "a field: is not a field", id="unknown field that must not be shown"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], fault: str) -> None:
    """The fault says which record, counted from 1, and which field."""
    if "hmac_secret" in fields and fields["hmac_secret"] != SECRET:
        fields = {"sha256": ...} | fields
    text = _text(id="k_0", sha256="b" * 64) + _text(**fields)
    with pytest.raises(ValueError, match=r"^record 2: ") as raised:
        parse_records(text)
    assert str(raised.value).startswith(f"record 2: {fault}")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (CANARY, "is not JSON"),
        (f'"{CANARY}"', "must be a JSON object"),
        ("[]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{", "is not JSON"),
        (_text()[:-10], "is not JSON"),
        ("{'id': 1}", "is not JSON"),
        (f'{{"id": "{CANARY}', "is not JSON"),
        (f'{{"sha256": "{CANARY}"}}', "sha256: must be"),
        ('{"id": "k_1", "id": "k_2"}', "id: occurs twice"),
        (f'{{"{CANARY}": 1, "{CANARY}": 2}}', "a field: occurs twice"),
        ('{"created": NaN}', "NaN is not JSON"),
        ('{"created": Infinity}', "Infinity is not JSON"),
        ('{"created": 1e999}', "created: must be"),
        ('{"created": ' + "9" * 5000 + "}", ""),
        ('{"scopes": ' + "[" * 200_000, "is nested too deeply"),
        (_text().replace(" ", "\xa0"), "is not JSON"),
        ("\ufeff" + _text(), "is not JSON"),
        (_text() + ",", ""),
    ],
)
def test_what_is_no_record(text: str, fault: str) -> None:
    """What is not a sequence of JSON objects is refused with its place, and nothing of it is repeated."""
    with pytest.raises(ValueError, match=r"^record [12]") as raised:
        parse_records(text)
    assert fault in str(raised.value)
    assert "CANARY" not in str(raised.value)


def test_one_id_twice() -> None:
    """An id names one key."""
    with pytest.raises(ValueError, match="id: k_1 occurs twice"):
        parse_records(_text() + _text(sha256="b" * 64))


def test_one_key_twice() -> None:
    """A key has one record; which of two should hold would be chance."""
    with pytest.raises(ValueError, match="sha256: k_1 and k_2 have the same key"):
        parse_records(_text() + _text(id="k_2", sha256=SHA.upper()))


def test_one_name_twice() -> None:
    """Two keys may have one name, as they do while one takes the other's place."""
    assert len(parse_records(_text() + _text(id="k_2", sha256="b" * 64))) == 2


def test_unknown_scopes() -> None:
    """Refused by who knows all scopes, with those there are; accepted by who knows none."""
    with pytest.raises(ValueError, match=r"record 1: scopes: there is no chta; there are \*, chat"):
        parse_records(_text(scopes=["chat", "chta"]), {"*", "chat"})
    assert parse_records(_text(scopes=["chta"]))[0].caller.scopes == {"chta"}


_VALUES = [json.dumps(value) for value in ("k_2", "*", ["*"], None, 0, -1, 1e400, {}, SHA, SECRET)]
_NAMES = [f'"{name}":' for name in (*GOOD, "hmac_secret", "tokens_per_minute", "x")]
_PIECES = [_text(), *'{}[],: \n"\\\0u9-e.é\ud800\ufeff', *_VALUES, *_NAMES]


@settings(max_examples=soak(10_000))
@given(st.integers(0, 255), st.binary(max_size=12))  # the bytes choose pieces: ten times as fast as lists of texts
def test_any_text(place: int, chosen: bytes) -> None:
    """Whatever is in the file: records, which are read back from their lines, or a ValueError that names one."""
    pieces = "".join(_PIECES[byte % len(_PIECES)] for byte in chosen)
    for text in (pieces, _text()[:place] + pieces + _text()[place:]):
        try:
            records = parse_records(text)
        except ValueError as error:
            fault = str(error)
        else:
            fault = "record 0: none"
            assert parse_records("\n".join(record.line() for record in records)) == records
        assert re.match(r"record [0-9]+|id: |sha256: ", fault)
