"""The kernels as other compilers and another architecture compile them: warnings, and the numbers that they compute."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.engine.native import build
from runtime.host import cpu_flags
from tests.support.soak import SOAK

ROOT = Path(__file__).resolve().parents[4]
SOURCES = ROOT / "runtime/engine/native"
PROGRAM = Path(__file__).parent / "level_outputs.cpp"
MODELS = 46  # as random_models.h has them; every third of 36 in float32, the first twelve with float32 keys and values
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
NATIVE = build.levels()
*ARM, GENERIC = build.levels("aarch64")

needs_emulator = pytest.mark.skipif(
    platform.machine() != "x86_64" or not all(map(shutil.which, (CROSS_COMPILER, EMULATOR, "g++"))),
    reason="compiles for Arm on x86; run: make arm, or apt-get install g++ g++-aarch64-linux-gnu qemu-user",
)


def compiled(compiler: str, options: Sequence[str], target: Path) -> Path:
    """Compile the program that writes logits."""
    shared = [option for option in build.OPTIONS if option not in ("-shared", "-fPIC", "-O3")]
    # Faster to compile than -O2 and -O3, and contracts products and sums as they do.
    optimization = ["-O2"] if SOAK else ["-O1", "-fexpensive-optimizations"]
    command = [
        compiler,
        *optimization,
        *shared,
        *options,
        "-static",
        "-I",
        str(SOURCES),
        str(PROGRAM),
        "-o",
        str(target),
    ]
    subprocess.run(command, check=True)
    return target


def written(*command: str | Path) -> NDArray[np.float32]:
    """Run a program and return the logits that it writes, a row for each model."""
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(output, np.float32).reshape(MODELS, -1)


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
@pytest.mark.parametrize("level", NATIVE, ids=lambda level: level.name)
def test_no_warning(compiler: str, level: build.Level) -> None:
    """Both compilers accept the kernels of every level as C++17 with all warnings turned into errors."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}; run: apt-get install {'clang' if compiler == 'clang++' else compiler}")
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fsyntax-only", *level.options]
    subprocess.run([compiler, *options, str(SOURCES / "decoder.cpp")], check=True)


@needs_emulator
@pytest.mark.timeout(900)  # compiles the kernels several times
def test_arm(tmp_path: Path) -> None:
    """On Arm every level computes the same bits as the generic one, and what x86 does but for the last digits."""
    here = written(compiled("g++", [], tmp_path / "here"))
    generic, *others = [
        written(EMULATOR, compiled(CROSS_COMPILER, level.options, tmp_path / level.name))
        for level in (GENERIC, *(ARM if SOAK else ARM[:1]))
    ]
    for found in others:
        assert np.array_equal(found, generic)
    largest, difference = np.abs(here).max(axis=1), np.abs(generic - here).max(axis=1)
    assert np.isfinite(here).all()
    assert (difference[:12:3] < 1e-5 * largest[:12:3]).all()
    assert (difference[:36] < 1e-3 * largest[:36]).all()  # a code or a half may be rounded the other way
    assert (difference[36:] < 2e-2 * largest[36:]).all()  # wider models, with more such codes, and those with experts


@pytest.mark.skipif(not {"amx_tile", "amx_int8"} <= cpu_flags(), reason="needs a processor with AMX")
def test_amx(tmp_path: Path) -> None:
    """Products in AMX tiles are the same bits as those in AVX-512 vectors."""
    levels = {level.name: level for level in NATIVE}
    tiles, vectors = (
        written(compiled("g++", levels[name].options, tmp_path / name)) for name in ("avx512-amx", "avx512-vnni")
    )
    assert np.array_equal(tiles, vectors)
