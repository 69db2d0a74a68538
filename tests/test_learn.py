"""The course: pages with a fixed order, paths that exist, exercises that are open, and solutions that pass."""

from __future__ import annotations

import re

import pytest

from docs.learn.judge import NAMES, PAGES, judge, solution, started
from tests.support.models import ROOT

PARTS = [
    "The idea",
    "Where to see it",
    "Why it is done so",
    "What goes wrong otherwise",
    "Exercise",
    "From here to ours",
]
PATH = re.compile(
    r"`((?:[a-zA-Z.][\w.-]*/)+[\w.-]*|[\w.-]+\.(?:py|cfg|toml|yml)|Dockerfile|\.dockerignore)(?:::(\w+))?`"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_all_parts(name: str) -> None:
    """A reader finds the same parts in the same order on each page."""
    assert re.findall(r"^## (.*)$", (PAGES / f"{name}.md").read_text(), re.MULTILINE) == PARTS


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_paths_of_a_page_exist(name: str) -> None:
    """Each path is a file or folder here, and contains the name that follows it."""
    found = PATH.findall((PAGES / f"{name}.md").read_text())
    assert name == "index" or len(found) >= 6
    for path, symbol in found:
        assert (ROOT / path).exists(), path
        assert not symbol or re.search(rf"\b{symbol}\b", (ROOT / path).read_text()), (path, symbol)


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_each_check(name: str) -> None:
    """The solution that a page hides satisfies the judge."""
    assert [(behaviour, problem) for behaviour, problem in judge(name, solution(name)) if problem] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_is_open(name: str) -> None:
    """What a learner starts from fails a check, so the judge judges."""
    assert any(problem for _, problem in judge(name, started(name)))
