"""Writes the generated pages and charts of ``docs/``: ``PYTHONPATH=. python .ci/reference``.

With ``--check`` it writes nothing, names those that are not up to date, and its exit status is 1 if there are any.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import api
import chart
import commands
import errors
import metrics
import settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILES: Mapping[str, Callable[[], str]] = {
    "api.md": api.page,
    "commands.md": commands.page,
    "errors.md": errors.page,
    "metrics.md": metrics.page,
    "settings.md": settings.page,
    "speed.svg": chart.chart,
}


def main() -> int:
    """Write or check the files."""
    outdated = False
    for name, make in FILES.items():
        path, text = DOCS / name, make()
        if path.exists() and path.read_text() == text:
            continue
        outdated = True
        print(f"docs/{name}")
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
    return int(outdated and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
