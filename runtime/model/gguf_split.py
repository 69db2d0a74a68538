"""Names the parts of a split GGUF file as llama.cpp's ``gguf-split`` does: ``NAME-00001-of-00003.gguf``.

Only names are used here. ``runtime.model.gguf_header`` checks from the metadata that the parts belong together.
"""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def parts(file: Path) -> list[Path]:
    """Return the files that a GGUF model consists of, in order, whether they exist or not.

    Args:
        file: a GGUF file, or any part of a split one.

    Returns:
        All parts of a split file; the file alone if its name is not that of a part.
    """
    found = _part(file)
    if found is None:
        return [file]
    name, count, suffix = found.group("name", "count", "suffix")
    return [file.with_name(f"{name}-{number:05}-of-{count}{suffix}") for number in range(1, int(count) + 1)]


def model_name(file: Path) -> str:
    """Return the file's name without its suffix and without a part's number."""
    found = _part(file)
    return found["name"] if found else file.stem


def _part(file: Path) -> re.Match[str] | None:
    found = _PART.fullmatch(file.name)
    return found if found and 1 <= int(found["number"]) <= int(found["count"]) else None
