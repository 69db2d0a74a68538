"""Runs the compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer: ``make sanitize``.

First come the native tests, with every instruction level that this processor supports, on libraries instrumented by
g++; then libFuzzer on ``tests/runtime/engine/native/fuzz_step.cpp``, which needs clang. ``SECONDS`` is the fuzzer's
time for each level (60). As root on Debian, missing programs are installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from runtime.engine.native import build
from runtime.host import cpu_flags

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests/runtime/engine/native"
FOLDER = ROOT / "build/sanitize"
SANITIZE = ("-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
PACKAGES = {"g++": "g++", "clang++": "clang libclang-rt-dev", "llvm-symbolizer": "llvm"}


def main() -> int:
    """Run both parts, and return the exit status of the first that fails."""
    install()
    os.environ["CXX"] = "g++"  # its sanitizers' runtime is preloaded below
    build.OPTIONS = (*build.OPTIONS, *SANITIZE, "-fsanitize=address,undefined")
    build.FOLDER = FOLDER / "kernels"
    if sys.argv[1:] == ["tests"]:
        import pytest

        # The test that limits memory would limit AddressSanitizer's.
        files = [str(TESTS / name) for name in ("test_check.py", "test_experts.py", "test_runner.py")]
        return pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not no_memory", *files])
    FOLDER.mkdir(parents=True, exist_ok=True)
    build.build()
    return native_tests() or fuzz()


def install() -> None:
    """Install the missing Debian packages, or exit with a message that names them."""
    missing = " ".join(packages for program, packages in PACKAGES.items() if shutil.which(program) is None)
    if not missing:
        return
    if os.geteuid() or shutil.which("apt-get") is None:
        sys.exit(f"make sanitize needs more programs; on Debian: apt-get install {missing}")
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *missing.split()]):
        command = [shutil.which("apt-get") or "apt-get", "-qq", *arguments]
        subprocess.run(command, check=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})


def native_tests() -> int:
    """Run the native tests in a Python whose memory, numpy's included, comes from AddressSanitizer's allocator."""
    preloaded = [
        subprocess.check_output([build.compiler() or "g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    options = {
        # Python frees no memory when it exits, and torch's libraries have their own allocators and symbols.
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:detect_odr_violation=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": " ".join(preloaded),
    }
    return subprocess.run(
        [sys.executable, __file__, "tests"], env=os.environ | options, cwd=ROOT, check=False
    ).returncode


def fuzz() -> int:
    """Run the fuzz target for each level, starting with the corpus of earlier runs."""
    known = [level for level in build.levels() if level.flags <= cpu_flags()]
    corpus = FOLDER / "corpus"
    corpus.mkdir(exist_ok=True)
    # Without F16C, clang before 15 has no half-precision type, so `generic` is fuzzed only where no other level runs.
    for level in [level for level in known if level.flags] or known:
        program = FOLDER / f"fuzz-{level.name}"
        flags = [option for option in build.OPTIONS if option not in ("-shared", "-fPIC", "-O3")]
        command = ["clang++", *flags, "-fsanitize=fuzzer", *level.options, "-I", str(ROOT / "runtime/engine/native")]
        subprocess.run([*command, str(TESTS / "fuzz_step.cpp"), "-o", str(program)], check=True)
        limits = [f"-max_total_time={os.environ.get('SECONDS', '60')}", "-timeout=20", "-rss_limit_mb=2048"]
        shape = ["-max_len=512", "-len_control=10", "-print_final_stats=1", f"-artifact_prefix={FOLDER}/"]
        sys.stdout.write(f"fuzzing {level.name}\n")
        sys.stdout.flush()
        if status := subprocess.run([program, corpus, *limits, *shape, "-verbosity=0"], check=False).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
