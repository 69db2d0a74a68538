"""runtime.standard_output: commands whose reader leaves, as ``head`` does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.command_line import ROOT

COMMANDS = (
    ("server", "import sys, server; sys.exit(server.main(['config']))"),
    ("docs.learn", "import runpy; runpy.run_module('docs.learn', run_name='__main__')"),
)


@pytest.mark.parametrize(("name", "program"), COMMANDS, ids=[name for name, _ in COMMANDS])
@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_has_left(name: str, program: str, buffered: bool) -> None:
    """The status is 1, and nothing is reported, whether the pipe is found closed while printing or at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    options = [] if buffered else ["-u"]
    command = [sys.executable, *options, "-c", program]
    run = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (run.returncode, run.stderr) == (1, ""), name
