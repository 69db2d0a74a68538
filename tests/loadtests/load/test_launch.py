from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import server
from loadtests.load import launch
from loadtests.load.options import add_options, arguments, check_options
from loadtests.load.report import write_json
from tests.loadtests.load.records import report


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(words)


def test_options_go_to_the_generator_unchanged() -> None:
    """But for the key, which is not for the list of processes."""
    words = [
        "chat",
        "--host=http://x:1",
        "--workers=2",
        "--seed=0",
        "--out=folder",
        "--quiet",
        "--model=m",
        "--web-port=8089",
    ]
    options = parsed(*words)
    assert parsed(*arguments(options)) == options
    assert "secret" not in " ".join(arguments(parsed("chat", "--api-key=secret")))


@pytest.mark.parametrize(
    "words",
    [[], ["chat", "--worker"], ["chat", "--workers=2", "--expect-workers=2"], ["chat", "--workers=99"]],
)
def test_options_that_do_not_fit_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As the command line refuses all wrong usage."""
    with pytest.raises(SystemExit) as end:
        check_options(argparse.ArgumentParser(), parsed(*words))
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_without_locust_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a checkout, and as a package."""
    monkeypatch.setattr(launch, "locust_python", lambda: None)
    assert server.main(["load", "chat"]) == 2
    said = capsys.readouterr().err
    assert "make .venv-load/.done" in said
    assert "pip install 'warmstart[load]'" in said


def test_two_reports_are_compared_without_locust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status is for CI."""
    ratios = {"scenario": {"name": "x", "compare": {"p99_ttft_ms": 1.1}}}
    for name, value in (("a", 100.0), ("b", 105.0), ("c", 150.0)):
        write_json(tmp_path / f"{name}.json", report({"p99_ttft_ms": value}, **ratios).model_dump(mode="json"))
    a, b, c = (str(tmp_path / f"{name}.json") for name in "abc")
    assert server.main(["load", "--compare", a, b]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert server.main(["load", "--compare", a, c]) == 1
    assert "WORSE" in capsys.readouterr().out
    assert server.main(["load", "--compare", a, "nowhere"]) == 2
