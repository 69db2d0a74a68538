from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.load.trace import TraceRow, read_trace


def test_both_public_forms_are_read(tmp_path: Path) -> None:
    """Times count from the first request; rows are put in their order; a length of 0 is one token."""
    (tmp_path / "a.jsonl").write_text(
        '{"timestamp": 3000, "input_length": 20, "output_length": 2, "hash_ids": [1]}\n\n'
        '{"timestamp": 1000, "input_length": 10, "output_length": 0}\n'
    )
    expected = [TraceRow(at=0, prompt_tokens=10, output_tokens=1), TraceRow(at=2, prompt_tokens=20, output_tokens=2)]
    assert read_trace(str(tmp_path), "a.jsonl") == expected
    (tmp_path / "b.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,10,1\n2023-11-16 18:15:48.6805900,20,2\n"
    )
    assert read_trace(str(tmp_path), "b.csv") == expected
    (tmp_path / "c.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n7,10,1\n9,20,2\n")
    assert read_trace(str(tmp_path), "c.csv") == expected


def test_a_trace_can_be_faster_and_shorter(tmp_path: Path) -> None:
    """The limit of its time is that of the replay."""
    (tmp_path / "a.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{second},5,5\n" for second in range(10))
    )
    assert [row.at for row in read_trace(str(tmp_path), "a.csv", speed=2, seconds=1.5)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "must end with"),
        ("missing.csv", None, "No such file"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no request"),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n1,two,3\n", "request 2"),
        ("a.csv", "time,in\n1,2\n", "TIMESTAMP"),
        ("a.jsonl", "{", "request 1"),
    ],
)
def test_a_wrong_trace_is_refused(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    """The message names the file and the request."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_trace(str(tmp_path), name)
