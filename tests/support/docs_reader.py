"""A reader of docs/ who copies its blocks into a shell."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.service import PROGRAM
from tests.support.models import ROOT

SERVICE = "http://127.0.0.1:8000"
PATIENCE = 180


def blocks(page: str, languages: str = "bash|python") -> list[tuple[str, str]]:
    """Return the fenced blocks of a page in some languages: language and text."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return re.findall(rf"^```({languages})\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def write_command(file: Path) -> None:
    """Write a program that is ``warmstart`` of this tree."""
    file.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -c "{PROGRAM}" "$@"\n')
    file.chmod(0o755)


@dataclass
class Reader:
    """Somebody who has installed Warmstart and copies blocks into a shell, in a folder of their own.

    Args:
        folder: that folder, which must not exist yet.
        changes: printed addresses, and what they are here.
    """

    folder: Path
    changes: dict[str, str]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        command = self.folder / "warmstart"
        write_command(command)
        path = f"{command.parent}:{os.environ['PATH']}"
        self.environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "LOG_FORMAT": "json"}

    def run(self, language: str, text: str, *, status: int = 0) -> str:
        """Run a block to its end; what it printed."""
        programs = {
            "bash": ["bash", "-euc"],
            "javascript": ["node", "--input-type=module", "-e"],
            "python": [sys.executable, "-c"],
        }
        run = subprocess.run(
            [*programs[language], self._here(text)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert run.returncode == status, f"{text}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def wait(self, url: str) -> None:
        """Wait until a URL is answered without an error."""
        self.run("bash", f"curl -sf --retry 90 --retry-all-errors --retry-delay 1 {url}")

    @contextmanager
    def running(self, command: str) -> Iterator[Path]:
        """Run a command that does not end by itself; its log."""
        log = self.folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-euc", f"exec {self._here(command)}"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        try:
            yield log
            assert process.poll() is None, log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()

    def _here(self, text: str) -> str:
        for printed, here in self.changes.items():
            text = text.replace(printed, here)
        return text
