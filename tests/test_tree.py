"""The source tree: one class name for one thing, and a map of it that is true."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

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


def test_the_architecture_names_files_that_exist() -> None:
    """Each path in docs/architecture.md is there; the place of something that is to be added is written in capitals."""
    text = (ROOT / "docs/architecture.md").read_text()
    paths = set(re.findall(r"`((?:handlers|runtime|middleware|views|tests)/[\w/.]+)`", text))
    assert len(paths) > 30
    assert [path for path in sorted(paths) if "NAME" not in path and not (ROOT / path).exists()] == []
