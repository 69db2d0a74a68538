"""Serves the web page, the OpenAPI document, Swagger UI and ReDoc, from files in this folder only.

The pages' content security policies forbid requests to other origins and inline scripts.
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

from views.paced_body import paced

_HERE = Path(__file__).parent
_PAGE = _HERE / "page"
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",  # icons are data: URLs
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_POLICIES = {
    # Model output is inserted as text or through DOMPurify; the browser refuses any other HTML.
    "page/index": _POLICY | {"require-trusted-types-for": "'script'", "trusted-types": "dompurify"},
    "docs": _POLICY,
    "redoc": _POLICY
    | {
        # The bundle creates two <style> elements; other inline styles stay forbidden. styled-components adds an empty
        # one (the first hash is the empty string's) and adds rules through the DOM, which the policy does not govern.
        # perfect-scrollbar adds its fixed style sheet (the second hash depends on the bundle's version).
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
    """Add ``/``, ``/openapi.json``, ``/docs``, ``/redoc`` and their files, each file as its own route.

    Args:
        app: the application.
        describe: builds the OpenAPI document; takes 0.1 s, so it is called on the first request for it.

    Returns:
        The handlers of the added routes.
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
    # Modules import each other by bare file names, so the version is in the name of their common folder.
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
    """Return the mapping: path below ``/static/`` -> the file and a digest of its content."""
    own = {path.name: (path, _digest(path.read_bytes())) for path in _HERE.glob("*.js")}
    # Hashes of the vendored files are recorded (and tested), so that startup need not read megabytes.
    libraries = json.loads((_HERE / "vendor" / "VENDOR.json").read_text(encoding="utf-8"))
    return own | {
        f"{library['folder']}/{name}": (_HERE / "vendor" / library["folder"] / name, digest[:16])
        for library in libraries
        for name, digest in library["files"].items()
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _text(make: Callable[[], bytes], suffix: str, headers: dict[str, str]) -> Handler:
    """Return a handler for content that is built on the first request, and revalidated by ETag on later ones.

    Args:
        make: builds the body.
        suffix: the file suffix that decides the content type.
        headers: further response headers.
    """

    @functools.cache
    def build_once() -> tuple[bytes, str]:
        body = make()
        return body, _digest(body)

    async def handler(request: web.Request) -> web.Response:
        body, etag = await asyncio.to_thread(build_once)
        response_headers = headers | {"Cache-Control": "no-cache", "ETag": f'"{etag}"'}
        if any(known.value in (etag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=response_headers)
        return web.Response(body=paced(body), headers=response_headers | {"Content-Type": _TYPES[suffix]})

    return handler


def _file(path: Path, digest: str | None) -> Handler:
    """Return a handler for one file, which clients may cache for a year if the URL identifies this content.

    Args:
        path: the file.
        digest: the digest that ``?v=`` must have for that; None if the path alone identifies the content.
    """
    headers = {"Content-Type": _TYPES.get(path.suffix, "text/plain; charset=utf-8")}

    async def handler(request: web.Request) -> web.FileResponse:
        fresh = digest is None or request.query.get("v") == digest
        caching = "public, max-age=31536000, immutable" if fresh else "no-cache"
        return BoundedFile(path, headers=headers | {"Cache-Control": caching})

    return handler


class BoundedFile(web.FileResponse):
    """A file response with a time limit.

    The kernel sends files without the write buffers that the write deadline in ``middleware/connection`` relies on.

    Args:
        path: the file.
        seconds: the time until the connection is aborted; for the largest file the default means some 5 kB a second.
        kwargs: arguments of ``web.FileResponse``.
    """

    def __init__(self, path: Path, *, seconds: float = 300, **kwargs: Any) -> None:
        super().__init__(path, **kwargs)
        self._seconds = seconds

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send the file.

        Raises:
            ConnectionError: the time limit is exceeded, or the client has disconnected.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await super().prepare(request)
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the client did not receive the file in time") from None
