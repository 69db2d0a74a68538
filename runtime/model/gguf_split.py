"""Names of the parts of a split GGUF, as llama.cpp's ``gguf-split`` gives them: ``NAME-00001-of-00003.gguf``.

Only names are read here. Whether the parts belong together is checked from their metadata by
``runtime.loading.gguf_loading``.
"""

from __future__ import annotations

import re
from pathlib import Path

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


def parts(file: Path) -> list[Path]:
    """The files that make up a GGUF, in their order, whether they exist or not.

    Args:
        file: a GGUF, or any part of a split one.

    Returns:
        Every part of a split GGUF; the file alone if its name is not a part's.
    """
    found = _part(file)
    if found is None:
        return [file]
    name, count, suffix = found.group("name", "count", "suffix")
    return [file.with_name(f"{name}-{number:05}-of-{count}{suffix}") for number in range(1, int(count) + 1)]


def model_name(file: Path) -> str:
    """The file's name without its suffix, and without the number that a part has."""
    found = _part(file)
    return found["name"] if found else file.stem


def _part(file: Path) -> re.Match[str] | None:
    found = _PART.fullmatch(file.name)
    return found if found and 1 <= int(found["number"]) <= int(found["count"]) else None
