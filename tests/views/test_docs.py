"""The pages in a real browser, and the files behind them: the real service on a fake model and a real port."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.fakes import fake_context
from tests.views.conftest import Visit
from tests.views.served import served

WEB = Path(__file__).resolve().parents[2] / "views"
VENDOR = WEB / "vendor"
PREFIX = "/behind/a/proxy"
TRUSTED = {"require-trusted-types-for 'script'", "trusted-types dompurify"}
VENDORED = [
    (f"{library['folder']}/{name}", digest)
    for library in json.loads((VENDOR / "VENDOR.json").read_text(encoding="utf-8"))
    for name, digest in library["files"].items()
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where the service listens. It is there twice: at the root, and below a prefix that it knows nothing of."""
    with served(fake_context(), PREFIX) as service:
        yield service.port


def get(port: int, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One answer. ``http.client`` sends a path as it is; most clients tidy it up first."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_swagger_ui_calls_an_operation(visit: Visit, port: int, prefix: str) -> None:
    """/docs opens an operation, executes it and shows the model's answer; also where a proxy strips a prefix."""
    base = f"http://127.0.0.1:{port}{prefix}"
    page = visit.go(f"{base}/docs")
    operation = page.locator("#operations-Warmstart-generate")
    operation.locator(".opblock-summary-control").click()
    expect(page.locator("body")).not_to_contain_text("Hello there.")
    operation.locator("button.execute").click()
    answer = operation.locator(".live-responses-table tbody .response")
    expect(answer.locator(".response-col_status")).to_contain_text("200")
    expect(answer).to_contain_text("Hello there.")
    urls = [request.url for request in visit.requests if request.url != "about:blank"]
    assert f"{base}/generate" in urls
    assert [url for url in urls if not url.startswith((f"{base}/", "data:"))] == []


def test_redoc_renders_and_finds_operations(visit: Visit, port: int) -> None:
    """/redoc shows each operation's path and summary, without a console error or a request to another host; its
    search, which needs a worker, finds one.
    """
    page = visit.go(f"http://127.0.0.1:{port}/redoc")
    page.locator("#redoc h1").first.wait_for()
    text = page.locator("#redoc").text_content() or ""
    paths = json.loads(get(port, "/openapi.json")[2])["paths"]
    assert "/generate" in paths
    for path, operations in paths.items():
        assert path in text
        for operation in operations.values():
            assert operation["summary"] in text
    page.locator("#redoc input").first.fill("prompt")
    expect(page.locator("[data-role='search:results']")).to_contain_text("prompt")


@pytest.mark.parametrize("page", ["docs", "redoc", ""])
def test_the_policy_holds(visits: Callable[..., Visit], port: int, page: str) -> None:
    """A script or a style that finds its way into a page does nothing, and the console says so."""
    visit = visits()
    document = visit.go(f"http://127.0.0.1:{port}/{page}")
    document.wait_for_load_state("networkidle")
    assert visit.complaints == []
    for name, text in (("script", "window.ran = true"), ("style", "body { outline: 7px solid red }")):
        document.evaluate(
            "([name, text]) => { try { document.body.append(Object.assign(document.createElement(name),"
            " { textContent: text })) } catch (error) { console.error(`${error}`) } }",
            [name, text],
        )
    assert document.evaluate("window.ran") is None
    assert document.evaluate("getComputedStyle(document.body).outlineWidth") != "7px"
    assert len(visit.complaints) >= 2
    visit.complaints.clear()


@pytest.mark.parametrize(
    ("page", "extra"),
    [
        ("/docs", set()),
        ("/redoc", {"worker-src blob:"}),
        (f"{PREFIX}/docs", set()),
        ("/", TRUSTED),
        (f"{PREFIX}/", TRUSTED),
    ],
)
def test_pages_carry_a_strict_policy(port: int, page: str, extra: set[str]) -> None:
    """Everything is forbidden but our own files: no inline script, no eval, no frame, no other host."""
    status, headers, body = get(port, page)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "*" not in policy
    assert {rule for rule in policy.split("; ") if not rule.startswith("style-src 'self'")} == extra | {
        "default-src 'none'",
        "script-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    }
    assert b"<style" not in body
    assert b"style=" not in body
    assert b"<script>" not in body


@pytest.mark.parametrize("path", ["/openapi.json", "/", "/docs", "/redoc"])
def test_what_is_known_is_not_sent_again(port: int, path: str) -> None:
    """The description and the pages are revalidated on each use; unchanged, they are answered with an empty 304."""
    _, headers, body = get(port, path)
    assert headers["Cache-Control"] == "no-cache"
    assert body
    again, same, nothing = get(port, path, If_None_Match=headers["ETag"])
    assert (again, nothing, same["ETag"]) == (304, b"", headers["ETag"])
    assert get(port, path, If_None_Match='"other"')[0] == 200


def test_the_description_is_json(port: int) -> None:
    """/openapi.json is an OpenAPI 3.1 document, served as JSON."""
    status, headers, body = get(port, "/openapi.json")
    assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "application/json", "nosniff")
    assert json.loads(body)["openapi"].startswith("3.1")


@pytest.mark.parametrize(("path", "digest"), VENDORED)
def test_vendored_files_are_the_recorded_ones(port: int, path: str, digest: str) -> None:
    """A vendored file is, on disk and as served, what VENDOR.json says; asked for by content, it is kept for good."""
    assert hashlib.sha256((VENDOR / path).read_bytes()).hexdigest() == digest
    status, headers, body = get(port, f"/static/{path}?v={digest[:16]}")
    assert (status, hashlib.sha256(body).hexdigest()) == (200, digest)
    assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert headers["X-Content-Type-Options"] == "nosniff"
    kind = {".js": "text/javascript", ".css": "text/css"}.get(Path(path).suffix, "text/plain")
    assert headers["Content-Type"] == f"{kind}; charset=utf-8"
    for other in ("", "?v=stale"):
        assert get(port, f"/static/{path}{other}")[1]["Cache-Control"] == "no-cache"


def test_every_vendored_file_is_recorded() -> None:
    """Nothing lies in the vendor folder that VENDOR.json does not name."""
    files = {str(path.relative_to(VENDOR)) for path in VENDOR.rglob("*") if path.is_file()}
    assert files - {"VENDOR.json", ".gitattributes"} == {path for path, _ in VENDORED}


@pytest.mark.parametrize(
    "path",
    [
        "/static",
        "/static/",
        "/static/redoc",
        "/static/redoc/",
        "/static/docs.html",
        "/static/page/index.html",
        "/static/page/main.js",
        "/static/index.html",
        "/static/__init__.py",
        "/static/vendor/VENDOR.json",
        "/static/VENDOR.json",
        "/static/../app.py",
        "/static/../../app.py",
        "/static/redoc/../../__init__.py",
        "/static/%2e%2e/app.py",
        "/static/%2e%2e%2fapp.py",
        "/static/..%5capp.py",
        "/static/%252e%252e%252fapp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/docs.js%00.html",
        "/static" + "/.." * 12 + "/etc/passwd",
    ],
)
def test_nothing_else_is_served(port: int, path: str) -> None:
    """Folders, other files and every way out of the folder are 404."""
    assert get(port, path)[0] == 404


def test_modules_are_kept_for_good(port: int) -> None:
    """The page's own files lie at addresses that no other content could have, and are not asked for again."""
    html = get(port, "/")[2].decode()
    paths = re.findall(r'"(static/[^"]+)"', html)
    assert any(path.endswith("/main.js") for path in paths)
    for path in paths:
        status, headers, _ = get(port, f"/{path}")
        assert (status, headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable"), path
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_accessibility_checker_is_the_recorded_one() -> None:
    """What tests read pages with is what its VENDOR.json says, and is in no package."""
    folder = Path(__file__).parent / "vendor"
    (library,) = json.loads((folder / "VENDOR.json").read_text(encoding="utf-8"))
    for name, digest in library["files"].items():
        assert hashlib.sha256((folder / library["folder"] / name).read_bytes()).hexdigest() == digest
