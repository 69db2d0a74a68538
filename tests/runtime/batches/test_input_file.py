"""runtime.batches.input_file: reads input files row by row, and names what is wrong with a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.batch_types import InputError
from runtime.batches.input_file import InputLimits, InputRow, read_row, read_rows

URL = "/v1/completions"
ROW: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": URL, "body": {"prompt": "x"}}
LIMITS = InputLimits(rows=3, row_bytes=200, depth=4)


def _read(tmp_path: Path, text: bytes) -> list[InputRow | InputError]:
    path = tmp_path / "in.jsonl"
    path.write_bytes(text)
    return list(read_rows(path, URL, LIMITS))


def _line(**changes: Any) -> bytes:
    return json.dumps(ROW | changes).encode() + b"\n"


def test_rows_are_found_by_their_place(tmp_path: Path) -> None:
    """Each row has its line, and its place in the file; blank lines are skipped, and the last line needs no end."""
    text = b"\xef\xbb\xbf" + _line() + b"\n \r\n" + _line(custom_id="b").rstrip()
    first, second = _read(tmp_path, text)
    assert isinstance(first, InputRow)
    assert isinstance(second, InputRow)
    assert (first.line, second.line, second.custom_id) == (1, 4, "b")
    for row in (first, second):
        read = read_row(text[row.offset :][: row.length], row.line, URL, 4)
        assert isinstance(read, dict)
        assert read["custom_id"] == row.custom_id


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({"custom_id": 5}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "a\nb"}, "invalid_custom_id", "custom_id"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"url": "/v1/chat/completions"}, "invalid_url", "url"),
        ({"body": "x"}, "invalid_request", "body"),
        ({"body": {"prompt": "x", "stream": True}}, "invalid_request", "body.stream"),
        ({"x\x00": 1}, "invalid_request", "x\\x00"),
        ({"body": [[[[[1]]]]]}, "invalid_json_line", None),
    ],
)
def test_a_wrong_member_is_named(changes: dict[str, Any], code: str, param: str | None) -> None:
    """The error has the line, a code, and the member."""
    error = read_row(_line(**changes), 7, URL, 4)
    assert isinstance(error, InputError)
    assert (error.code, error.param, error.line) == (code, param, 7)


@pytest.mark.parametrize("member", ROW)
def test_a_missing_member_is_named(member: str) -> None:
    """Every member is required."""
    error = read_row(json.dumps({name: value for name, value in ROW.items() if name != member}).encode(), 1, URL, 4)
    assert error == InputError("missing_required_parameter", f"{member}: this member is missing", 1, member)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'"x"', b"NaN"])
def test_a_line_that_is_no_object(text: bytes) -> None:
    """What is no JSON object is an error of its line."""
    error = read_row(text, 2, URL, 4)
    assert isinstance(error, InputError)
    assert (error.code, error.line) == ("invalid_json_line", 2)
    assert error.message.startswith("the row")


def test_false_is_no_stream() -> None:
    """A row may say that its answer is not streamed."""
    assert isinstance(read_row(_line(body={"stream": False}), 1, URL, 4), dict)


def test_limits(tmp_path: Path) -> None:
    """A row that is too large is an error and the next one is read; reading ends at the first row too many."""
    found = _read(tmp_path, _line(custom_id="x" * 1000) + _line() + _line(custom_id="b") + _line() + _line())
    assert [getattr(entry, "code", "") for entry in found] == ["row_too_large", "", "", "too_many_rows"]
    assert [entry.line for entry in found] == [1, 2, 3, 4]
    row = found[1]
    assert isinstance(row, InputRow)
    assert json.loads((tmp_path / "in.jsonl").read_bytes()[row.offset :][: row.length]) == ROW
