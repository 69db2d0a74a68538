"""loadtests.environments: an environment that several tests need is made once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loadtests.environments import make_once


def test_several_at_once(tmp_path: Path) -> None:
    """One installs; the others wait until it is complete."""
    folder = tmp_path / "build/name"
    made: list[int] = []

    def install() -> None:
        made.append(1)
        time.sleep(0.2)
        (folder / "program").touch()

    def use(_: int) -> bool:
        make_once(folder, install)
        return (folder / "program").exists()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [True] * 4
    assert made == [1]


def test_one_that_failed(tmp_path: Path) -> None:
    """What an installation that failed has left is removed, and the next call installs again."""
    folder = tmp_path / "name"

    def fail() -> None:
        (folder / "half").touch()
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        make_once(folder, fail)
    make_once(folder, (folder / "program").touch)
    assert {path.name for path in folder.iterdir()} == {"program", "installed"}
