"""The page, the API description, and two readers of it (Swagger UI and ReDoc), from files in this folder alone.

Pages run under a content security policy that lets them fetch nothing from anywhere else and run no inline script.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.typedefs import Handler

_HERE = Path(__file__).parent
_PAGE = _HERE / "page"
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",  # icons are data: addresses
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_POLICIES = {
    # What a model says reaches the document as text, or through DOMPurify: the browser refuses any other HTML.
    "page/index": _POLICY | {"require-trusted-types-for": "'script'", "trusted-types": "dompurify"},
    "docs": _POLICY,
    "redoc": _POLICY
    | {
        # The bundle makes two <style> elements; inline styles other than these stay forbidden. styled-components adds
        # an empty one (the first hash is the empty string's) and fills it rule by rule through the DOM, which no policy
        # governs. perfect-scrollbar adds its fixed style sheet (the second hash goes with the bundle's version).
        "style-src": "'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=' "
        "'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='",
        "worker-src": "blob:",  # the search index is built in a worker whose source is a string in the bundle
    },
}
_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
}


def add_routes(app: web.Application, describe: Callable[[], dict[str, Any]]) -> set[Handler]:
    """Add ``/``, ``/openapi.json``, ``/docs``, ``/redoc`` and their files, each file as a route of its own.

    Args:
        app: where the routes go.
        describe: makes the OpenAPI document, which takes a tenth of a second: called when it is first asked for.

    Returns:
        Their handlers.
    """
    handlers = set[Handler]()

    def add(path: str, handler: Handler) -> None:
        app.router.add_get(path, handler)
        handlers.add(handler)

    def document() -> bytes:
        return json.dumps(describe(), ensure_ascii=False, separators=(",", ":")).encode()

    add("/openapi.json", _text(document, ".json", {}))
    assets = _assets()
    for path, (file, digest) in assets.items():
        add(f"/static/{path}", _file(file, digest))
    # Modules name each other by bare file names, so their version is in the folder that they all are in.
    modules = {path.name: path for path in sorted(_PAGE.iterdir()) if path.suffix in (".js", ".css")}
    version = _digest(b"".join(name.encode() + path.read_bytes() for name, path in modules.items()))
    for name, module in modules.items():
        add(f"/static/page-{version}/{name}", _file(module, None))
    for page, policy in _POLICIES.items():
        html = (_HERE / f"{page}.html").read_text(encoding="utf-8").replace('"static/page/', f'"static/page-{version}/')
        for path, (_, digest) in assets.items():
            html = html.replace(f'"static/{path}"', f'"static/{path}?v={digest}"')
        headers = {
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "Cross-Origin-Opener-Policy": "same-origin",
        }
        add("/" + page.removeprefix("page/index"), _text(html.encode, ".html", headers))
    return handlers


def _assets() -> dict[str, tuple[Path, str]]:
    """Path below ``/static/`` -> the file and a digest of its content."""
    own = {path.name: (path, _digest(path.read_bytes())) for path in _HERE.glob("*.js")}
    # Hashes of the vendored files are on record (and tested), so that no start reads megabytes.
    libraries = json.loads((_HERE / "vendor" / "VENDOR.json").read_text(encoding="utf-8"))
    return own | {
        f"{library['folder']}/{name}": (_HERE / "vendor" / library["folder"] / name, digest[:16])
        for library in libraries
        for name, digest in library["files"].items()
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _text(make: Callable[[], bytes], suffix: str, headers: dict[str, str]) -> Handler:
    """A handler for content made when it is first wanted: always asked for again, rarely sent again."""

    @functools.cache
    def made() -> tuple[bytes, str]:
        body = make()
        return body, _digest(body)

    async def handler(request: web.Request) -> web.Response:
        body, etag = await asyncio.to_thread(made)
        sent = headers | {"Cache-Control": "no-cache", "ETag": f'"{etag}"'}
        if any(known.value in (etag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=sent)
        return web.Response(body=body, headers=sent | {"Content-Type": _TYPES[suffix]})

    return handler


def _file(path: Path, digest: str | None) -> Handler:
    """A handler for one file, to be kept for a year by whoever asked for this very content.

    Args:
        path: the file.
        digest: what the address says of the content (``?v=``); None if the address could be no other content's.
    """
    headers = {"Content-Type": _TYPES.get(path.suffix, "text/plain; charset=utf-8")}

    async def handler(request: web.Request) -> web.FileResponse:
        fresh = digest is None or request.query.get("v") == digest
        caching = "public, max-age=31536000, immutable" if fresh else "no-cache"
        return BoundedFile(path, headers=headers | {"Cache-Control": caching})

    return handler


class BoundedFile(web.FileResponse):
    """A file whose sending has an end: the kernel sends it, past the buffers that ``middleware/connection/runner.py``
    watches.

    Args:
        seconds: until the connection is cut; for the largest file here the default is some 5 kB a second.
    """

    def __init__(self, path: Path, *, seconds: float = 300, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self._seconds = seconds

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """See ``web.StreamResponse``.

        Raises:
            ConnectionError: the time is up, or the client has gone.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await super().prepare(request)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the client did not take the file in time") from None
