"""The options for a signing key, and the request signer built from them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from runtime.errors import InvalidRequest
from runtime.signatures import SignatureError
from runtime.signatures.client import Signer

SIGNING_VARIABLE = "SIGNING_SECRET"  # in the environment, because every user of the machine can see arguments


def add_key(parser: argparse.ArgumentParser, *, required: bool = False, default: object = None) -> None:
    """Add the options ``--key-id`` and ``--secret-file``, which ``signer`` reads.

    Args:
        parser: the command's parser.
        required: whether ``--key-id`` is required.
        default: the default of both; ``argparse.SUPPRESS`` if a parent parser sets them.
    """
    text = "sign the request with this key, created by warmstart keys create --signing"
    parser.add_argument("--key-id", required=required, default=default, help=text)
    text = f"a file with the key's secret in base64; or set {SIGNING_VARIABLE}"
    parser.add_argument("--secret-file", type=Path, default=default, help=text)


def signer(options: argparse.Namespace) -> Signer:
    """Return a signer for the key of ``--key-id``, with the secret of ``--secret-file`` or the environment.

    Raises:
        InvalidRequest: there is no secret, or it is invalid.
        OSError: the file cannot be read.
    """
    path: Path | None = options.secret_file
    secret = os.environ.get(SIGNING_VARIABLE, "") if path is None else path.read_text(errors="replace")
    if not secret:
        raise InvalidRequest(f"the signing key's secret is missing; set {SIGNING_VARIABLE} or --secret-file")
    try:
        return Signer(options.key_id, secret)
    except SignatureError as error:
        raise InvalidRequest(str(error)) from None
