"""The options of commands that call a running service, and the client built from them."""

from __future__ import annotations

import argparse
import os
from typing import Any

from handlers.cli.credentials import add_key, signer
from handlers.cli.options import settings_of
from handlers.cli.remote import Remote, default_url


def add_service(parser: argparse.ArgumentParser, *, child: bool = False) -> None:
    """Add ``--url``, ``--api-key`` and the options of a signing key.

    Args:
        parser: the command's parser.
        child: whether a parent parser has the same options, whose values are kept.
    """
    default: Any = argparse.SUPPRESS if child else None
    parser.add_argument(
        "--url",
        default=default,
        help="the service's URL, http://HOST:PORT or unix:PATH; by default that of HOST and PORT",
    )
    parser.add_argument(
        "--api-key",
        default=default or os.environ.get("API_KEY"),
        help="the API key, sent as a bearer token; or set API_KEY",
    )
    add_key(parser, default=default)


def remote_of(options: argparse.Namespace) -> Remote:
    """Return a client of the service that the options name.

    Raises:
        SettingsError: a setting is wrong.
        InvalidRequest: the signing key's secret is missing or invalid.
    """
    settings = settings_of(options)
    sign = signer(options).headers if options.key_id else None
    return Remote(options.url or default_url(settings.host, settings.port), options.api_key, sign)
