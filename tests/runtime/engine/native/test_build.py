"""Compiling the kernels."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from runtime.engine.native import build, library
from tests.support.soak import SOAK


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries go, empty."""
    monkeypatch.setattr(build, "FOLDER", tmp_path / "build")
    return tmp_path / "build"


@pytest.mark.skipif(not build.compiler(), reason="no C++ compiler; run: apt-get install g++")
def test_every_level_is_built_and_what_is_stale_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level gets a library, libraries of other sources are deleted, and a second build compiles nothing."""
    build.digest()  # is kept, of the true sources
    folder.mkdir()
    if not SOAK:  # make test has compiled the kernels already, and test_no_warning reads them at every level
        (folder.parent / "decoder.cpp").write_text('extern "C" int warmstart_permitted() { return 1; }')
        monkeypatch.setattr(build, "_HERE", folder.parent)
    (folder / "avx2-0123456789abcdef.so").write_bytes(b"old")
    assert build.build()
    made = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(made) == {build.path_of(level) for level in build.levels()}
    assert build.main() == 0
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == made


def test_without_a_compiler_nothing_is_built_and_it_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No compiler is no failure: the message says what serves instead."""
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert build.main() == 0
    assert "torch" in capsys.readouterr().err
    assert not folder.exists()


def test_a_compiler_that_refuses_leaves_nothing_half_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed compilation is an error, and no library lies where one would be looked for."""
    monkeypatch.setattr(build, "compiler", lambda: shutil.which("false"))
    with pytest.raises(build.subprocess.CalledProcessError):
        build.build()
    assert not [path for level in build.levels() if (path := build.path_of(level)).exists()]


def test_only_what_the_processor_knows_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without the flags of a level never loads its library."""
    monkeypatch.setattr(library, "cpu_flags", frozenset)
    assert {kernels.level for kernels in library.usable.__wrapped__()} <= {"generic"}
