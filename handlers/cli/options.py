"""Options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from runtime.settings import Settings

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "stop", "seed")
"""Request fields that are options too."""


def settings_of(options: argparse.Namespace, **overrides: Any) -> Settings:
    """The environment's, with what the options say instead.

    Raises:
        SettingsError: one is wrong.
    """
    given = {"model_name": getattr(options, "model", None), **overrides}
    return Settings.load(**{name: value for name, value in given.items() if value is not None})


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options for those request fields, and for the number of new tokens."""
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--stop", action="append")
    parser.add_argument("--seed", type=int)


def sampled(options: argparse.Namespace) -> dict[str, Any]:
    """The sampling fields that were given."""
    return {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
