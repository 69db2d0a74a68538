"""Options shared by several commands: settings and sampling parameters."""

from __future__ import annotations

import argparse
from typing import Any

from runtime.settings import Settings

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed")
"""The request fields that are also command line options."""


def settings_of(options: argparse.Namespace, **overrides: Any) -> Settings:
    """Return the environment's settings, overridden by ``--model`` and by the arguments that are not None.

    Args:
        options: the parsed options.
        overrides: settings by field name.

    Raises:
        SettingsError: a setting is wrong.
    """
    given = {"model_name": getattr(options, "model", None), **overrides}
    return Settings.load(**{name: value for name, value in given.items() if value is not None})


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``SAMPLING`` and ``--max-new-tokens``."""
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--stop", action="append")
    parser.add_argument("--seed", type=int)


def sampled(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of ``SAMPLING`` that were given."""
    return {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
