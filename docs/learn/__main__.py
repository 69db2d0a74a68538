"""Judges exercises of the course.

``python -m docs.learn`` lists the exercises, ``python -m docs.learn NAME`` judges ``docs/learn/exercises/NAME.py``, and
with ``--solution`` the solution that ``docs/learn/NAME.md`` hides.
"""

from __future__ import annotations

import sys

from docs.learn.judge import NAMES, judge, solution, started
from runtime.standard_output import until_reader_leaves


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status, 1 if a check fails."""
    names = [argument for argument in arguments if argument != "--solution"]
    if len(names) != 1 or names[0] not in NAMES:
        print(f"python -m docs.learn NAME [--solution]\n\nNAME: {', '.join(NAMES)}")
        return 2 if names else 0
    (name,) = names
    failed = False
    for behaviour, problem in judge(name, solution(name) if "--solution" in arguments else started(name)):
        failed |= problem is not None
        print(f"{'ok  ' if problem is None else 'FAIL'} {behaviour}" + (f"\n     {problem}" if problem else ""))
    return int(failed)


if __name__ == "__main__":
    sys.exit(until_reader_leaves(lambda: main(sys.argv[1:])))
