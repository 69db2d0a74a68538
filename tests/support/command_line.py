"""Runs ``warmstart`` in processes forked from one that has imported it and PyTorch, which alone takes two seconds.

Where a process's start itself is tested, or its encoding, tests start one themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PRELOAD = ["tests.support.command_line", "app", "server", "handlers.local", "torch", "transformers"]
_STREAMS = ("stdin", "stdout", "stderr")


def warmstart(*arguments: str, stdin: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        arguments: the subcommand and its arguments.
        stdin: its input.
        settings: environment variables, beside those of this process.

    Raises:
        TimeoutError: it has not ended after five minutes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for stream in _STREAMS:
            (folder / stream).write_text(stdin if stream == "stdin" else "")
        environment = os.environ | {"LOG_FORMAT": "json"} | settings
        process = context.Process(target=_run, args=(arguments, dict(environment), folder))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"warmstart {' '.join(arguments)}: {(folder / 'stderr').read_text()}")
        output, errors = ((folder / stream).read_text() for stream in _STREAMS[1:])
        return subprocess.CompletedProcess(arguments, process.exitcode, output, errors)


def _run(arguments: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> None:
    """Run a command in this process, with the folder's files as its standard streams."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for number, name in enumerate(_STREAMS):
        opened = os.open(folder / name, os.O_RDONLY if number == 0 else os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
        setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    import server

    sys.exit(server.main(list(arguments)))
