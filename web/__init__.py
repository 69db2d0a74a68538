"""The API description and two readers of it, Swagger UI and ReDoc, from files in this folder alone.

Pages run under a content security policy that lets them fetch nothing from anywhere else and run no inline script.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

_HERE = Path(__file__).parent
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",  # both draw their icons from data: addresses in their styles
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_POLICIES = {
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
_NOSNIFF = {"X-Content-Type-Options": "nosniff"}


def add_routes(app: web.Application, description: dict[str, Any]) -> None:
    """Add ``/openapi.json``, ``/docs``, ``/redoc`` and their files, each file as a route of its own.

    Args:
        app: where the routes go.
        description: an OpenAPI document; serialised once, here.
    """
    document = json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode()
    app.router.add_get("/openapi.json", _text(document, ".json", {}))
    assets = _assets()
    for path, (file, digest) in assets.items():
        app.router.add_get(f"/static/{path}", _file(file, digest))
    for page, policy in _POLICIES.items():
        html = (_HERE / f"{page}.html").read_text(encoding="utf-8")
        for path, (_, digest) in assets.items():
            html = html.replace(f'"static/{path}"', f'"static/{path}?v={digest}"')
        headers = {
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "Referrer-Policy": "no-referrer",
        }
        app.router.add_get(f"/{page}", _text(html.encode(), ".html", headers))


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


def _text(body: bytes, suffix: str, headers: dict[str, str]) -> Handler:
    """A handler for content made at start: always asked for again, rarely sent again."""
    etag = _digest(body)
    headers = headers | _NOSNIFF | {"Cache-Control": "no-cache", "ETag": f'"{etag}"'}

    async def handler(request: web.Request) -> web.Response:
        if any(known.value in (etag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers | {"Content-Type": _TYPES[suffix]})

    return handler


def _file(path: Path, digest: str) -> Handler:
    """A handler for one file, to be kept for a year by whoever asked for this very content."""
    headers = _NOSNIFF | {"Content-Type": _TYPES.get(path.suffix, "text/plain; charset=utf-8")}

    async def handler(request: web.Request) -> web.FileResponse:
        fresh = request.query.get("v") == digest
        caching = "public, max-age=31536000, immutable" if fresh else "no-cache"
        return web.FileResponse(path, headers=headers | {"Cache-Control": caching})

    return handler
