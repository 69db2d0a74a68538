"""runtime.events.cloudevents.attributes: what an attribute may be, and how it stands in a header."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.errors import InvalidRequest, UnsupportedMediaType
from runtime.events.cloudevents.attributes import (
    MAX_ATTRIBUTE_CHARS,
    check_attributes,
    check_charset,
    media_type,
    percent_decoded,
    percent_encoded,
    plain_id,
    timestamp,
)

NEEDED = {"specversion": "1.0", "id": "1", "source": "/here", "type": "t"}
CHARACTERS = st.characters(exclude_categories=("Cs",))


def test_values_become_text() -> None:
    """Booleans and whole numbers have one text form each (specification, "Type System")."""
    given = NEEDED | {"yes": True, "no": False, "most": 2**31 - 1, "least": -(2**31), "empty": "", "time": "x"}
    given["time"] = "2018-04-05T17:31:00.000000000Z"
    assert check_attributes(given) == given | {
        "yes": "true",
        "no": "false",
        "most": "2147483647",
        "least": "-2147483648",
    }


@pytest.mark.parametrize("name", NEEDED)
def test_what_is_needed(name: str) -> None:
    """Four attributes must be there, and not empty."""
    with pytest.raises(InvalidRequest, match=rf"^{name}: missing$") as caught:
        check_attributes({key: value for key, value in NEEDED.items() if key != name})
    assert caught.value.param == name
    with pytest.raises(InvalidRequest, match=rf"^{name}: "):
        check_attributes(NEEDED | {name: ""})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", "0.9"),
        ("specversion", "1.0.2"),
        ("id", 25),
        ("id", True),
        ("id", {"xyz": "abc"}),
        ("source", ["a"]),
        ("subject", ""),
        ("dataschema", ""),
        ("datacontenttype", ""),
        ("datacontenttype", "xyz"),
        ("datacontenttype", "a/b/c"),
        ("time", "lunchtime"),
        ("time", "2018-04-05T18:31Z"),
        ("time", "2018-04-05T18:31:00X"),
        ("time", "2018-04-05T18:31:00+25:00"),
        ("time", "2018-04-05T18:31:00+xx:00"),
        ("time", "2018-04-05T18:31:00+05"),
        ("time", "2018-04-05T18:31:00"),
        ("time", "2018-13-05T18:31:00Z"),
        ("time", "٢018-04-05T18:31:00Z"),
        ("ext", 1.5),
        ("ext", 2**31),
        ("ext", -(2**31) - 1),
        ("ext", {}),
        ("ext", "a\nb"),
        ("ext", "\x7f"),
        ("ext", "\x9f"),
        ("ext", "\ud800"),
        ("ext", "\ufdd0"),
        ("ext", "\U0010ffff"),
        ("ext", "x" * (MAX_ATTRIBUTE_CHARS + 1)),
    ],
)
def test_values_that_are_none(name: str, value: object) -> None:
    """Each is refused, and named. (Many are those of the CloudEvents project's conformance tests.)"""
    with pytest.raises(InvalidRequest, match=rf"^{name}: ") as caught:
        check_attributes(NEEDED | {name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("name", ["MyExtension", "my.extension", "data_", "", "é", "a\nb", "x" * 65])
def test_names_that_are_none(name: str) -> None:
    """Letters in lower case and digits; whatever else it is, the message is one short line of ASCII."""
    with pytest.raises(InvalidRequest) as caught:
        check_attributes(NEEDED | {name: "x"}, "ce-")
    message = caught.value.message
    assert message.startswith("ce-")
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 500


def test_where_it_is_wrong() -> None:
    """In headers the message has the header's name, in a batch the number of the event."""
    for prefix, param in (("ce-", "id"), ("cloudevents:", "id"), ("3.", "3.id")):
        with pytest.raises(InvalidRequest, match=rf"^{prefix}id: ") as caught:
            check_attributes(NEEDED | {"id": ""}, prefix)
        assert caught.value.param == param


@given(st.text(CHARACTERS, max_size=50))
@example("Euro € 😀")
@example('"quoted" 100% \\')
@settings(max_examples=500)
def test_headers_there_and_back(value: str) -> None:
    """What is sent in a header is read again, and a header holds nothing but printable ASCII."""
    sent = percent_encoded(value)
    assert not set(sent) - {chr(code) for code in range(0x21, 0x7F)} - {" "}
    assert '"' not in sent
    assert " " not in sent
    assert percent_decoded("ce-x", sent) == value


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),  # the specification's example
        ("%e2%82%ac", "€"),
        ("%41%2", "A%2"),
        ('"a \\"b\\" %20"', 'a "b"  '),
        ('a"b', 'a"b'),
        ("%2520", "%20"),
        ("€".encode().decode("ascii", "surrogateescape"), "€"),
    ],
)
def test_headers_from_others(header: str, value: str) -> None:
    """One round of quotes, then one of percent signs; more than is needed may be encoded, less is understood."""
    assert percent_decoded("ce-x", header) == value


@pytest.mark.parametrize("header", ["%C0%A0", "%ff", "\udcff"])
def test_headers_that_are_not_utf_8(header: str) -> None:
    """They are refused, and named."""
    with pytest.raises(InvalidRequest, match=r"^ce-x: must be UTF-8"):
        percent_decoded("ce-x", header)


@given(st.lists(st.text(CHARACTERS, min_size=1, max_size=400), min_size=2, max_size=2, unique=True))
@example(["a b", "a%20b"])
@example(["a%20b", "a%2520b"])
@settings(max_examples=500)
def test_ids_stay_different(ids: list[str]) -> None:
    """However they look, two ids are two, short and without blanks; usual ones stay as they are."""
    first, second = map(plain_id, ids)
    assert first != second
    assert all(1 <= len(plain) <= 256 and plain.isascii() and plain.isprintable() for plain in (first, second))
    assert " " not in first
    assert plain_id("A234-1234:partition/0#12") == "A234-1234:partition/0#12"
    assert len(plain_id("x" * 300)) < 100


def test_times() -> None:
    """RFC 3339 in any of its forms."""
    assert timestamp("1970-01-01T00:00:10Z") == 10
    assert timestamp("1970-01-01t01:00:10.5+01:00") == 10.5
    assert timestamp("1969-12-31T23:00:00-01:00") == 0
    assert timestamp("0001-01-01T00:00:00+14:00") is not None
    assert timestamp("1970-01-01") is None


def test_content_types() -> None:
    """Parameters do not count, but for a charset that JSON does not have."""
    assert media_type(" Application/JSON ; charset=x") == "application/json"
    for good in ("a/b", "a/b; charset=UTF-8", 'a/b;charset="utf8"', "a/b; x=charset"):
        check_charset(good)
    for bad in ("a/b; charset=latin-1", 'a/b;Charset = "utf-16"'):
        with pytest.raises(UnsupportedMediaType):
            check_charset(bad)
