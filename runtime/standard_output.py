"""Ends a command when nobody reads what it prints any more, as behind ``| head``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


def until_reader_leaves(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; 1 if the reader of its standard output has closed it.

    Args:
        command: the command. What it has printed is written before this function returns, because Python would report
            a closed pipe at exit, too.
    """
    try:
        status = command()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        return 1
    return status
