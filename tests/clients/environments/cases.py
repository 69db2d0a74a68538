"""Runs the functions ``case_*`` of a client's script, which a client's own environment imports: standard library only.

Prints one line of JSON for each case: its name, and the error if it failed. The script reads the service's address from
the environment: ``WARMSTART_URL`` (needs no key), ``WARMSTART_URL_WITH_KEYS``, ``WARMSTART_MODEL`` and
``WARMSTART_EMBEDDER``. A search finds ``ANSWER`` in ``CORPUS`` for ``QUESTION``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ.get("WARMSTART_URL", "http://127.0.0.1:8000")
WITH_KEYS = os.environ.get("WARMSTART_URL_WITH_KEYS", "http://127.0.0.1:8001")
MODEL = os.environ.get("WARMSTART_MODEL", "smollm2-135m-instruct")
KEY = "none-needed"
EMBEDDER = os.environ.get("WARMSTART_EMBEDDER", "all-minilm-l6-v2")
CORPUS = [
    "Bread rises because yeast makes gas.",
    "Bees see ultraviolet light and find flowers by it.",
    "The council raised the price of bus tickets.",
    "The river carries sand to the sea.",
]
QUESTION = "How do insects look for food?"
ANSWER = CORPUS[1]


def raises(error: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], Any]) -> Any:
    """Return the exception that ``call`` raises; AssertionError if it raises none, any other if that is another."""
    try:
        result = call()
    except error as exc:
        return exc
    raise AssertionError(f"no error, but {result!r}")


async def araises(error: type[BaseException] | tuple[type[BaseException], ...], awaitable: Any) -> Any:
    """As ``raises``, for an awaitable."""
    try:
        result = await awaitable
    except error as exc:
        return exc
    raise AssertionError(f"no error, but {result!r}")


def main(namespace: dict[str, Any]) -> None:
    """Run the functions ``case_*`` of a module's namespace; those named in the arguments only, if there are any."""
    with asyncio.Runner() as runner:  # one loop for all, since clients share connections
        for name, case in list(namespace.items()):
            if not name.startswith("case_") or (sys.argv[1:] and name[5:] not in sys.argv[1:]):
                continue
            error = None
            try:
                if inspect.iscoroutinefunction(case):
                    runner.run(case())
                else:
                    case()
            except Exception:
                error = traceback.format_exc()
            print(json.dumps({"case": name[5:], "error": error}), flush=True)
