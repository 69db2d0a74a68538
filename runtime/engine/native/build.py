"""Compile the kernels: ``python -m runtime.engine.native.build``.

One library for each level of the processor's instructions is made, so that an image built here runs well elsewhere;
``runtime.engine.native.library`` takes the best that the machine knows. The files' names hold a digest of the sources:
a library of other sources is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
FOLDER = _HERE / "build"
OPTIONS = ("-std=c++17", "-O3", "-fno-math-errno", "-Wno-psabi", "-shared", "-fPIC", "-pthread")


@dataclass(frozen=True, slots=True)
class Level:
    """A set of instructions.

    Args:
        name: of the library.
        flags: what /proc/cpuinfo must list.
        options: for the compiler.
    """

    name: str
    flags: frozenset[str]
    options: tuple[str, ...]


_X86 = (
    Level(
        "avx512-vnni",
        frozenset(("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx2", "fma", "f16c")),
        ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c"),
    ),
    Level("avx2", frozenset(("avx2", "fma", "f16c")), ("-mavx2", "-mfma", "-mf16c")),
)
_ANY = (Level("generic", frozenset(), ()),)


def levels() -> tuple[Level, ...]:
    """What can be built for this architecture, best first."""
    return (_X86 if platform.machine() in ("x86_64", "AMD64") else ()) + _ANY


@cache
def digest() -> str:
    """Of the sources and the way they are compiled."""
    found = hashlib.sha256(repr((OPTIONS, [level.options for level in levels()])).encode())
    for file in sorted([*_HERE.glob("*.cpp"), *_HERE.glob("*.h")]):
        found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def path_of(level: Level, folder: Path | None = None) -> Path:
    """Where a level's library lies.

    Args:
        level: the level.
        folder: of the libraries; the one beside the sources if left out.
    """
    return (folder or FOLDER) / f"{level.name}-{digest()}.so"


def compiler() -> str | None:
    """The C++ compiler: ``CXX``, or the first that is found."""
    return next(
        (found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))),
        None,
    )


def build() -> bool:
    """Compile every level that is missing beside the sources, and delete what other sources left there.

    Returns:
        Whether there is a compiler.

    Raises:
        subprocess.CalledProcessError: it refused; what it said is on stderr.
    """
    if compiler() is None:
        return False
    FOLDER.mkdir(exist_ok=True)
    wanted = {path_of(level): level for level in levels()}
    for left in set(FOLDER.glob("*")) - set(wanted):
        left.unlink(missing_ok=True)
    compile_levels([level for path, level in wanted.items() if not path.exists()], FOLDER)
    return True


def compile_levels(wanted: Sequence[Level], folder: Path) -> None:
    """Compile libraries, at the same time.

    Args:
        wanted: their levels.
        folder: where they go; a library is there whole or not at all.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: the compiler refused; what it said is on stderr.
    """
    program = compiler()
    if program is None:
        raise FileNotFoundError("no C++ compiler")
    running = []
    for level in wanted:
        path = path_of(level, folder)
        partial = path.with_suffix(f".{os.getpid()}")
        command = [program, *OPTIONS, *level.options, str(_HERE / "decoder.cpp"), "-o", str(partial)]
        running.append((subprocess.Popen(command), command, partial, path))  # noqa: S603 - our own command
    for process, command, partial, path in running:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
        os.replace(partial, path)


def main() -> int:
    """Build, and say how it went. A missing compiler is no failure: the torch decoder then serves."""
    if not build():
        sys.stderr.write(
            "no C++ compiler (c++, g++, clang++ or CXX): kernels are not built, models run through torch, more slowly\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
