"""``warmstart sign``: print the header fields of a signed request, or the complete curl command."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from handlers.cli.credentials import SIGNING_VARIABLE, add_key, signer
from runtime.errors import InvalidRequest
from runtime.signatures import SignatureError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``sign`` to the command line's subparsers."""
    text = f"Sign a request (RFC 9421) with the secret in {SIGNING_VARIABLE} or a file. A signature can be used once."
    sub = commands.add_parser("sign", help=text, description=text)
    sub.set_defaults(run=run)
    sub.add_argument("method", metavar="METHOD", type=str.upper)
    sub.add_argument("url", metavar="URL", help="the full URL, exactly as it will be requested")
    add_key(sub, required=True)
    body = sub.add_mutually_exclusive_group()
    body.add_argument("--data", metavar="JSON", help="the request's body")
    body.add_argument("--data-file", type=Path, help="a file with the request's body")
    sub.add_argument("--curl", action="store_true", help="print the complete curl command, quoted for a shell")


def run(options: argparse.Namespace) -> None:
    """Run ``sign``: print the header fields as curl's ``-H`` options, one per line, or the curl command.

    Raises:
        InvalidRequest: the request cannot be signed, or there is no secret.
        OSError: a file cannot be read.
    """
    try:
        body = options.data_file.read_bytes() if options.data_file else (options.data or "").encode()
        signed = signer(options).headers(options.method, options.url, body)
    except UnicodeError:
        raise InvalidRequest("--data must be UTF-8; use --data-file for other bytes", param="data") from None
    except SignatureError as error:
        raise InvalidRequest(str(error)) from None
    if body:
        signed = {"Content-Type": "application/json"} | signed
    fields = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in signed.items()]
    if not options.curl:
        print("\n".join(fields))
        return
    # curl must send what is signed: by default it normalizes the path and expands brackets as patterns.
    method = "--head" if options.method == "HEAD" else f"--request {shlex.quote(options.method)}"
    data = []
    if options.data_file:
        data = [f"--data-binary {shlex.quote(f'@{options.data_file.absolute()}')}"]  # "@-" would be standard input
    elif body:
        data = [f"--data-raw {shlex.quote(options.data)}"]
    print(" ".join(["curl --path-as-is --globoff", method, *fields, *data, shlex.quote(options.url)]))
