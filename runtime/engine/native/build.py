"""Compiles the C++ kernels: ``python -m runtime.engine.native.build``.

One library is built per instruction set level, so that an image built on this machine also runs well on others;
``runtime.engine.native.library`` loads the best one that the processor supports. The file names contain a digest of
the sources, so that a library built from other sources is never loaded.
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
    """An instruction set level that a library is compiled for.

    Args:
        name: the level's name, part of the library's file name.
        flags: instruction sets that ``runtime.host.cpu_flags`` must list.
        options: compiler options.
    """

    name: str
    flags: frozenset[str]
    options: tuple[str, ...]


_AVX2 = Level("avx2", frozenset(("avx2", "fma", "f16c")), ("-mavx2", "-mfma", "-mf16c"))
_AVX512 = Level(
    "avx512-vnni",
    _AVX2.flags | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", *_AVX2.options),
)
_AMX = Level("avx512-amx", _AVX512.flags | {"amx_tile", "amx_int8"}, ("-mamx-tile", "-mamx-int8", *_AVX512.options))
_X86 = (_AMX, _AVX512, _AVX2)
_DOT = Level("neon-dotprod", frozenset(("asimddp",)), ("-march=armv8.2-a+dotprod",))
_MATRIX = Level("neon-i8mm", _DOT.flags | {"i8mm"}, ("-march=armv8.2-a+dotprod+i8mm",))
_ARM = (_MATRIX, _DOT)
_ANY = (Level("generic", frozenset(), ()),)
_LEVELS = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}


def levels(machine: str | None = None) -> tuple[Level, ...]:
    """Return the levels of an architecture, best first.

    Args:
        machine: the architecture as ``platform.machine`` names it; by default that of this machine.
    """
    return _LEVELS.get(machine or platform.machine(), ()) + _ANY


@cache
def digest() -> str:
    """Return the first 16 hexadecimal digits of SHA-256 over the sources and the compiler options."""
    found = hashlib.sha256(repr((OPTIONS, [level.options for level in levels()])).encode())
    for file in sorted([*_HERE.glob("*.cpp"), *_HERE.glob("*.h")]):
        found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def path_of(level: Level, folder: Path | None = None) -> Path:
    """Return the path of a level's library.

    Args:
        level: the level.
        folder: the libraries' folder; by default ``FOLDER``, next to the sources.
    """
    return (folder or FOLDER) / f"{level.name}-{digest()}.so"


def compiler() -> str | None:
    """Return the path of the C++ compiler: ``CXX``, or the first of c++, g++ and clang++; None if there is none."""
    return next(
        (found for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name and (found := shutil.which(name))),
        None,
    )


def build() -> bool:
    """Compile all missing libraries into ``FOLDER``, and delete every other file there, such as outdated libraries.

    Returns:
        Whether there is a compiler.

    Raises:
        subprocess.CalledProcessError: the compiler failed; its messages are on stderr.
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
    """Compile libraries in parallel.

    Args:
        wanted: the levels to compile.
        folder: the output folder; each library is moved there atomically.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: the compiler failed; its messages are on stderr.
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
    """Build the libraries. A missing compiler is reported but is no failure: the torch decoder is used then."""
    if not build():
        sys.stderr.write(
            "no C++ compiler (c++, g++, clang++ or CXX): kernels are not built, models run through torch, more slowly\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
