"""runtime.signatures.structured_fields: strict, canonical, and like an independent implementation."""

from __future__ import annotations

import http_sf
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.signatures import SignatureError
from runtime.signatures.structured_fields import (
    MAX_CHARS,
    MAX_MEMBERS,
    InnerList,
    Item,
    SfToken,
    parse_dictionary,
    serialise,
)
from tests.support.soak import soak

KEYS = st.sampled_from(["a", "b", "sig1", "*x", "a-b_c.d*", "z9"])
BARE = (
    st.text("".join(map(chr, range(0x20, 0x7F))), max_size=8)
    | st.integers(-(10**15) + 1, 10**15 - 1)
    | st.binary(max_size=8)
    | st.booleans()
    | st.sampled_from(["a", "*", "T:/", "x!#$%&'*+.^_`|~0-9A-Za-z"]).map(SfToken)
)
PARAMS = st.dictionaries(KEYS, BARE, max_size=2)
ITEMS = st.builds(Item, BARE, PARAMS)
MEMBERS = ITEMS | st.builds(InnerList, st.lists(ITEMS, max_size=3).map(tuple), PARAMS)
# Pieces of which near misses are made.
PIECES = st.sampled_from(
    [
        *'()";=,:?\\ \t-.@*',
        "a",
        "b",
        "a=1",
        "sig1=",
        '"x"',
        ":YQ==:",
        ":YQ=:",
        "?1",
        "?2",
        ";a",
        '"\\"',
        "1.5",
        "é",
        "\n",
    ]
)


def _write(members: dict[str, Item | InnerList]) -> str:
    return ", ".join(f"{key}={serialise(member)}" for key, member in members.items())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("  ", {}),
        ("a=1", {"a": Item(1, {})}),
        ("a=-0", {"a": Item(0, {})}),
        ("  a  ", {"a": Item(True, {})}),
        ("a;x, b=?0", {"a": Item(True, {"x": True}), "b": Item(False, {})}),
        ("a=1 \t,\t b=2", {"a": Item(1, {}), "b": Item(2, {})}),
        (r'a="\"\\ "', {"a": Item('"\\ ', {})}),
        ("a=::", {"a": Item(b"", {})}),
        ("a=:aGk=:;q=:aGk=:", {"a": Item(b"hi", {"q": b"hi"})}),
        ("*a.b-c_1=tok:en/*;  z=t", {"*a.b-c_1": Item(SfToken("tok:en/*"), {"z": SfToken("t")})}),
        ('a=(  "x";p   1 );q=1', {"a": InnerList((Item("x", {"p": True}), Item(1, {})), {"q": 1})}),
        ("a=()", {"a": InnerList((), {})}),
        ("a=999999999999999", {"a": Item(999_999_999_999_999, {})}),
    ],
)
def test_reads(text: str, found: dict[str, Item | InnerList]) -> None:
    """Everything that RFC 9651 section 4.2.2 allows, of the kinds that are needed here."""
    assert parse_dictionary("Field", text) == found


@pytest.mark.parametrize(
    "text",
    [
        *(
            ",",
            "a=1,",
            ",a=1",
            "a=1,,b=1",
            "a=1 b=2",
            "a=1;",
            "a=1; ;b",
            "a=",
            "=1",
            "A=1",
            "1=1",
            "a =1",
            "a= 1",
            "-a=1",
        ),
        *(
            "a=1.5",
            "a=@1",
            'a=%"x"',
            "a=1234567890123456",
            "a=-",
            "a=--1",
            "a=+1",
            "a=1a",
            "a=?2",
            "a=?",
            "a=1.",
            "a=.5",
        ),
        *('a="', 'a="x', r'a="\x"', 'a="\\', 'a="é"', 'a="\t"', 'a="\x7f"', "a='x'", 'a="x"y'),
        *(
            "a=:",
            "a=:a:",
            "a=:YQ:",
            "a=:YQ=:",
            "a=:Y Q==:",
            "a=:YQ==",
            "a=:YQ===:",
            "a=:YQ==YQ==:",
            "a=:é:",
            "a=:-_-_:",
        ),
        *("a=(", "a=)", 'a=("x"', 'a=("x""y")', 'a=("x"\t"y")', 'a=("x",)', "a=(())", 'a=("x";)', "a=(1)2"),
        *("a=1, a=2", "a=1;x;x=1", 'a=("x";p;p)', "a\n=1", "a=1\n", "a=1\r\nb=2", "é=1", "a=é", "\ta=1", "a=1\x00"),
    ],
)
def test_refuses(text: str) -> None:
    """Whatever is no dictionary, has kinds that no field here has, or says one thing twice; the field is named."""
    with pytest.raises(SignatureError, match=r"^Field "):
        parse_dictionary("Field", text)


@pytest.mark.parametrize(
    "text",
    [
        ", ".join(f"k{n}" for n in range(MAX_MEMBERS + 1)),
        "a=(" + "1 " * MAX_MEMBERS + "1)",
        "a" + "".join(f";k{n}" for n in range(MAX_MEMBERS + 1)),
        "a=(1" + "".join(f";k{n}" for n in range(MAX_MEMBERS + 1)) + ")",
        'a="' + "x" * MAX_CHARS + '"',
    ],
)
def test_limits(text: str) -> None:
    """One member more than the limit, or one character, is refused by name."""
    with pytest.raises(SignatureError, match=rf"more than {MAX_MEMBERS} members|longer than {MAX_CHARS} characters"):
        parse_dictionary("Field", text)


def test_as_many_as_allowed() -> None:
    """The limits themselves are within them."""
    assert len(parse_dictionary("Field", ", ".join(f"k{n}" for n in range(MAX_MEMBERS)))) == MAX_MEMBERS
    assert len(parse_dictionary("Field", "a=(" + " ".join("1" * MAX_MEMBERS) + ")")["a"][0]) == MAX_MEMBERS  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["é", "\n", "\x7f", "\x00"])
def test_writes_printable_ascii_only(value: str) -> None:
    """A string with anything else has no text (section 4.1.6)."""
    with pytest.raises(SignatureError, match="not printable ASCII"):
        serialise(Item(value, {}))


@settings(max_examples=soak(1_000))
@given(st.dictionaries(KEYS, MEMBERS, max_size=3))
def test_round_trip(members: dict[str, Item | InnerList]) -> None:
    """What is written is read again as it was, here and by http_sf, which writes the same."""
    text = _write(members)
    found = parse_dictionary("Field", text)
    assert found == members
    assert [_kinds(member) for member in found.values()] == [_kinds(member) for member in members.values()]
    theirs = http_sf.parse(text.encode(), tltype="dictionary")
    assert parse_dictionary("Field", http_sf.ser(theirs) if theirs else "") == members


@settings(max_examples=soak(10_000))
@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=30))
@example("a=1;b=1;a")
def test_any_text(text: str) -> None:
    """Any text is read or refused, never anything else; whatever is read, http_sf reads, and as the same."""
    try:
        found = parse_dictionary("Field", text)
    except SignatureError:
        return
    if found:
        canonical = http_sf.ser(http_sf.parse(text.encode(), tltype="dictionary"))
        assert parse_dictionary("Field", canonical) == found


@settings(max_examples=soak(2_000))
@given(st.lists(PIECES, max_size=12).map("".join))
def test_what_is_refused(text: str) -> None:
    """What http_sf reads is refused for a reason: a repetition, or a kind that is not needed here."""
    repeated: list[str] = []
    try:
        theirs = http_sf.parse(
            text.encode(), tltype="dictionary", on_duplicate_key=lambda key, where: repeated.append(key)
        )
    except Exception:  # theirs to say no
        return
    if repeated or any(sign in text for sign in (".", "@", "%", "=:")):
        return
    assert len(parse_dictionary("Field", text)) == len(theirs)


def _kinds(member: Item | InnerList) -> object:
    """The types, which equality does not see: ``True == 1`` and ``SfToken("a") == "a"``."""
    own = [type(value) for value in member.params.values()]
    return (own, [_kinds(item) for item in member.items] if isinstance(member, InnerList) else type(member.value))
