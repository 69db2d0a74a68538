"""Progress: a bar for a terminal, lines for a log."""

from __future__ import annotations

import io
import logging

import pytest

from runtime.model.progress import LoadProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(caplog: pytest.LogCaptureFixture) -> None:
    """The bar shows the model, the stage and how far it is; nothing is logged."""
    caplog.set_level(logging.INFO)
    out = Terminal()
    reporter = LoadProgress("m", out)
    reporter("downloading", 0.0)
    reporter("downloading", 1.0)
    reporter("reading weights", None)
    reporter.close()
    assert "m: downloading" in out.getvalue()
    assert "100%" in out.getvalue()
    assert "m: reading weights" in out.getvalue()
    assert caplog.records == []


def test_elsewhere_lines_are_logged_but_not_for_every_step(caplog: pytest.LogCaptureFixture) -> None:
    """A line when a stage begins, then one every few seconds, however often progress is reported."""
    caplog.set_level(logging.INFO)
    out = io.StringIO()
    reporter = LoadProgress("m", out)
    for step in range(1000):
        reporter("downloading", step / 1000)
    reporter("warming up", None)
    reporter.close()
    assert [record.getMessage() for record in caplog.records] == ["m: downloading 0%", "m: warming up"]
    assert out.getvalue() == ""
