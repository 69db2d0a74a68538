"""The signing key that commands take, and the signer made from it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from runtime.errors import InvalidRequest
from runtime.signatures import SignatureError
from runtime.signatures.client import Signer

_VARIABLE = "SIGNING_SECRET"  # in the environment; an argument would be seen by everybody on the machine


def add_key(parser: argparse.ArgumentParser, *, required: bool = False, default: object = None) -> None:
    """The options that ``signer`` reads.

    Args:
        default: of each; ``argparse.SUPPRESS`` where a parser around this one has set it.
    """
    text = "sign with this key, made by warmstart keys create --signing"
    parser.add_argument("--key-id", required=required, default=default, help=text)
    text = f"file with its secret in base64; or set {_VARIABLE}"
    parser.add_argument("--secret-file", type=Path, default=default, help=text)


def signer(options: argparse.Namespace) -> Signer:
    """Signs with the key of ``--key-id`` and the secret of ``--secret-file`` or the environment.

    Raises:
        InvalidRequest: there is no secret, or it is none.
        OSError: the file cannot be read.
    """
    path: Path | None = options.secret_file
    secret = os.environ.get(_VARIABLE, "") if path is None else path.read_text(errors="replace")
    if not secret:
        raise InvalidRequest(f"there is no secret to sign with; set {_VARIABLE} or --secret-file")
    try:
        return Signer(options.key_id, secret)
    except SignatureError as error:
        raise InvalidRequest(str(error)) from None
