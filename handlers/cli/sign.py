"""``warmstart sign``: the header fields, or the whole curl call, of a signed request."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from runtime.errors import InvalidRequest
from runtime.signatures import SignatureError
from runtime.signatures.client import Signer

_VARIABLE = "SIGNING_SECRET"  # in the environment; an argument would be seen by everybody on the machine


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """``warmstart sign``."""
    text = f"Sign a request (RFC 9421) with the secret in {_VARIABLE} or a file. The signature is good once."
    sub = commands.add_parser("sign", help=text, description=text)
    sub.set_defaults(run=run)
    sub.add_argument("method", metavar="METHOD", type=str.upper)
    sub.add_argument("url", metavar="URL", help="whole, as curl will get it")
    add_key(sub, required=True)
    body = sub.add_mutually_exclusive_group()
    body.add_argument("--data", metavar="JSON", help="the body")
    body.add_argument("--data-file", type=Path, help="file with the body")
    sub.add_argument("--curl", action="store_true", help="print the whole command, quoted for a shell")


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


def run(options: argparse.Namespace) -> None:
    """Header fields as curl's ``-H`` options, one a line; or the command.

    Raises:
        InvalidRequest: something cannot be signed, or there is no secret.
        OSError: a file cannot be read.
    """
    try:
        body = options.data_file.read_bytes() if options.data_file else (options.data or "").encode()
        signed = signer(options).headers(options.method, options.url, body)
    except UnicodeError:
        raise InvalidRequest("--data is not UTF-8; use --data-file", param="data") from None
    except SignatureError as error:
        raise InvalidRequest(str(error)) from None
    if body:
        signed = {"Content-Type": "application/json"} | signed
    fields = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in signed.items()]
    if not options.curl:
        print("\n".join(fields))
        return
    # What is signed is what is sent: curl would tidy up the path and read brackets as patterns.
    method = "--head" if options.method == "HEAD" else f"--request {shlex.quote(options.method)}"
    data = []
    if options.data_file:
        data = [f"--data-binary {shlex.quote(f'@{options.data_file.absolute()}')}"]  # a lone - would be standard input
    elif body:
        data = [f"--data-raw {shlex.quote(options.data)}"]
    print(" ".join(["curl --path-as-is --globoff", method, *fields, *data, shlex.quote(options.url)]))
