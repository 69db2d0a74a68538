"""The source tree: one class name for one thing, and a map of it that is true."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.models import ROOT


def _sources() -> list[Path]:
    folders = ("handlers", "loadtests", "middleware", "runtime", "views")
    return [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]


def test_no_class_name_stands_twice() -> None:
    """A public class name means one thing in the whole tree, so that a search for it finds one."""
    places = defaultdict(list)
    for path in _sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


@pytest.mark.parametrize(("page", "least"), [("docs/architecture.md", 30), ("CONTRIBUTING.md", 20)])
def test_the_map_names_files_that_exist(page: str, least: int) -> None:
    """Each path in the pages for those who change the code is there. The place of something that is to be added is
    written in capitals, or is that of the example's operation ``count``.
    """
    text = (ROOT / page).read_text()
    paths = set(re.findall(r"`((?:handlers|runtime|middleware|views|tests|loadtests)/[\w/.]+)`", text))
    assert len(paths) > least
    added = re.compile(r"NAME|\bcount\.py|test_count\.py")
    assert [path for path in sorted(paths) if not added.search(path) and not (ROOT / path).exists()] == []
