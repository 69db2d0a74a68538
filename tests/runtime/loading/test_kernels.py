"""runtime.loading.kernels: kernels are compiled once where none were built."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.engine.native import build, library
from runtime.loading import kernels
from tests.support.soak import SOAK


@pytest.fixture(autouse=True)
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a package from a wheel: there are sources and no libraries."""
    monkeypatch.setattr(build, "FOLDER", tmp_path / "package")
    library.usable.cache_clear()
    yield
    library.usable.cache_clear()


@pytest.mark.skipif(not build.compiler(), reason="no C++ compiler; run: apt-get install g++")
def test_they_are_compiled_into_the_cache_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best level of this processor is compiled; a later process, and one without a compiler, finds it."""
    build.digest()  # is kept, with the true options
    monkeypatch.setattr(build, "OPTIONS", tuple(option for option in build.OPTIONS if option != "-O3" or SOAK))
    found = kernels.host_kernels(tmp_path)
    assert found is not None
    assert [path.name.split("-" + build.digest())[0] for path in (tmp_path / "kernels").glob("*.so")] == [found.level]
    library.usable.cache_clear()
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert kernels.host_kernels(tmp_path) is not None


def test_without_a_compiler_one_warning_says_what_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And how to get it back."""
    monkeypatch.setattr(build, "compiler", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert kernels.host_kernels(tmp_path) is None
        assert kernels.host_kernels(tmp_path) is None
    (record,) = caplog.records
    assert "several times more slowly" in record.message
    assert "apt-get install g++" in record.message


def test_a_cache_folder_that_cannot_be_written_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Models run through torch then."""
    monkeypatch.setattr(build, "compiler", lambda: "/bin/true")
    (tmp_path / "file").write_text("")
    assert kernels.host_kernels(tmp_path / "file") is None
    assert "CACHE_DIR" in caplog.text
