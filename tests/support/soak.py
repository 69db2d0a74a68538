"""Sizes of long tests: ``make test`` runs a short form of them, ``make soak`` the full one."""

from __future__ import annotations

import os

SOAK = os.environ.get("SOAK", "") not in ("", "0")


def soak(full: int, short: int | None = None) -> int:
    """Return a number of examples, messages or kills.

    Args:
        full: the number with ``SOAK=1`` in the environment.
        short: the number otherwise; by default a tenth of ``full``.
    """
    return full if SOAK else short or max(1, full // 10)
