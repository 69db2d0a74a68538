"""``warmstart embed`` and ``warmstart rerank``: what is printed, with a fake model."""

from __future__ import annotations

import io
import json

import pytest

import server
from handlers.cli import generate as command_line
from tests.support.fake_encoder import FakeEncoder
from tests.support.fakes import fake_context


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """The model of the commands."""
    engine = FakeEncoder()
    monkeypatch.setattr(command_line, "build_context", lambda settings: fake_context(engine))
    monkeypatch.setattr(command_line, "setup_logging", lambda *args: None)
    return engine


def test_vectors(engine: FakeEncoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line per text, from the arguments or from standard input, whose blank lines are no texts."""
    assert server.main(["embed", "abc", "x", "--input-type", "query", "--dimensions", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [len(json.loads(line)) for line in lines] == [2, 2]
    assert engine.tokenized == [["abc", "x"]]
    monkeypatch.setattr("sys.stdin", io.StringIO("abc\n\n  x \n" + "y\n" * 300))
    assert server.main(["embed"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 302
    assert [len(texts) for texts in engine.tokenized[1:]] == [3, 1], "the same text is computed once"


def test_relevance(engine: FakeEncoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Score, number and text of each document, the best first; or the whole answer."""
    assert server.main(["rerank", "abc", "xyz", "c\nb", "--top-n", "1"]) == 0
    assert capsys.readouterr().out == "0.8808\t1\tc b\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("xyz\nabc\n"))
    assert server.main(["rerank", "abc", "--json"]) == 0
    assert [one["index"] for one in json.loads(capsys.readouterr().out)["results"]] == [1, 0]


def test_mistakes(engine: FakeEncoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told in the service's words, with status 1."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert server.main(["rerank", "abc"]) == 1
    assert "there are no documents" in capsys.readouterr().err
    assert server.main(["embed", "a" * 99]) == 1
    assert "the limit is 100 tokens; input.0 has 101 tokens" in capsys.readouterr().err
    assert server.main(["embed", "a" * 99, "--truncate", "end"]) == 0
