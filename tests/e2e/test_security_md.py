"""SECURITY.md: every claim names a test, and every test it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.support.models import ROOT

TEXT = (ROOT / "SECURITY.md").read_text()
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _claims() -> list[tuple[str, str]]:
    """(claim, what shows it) of each row of the table, without its headings."""
    section = TEXT.partition("## What each layer prevents")[2].partition("\n## ")[0]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in section.splitlines() if "|" in line]
    return [(row[0], row[1]) for row in rows[2:] if not re.fullmatch(r"\*\*[^*]+\*\*", row[0])]


@cache
def _tests(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


@pytest.mark.parametrize(("claim", "shown"), _claims())
def test_a_claim_names_a_test(claim: str, shown: str) -> None:
    """Each row names one test or more, and nothing else."""
    assert claim
    assert _TEST.findall(shown)
    assert not _TEST.sub("", shown).strip(" ,")


@pytest.mark.parametrize(("path", "name"), sorted(set(_TEST.findall(TEXT))))
def test_what_is_named_is_there(path: str, name: str) -> None:
    """The file exists and has a test of that name."""
    assert name.startswith("test_")
    assert name in _tests(path)


def test_settings_that_it_names_exist() -> None:
    """A checklist with a setting that is gone helps nobody."""
    from runtime.settings import Settings

    named = set(re.findall(r"`([A-Z][A-Z_]+[A-Z])(?:=\w+)?`", TEXT))
    assert len(named) > 20
    assert named <= {name.upper() for name in Settings.model_fields}


def test_the_claims_are_found() -> None:
    """The premise: the table is read as a table."""
    assert len(_claims()) > 30
