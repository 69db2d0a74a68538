"""HTTP client for a running service, with the standard library: JSON calls and server-sent events."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import ServiceError
from runtime.signatures import SignatureError

_CONNECT_SECONDS = 10.0
_PIECE_BYTES = 1 << 16
# wildcard addresses to listen on, and the addresses to connect to
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on


def default_url(host: str, port: int) -> str:
    """Return the URL of a service with these settings on this machine.

    Args:
        host: the setting ``HOST``, an address or ``unix:PATH``.
        port: the setting ``PORT``.
    """
    if host.startswith("unix:"):
        return host
    host = _WILDCARDS.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Remote:
    """A client of one service. Connecting has a timeout of 10 s; a call has none.

    Args:
        url: ``http://HOST:PORT``, ``https://HOST`` or ``unix:PATH``.
        api_key: the API key, sent as a bearer token (RFC 6750 section 2.1); None for none.
        sign: returns the header fields of a request's signature (``Signer.headers``); None for no signature.
    """

    def __init__(self, url: str, api_key: str | None = None, sign: Callable[..., dict[str, str]] | None = None) -> None:
        self.url = url
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._sign = sign

    def call(self, method: str, path: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the JSON object of the response.

        Args:
            method: the HTTP method.
            path: the percent-encoded path, with a leading slash.
            payload: the JSON body; None for no body.

        Raises:
            ServiceError: the service answered with an error; the message is the service's.
            ConnectionError: the service did not answer, or not with a JSON object.
        """
        connection = self._connect()
        try:
            return _answer(self._ask(connection, method, path, _json(payload)), self.url)
        finally:
            connection.close()

    def events(self, method: str, path: str, payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Like ``call``, but yield server-sent events (HTML Living Standard section 9.2) until ``[DONE]``."""
        connection = self._connect()
        try:
            response = self._ask(connection, method, path, _json(payload))
            if response.headers.get_content_type() != "text/event-stream":
                yield _answer(response, self.url)
                return
            while line := _line(response, self.url):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                if data and data != line.strip():
                    yield _checked(json.loads(data), response.status)
            raise ConnectionError(f"{self.url} ended its response too early")
        finally:
            connection.close()

    def upload(self, path: str, fields: Mapping[str, str], file: Path) -> dict[str, Any]:
        """Like ``call``, but send a form with a file (RFC 7578), which is read while it is sent unless it is signed.

        Args:
            path: the path.
            fields: the form's other fields.
            file: the file, sent as the field ``file``.

        Raises:
            OSError: the file cannot be read.
        """
        boundary = secrets.token_hex(16)
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="'
        head = "".join(f'{part}{name}"\r\n\r\n{value}\r\n' for name, value in fields.items())
        name = re.sub(r'[\r\n"]', "_", file.name)
        head += f'{part}file"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        start, end = head.encode(), f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        with file.open("rb") as content:
            size = len(start) + os.fstat(content.fileno()).st_size + len(end)
            parts = itertools.chain([start], iter(lambda: content.read(_PIECE_BYTES), b""), [end])
            body = parts if self._sign is None else b"".join(parts)
            connection = self._connect()
            try:
                response = self._ask(connection, "POST", path, body, headers | {"Content-Length": str(size)})
                return _answer(response, self.url)
            finally:
                connection.close()

    def download(self, path: str, target: Path) -> None:
        """Write the body of a response to a file, which is replaced once the body is complete.

        Raises:
            ServiceError, ConnectionError: as for ``call``.
            OSError: the file cannot be written.
        """
        connection = self._connect()
        part = target.with_name(target.name + ".part")
        try:
            response = self._ask(connection, "GET", path, None)
            if response.status != 200:
                _answer(response, self.url)
            with part.open("wb") as output:
                while piece := _read(response, self.url):
                    output.write(piece)
            if response.length:
                raise ConnectionError(f"{self.url} ended its response too early")
            part.replace(target)
        finally:
            connection.close()
            part.unlink(missing_ok=True)

    def _connect(self) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self.url)
            if parts.scheme == "unix":
                connection: http.client.HTTPConnection = _UnixConnection(parts.path)
            else:
                kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[parts.scheme]
                connection = kind(parts.hostname or "", parts.port, timeout=_CONNECT_SECONDS)
        except (KeyError, ValueError, http.client.InvalidURL):
            raise ConnectionError(f"{self.url!r} is not http://HOST:PORT, https://HOST or unix:PATH") from None
        try:
            connection.connect()
        except OSError as error:
            raise ConnectionError(f"no service answers at {self.url}: {error.strerror or error}") from None
        connection.sock.settimeout(None)
        return connection

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: str | bytes | Iterable[bytes] | None,
        more_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> http.client.HTTPResponse:
        parts = urlsplit("http://localhost" if self.url.startswith("unix:") else self.url)
        target = parts.path.rstrip("/") + path
        headers = {**self._headers, **more_headers}
        try:
            if self._sign is not None:
                headers = headers | self._sign(method, f"{parts.scheme}://{parts.netloc}{target}", body)
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it had the whole body
                connection.request(method, target, body, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException, SignatureError) as error:
            raise ConnectionError(f"{self.url} did not answer: {error}") from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_CONNECT_SECONDS)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


def _json(payload: dict[str, Any] | None) -> str | None:
    return None if payload is None else json.dumps(payload)


def _read(response: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return response.read(_PIECE_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url} ended its response too early: {error}") from None


def _line(response: http.client.HTTPResponse, url: str) -> bytes:
    try:
        return response.readline()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url} ended its response too early: {error}") from None


def _answer(response: http.client.HTTPResponse, url: str) -> dict[str, Any]:
    try:
        content = json.loads(response.read())
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{url} ended its response too early: {error}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConnectionError(f"{url} answered with status {response.status} and a body that is not a JSON object")
    return _checked(content, response.status)


def _checked(content: dict[str, Any], status: int) -> dict[str, Any]:
    """Return a response or event that is not an error.

    Raises:
        ServiceError: it is an error; the message is the service's.
    """
    error = content.get("error")
    if isinstance(error, dict) and "message" in error and "object" not in content:
        raise ServiceError(str(error["message"]))
    if status >= 400:
        raise ServiceError(str(content.get("detail") or f"status {status}"))
    return content
