"""Runs an exercise's checks: each function ``check_*`` of ``docs/learn/judges/NAME.py``, on the exercise's module."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

NAMES = (
    "api_design",
    "generation",
    "errors",
    "python_practice",
    "middleware",
    "access_control",
    "resources",
    "testing",
    "model_management",
    "containers",
)
"""The exercises, in the order of the course."""
PAGES = Path(__file__).resolve().parent
_SOLUTION = re.compile(r"<details[^>]*>\s*<summary>Solution.*?```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SECONDS = 10  # that a check may wait


def judge(name: str, exercise: ModuleType) -> Iterator[tuple[str, str | None]]:
    """Yield each check's behaviour in a sentence, and what is wrong with it, or None.

    Args:
        name: one of ``NAMES``.
        exercise: the module to judge.
    """
    logger = logging.getLogger("aiohttp.server")
    if not logger.handlers:  # it would print each exception of a handler
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    checks = importlib.import_module(f"docs.learn.judges.{name}")
    for title, check in vars(checks).items():
        if title.startswith("check_"):
            behaviour = " ".join(inspect.getdoc(check).split())
            try:
                if inspect.iscoroutinefunction(check):
                    asyncio.run(_limited(check, exercise))
                else:
                    check(exercise)
            except Exception as error:  # whatever a learner's code raises is a result
                where = traceback.extract_tb(error.__traceback__)[-1].line
                yield behaviour, f"{type(error).__name__}: {str(error) or where}"
            else:
                yield behaviour, None


async def _limited(check: object, exercise: ModuleType) -> None:
    async with asyncio.timeout(_SECONDS):
        await check(exercise)  # type: ignore[operator]


def started(name: str) -> ModuleType:
    """Return the module of an exercise, as the learner has left it."""
    return importlib.import_module(f"docs.learn.exercises.{name}")


def solution(name: str) -> ModuleType:
    """Return the solution of an exercise, which is the code in its page."""
    found = _SOLUTION.search((PAGES / f"{name}.md").read_text())
    if found is None:
        raise LookupError(f"docs/learn/{name}.md has no solution")
    module = ModuleType(f"solution_of_{name}")
    sys.modules[module.__name__] = module  # where dataclasses and Pydantic look names up
    exec(compile(found[1], f"docs/learn/{name}.md", "exec"), vars(module))  # noqa: S102 - our own pages
    return module
