"""The wheel: it holds the tree's sources and no machine code, and its metadata agrees with the pinned requirements."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.models import ROOT
from tests.support.source_copy import copy_source

PACKAGES = ("deploy", "handlers", "loadtests/load", "middleware", "runtime", "views")
MODULES = ("app.py", "server.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("wheel") / "source"
    copy_source(source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", ".", "."]
    subprocess.run(command, cwd=source, check=True)
    (file,) = source.glob("*.whl")
    return zipfile.ZipFile(file)


def _metadata(wheel: zipfile.ZipFile) -> list[Requirement]:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return [Requirement(line) for line in Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist") or []]


def _pins(file: Path) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    pins = (line.split("==") for line in lines if line and not line.startswith("-r "))
    return {name.partition("[")[0]: version for name, version in pins}


def test_its_files_are_the_trees(wheel: zipfile.ZipFile) -> None:
    """Every tracked file of the packages, and nothing that was compiled here."""
    command = ["git", "ls-files", *PACKAGES, *MODULES]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    tracked = {name for name in listed.stdout.splitlines() if not name.endswith((".gitattributes", ".md"))}
    # Of deploy/ the Python package only: the rest is for other programs.
    assert held == {name for name in tracked if not name.startswith("deploy/") or name.endswith((".py", "py.typed"))}
    assert not [name for name in held if name.endswith(".so")]
    assert {f"{package}/py.typed" for package in PACKAGES} <= held


def test_it_takes_no_name_that_another_distribution_has(wheel: zipfile.ZipFile) -> None:
    """Top-level names are common words: installed beside others, each is ours alone."""
    owners = packages_distributions()
    names = {name.partition("/")[0].removesuffix(".py") for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {*(package.partition("/")[0] for package in PACKAGES), "app", "server"}
    assert {name: owners[name] for name in names if set(owners.get(name, ["warmstart"])) != {"warmstart"}} == {}


def test_its_ranges_hold_what_is_tested(wheel: zipfile.ZipFile) -> None:
    """Each requirement is a range around the version that is pinned in requirements/, and none is missing."""
    needed = _metadata(wheel)
    files = ["base", "slim", "functions", "kafka", "lambda", "load", "nats", "otel", "rabbitmq", "ray"]
    pins = {name: version for file in files for name, version in _pins(ROOT / f"requirements/{file}.txt").items()}
    assert {requirement.name for requirement in needed} == set(pins)
    for requirement in needed:
        assert pins[requirement.name] in requirement.specifier, requirement
        assert not any(part.operator == "==" for part in requirement.specifier), requirement
