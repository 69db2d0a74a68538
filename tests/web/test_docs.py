"""The pages in a real browser, and the files behind them: the real service on a fake model and a real port."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.expected_conditions import element_to_be_clickable, visibility_of_element_located
from selenium.webdriver.support.wait import WebDriverWait

from app import create_app
from runtime.settings import Settings
from tests.fakes import fake_context

WEB = Path(__file__).resolve().parents[2] / "web"
VENDOR = WEB / "vendor"
PREFIX = "/behind/a/proxy"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1400,1000"
)
VENDORED = [
    (f"{library['folder']}/{name}", digest)
    for library in json.loads((VENDOR / "VENDOR.json").read_text(encoding="utf-8"))
    for name, digest in library["files"].items()
]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where the service listens. It is there twice: at the root, and below a prefix that it knows nothing of."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(_serve(), loop).result(10)
    yield runner.addresses[0][1]
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


async def _serve() -> web.AppRunner:
    settings = Settings.load(allowed_ips="127.0.0.0/8")
    app = create_app(settings, ctx=fake_context())
    app.add_subapp(PREFIX, create_app(settings, ctx=fake_context()))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Headless Chromium with an empty profile; its console is recorded."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("THE DOCS ARE NOT TESTED IN A BROWSER: run `apt-get install chromium chromium-driver`")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


def get(port: int, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One answer. ``http.client`` sends a path as it is; most clients tidy it up first."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def complaints(browser: Chrome) -> list[str]:
    """Errors and policy violations on the console since the last call."""
    entries: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [e["message"] for e in entries if e["level"] == "SEVERE" or "Content Security Policy" in e["message"]]


def requested(browser: Chrome) -> list[str]:
    """Everything that the page asked for, or tried to."""
    entries: list[dict[str, Any]] = browser.execute_script("return performance.getEntriesByType('resource')")
    return [entry["name"] for entry in entries]


def wait(browser: Chrome) -> WebDriverWait[Chrome]:
    return WebDriverWait(browser, 15, poll_frequency=0.05)


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_swagger_ui_calls_an_operation(browser: Chrome, port: int, prefix: str) -> None:
    """/docs opens an operation, executes it and shows the model's answer; also where a proxy strips a prefix."""
    complaints(browser)
    origin = f"http://127.0.0.1:{port}"
    browser.get(f"{origin}{prefix}/docs")
    operation = "#operations-Warmstart-generate"
    wait(browser).until(element_to_be_clickable((By.CSS_SELECTOR, f"{operation} .opblock-summary-control"))).click()
    assert "Hello there." not in browser.find_element(By.TAG_NAME, "body").text
    wait(browser).until(element_to_be_clickable((By.CSS_SELECTOR, f"{operation} button.execute"))).click()
    answer = wait(browser).until(
        visibility_of_element_located((By.CSS_SELECTOR, f"{operation} .live-responses-table tbody .response"))
    )
    assert answer.find_element(By.CLASS_NAME, "response-col_status").text.split()[0] == "200"
    assert "Hello there." in answer.text
    assert complaints(browser) == []
    assert f"{origin}{prefix}/generate" in requested(browser)
    assert [url for url in requested(browser) if not url.startswith(f"{origin}{prefix}/")] == []


def test_redoc_renders_every_operation(browser: Chrome, port: int) -> None:
    """/redoc shows each operation's path and summary, without a console error or a request to another host."""
    complaints(browser)
    origin = f"http://127.0.0.1:{port}"
    browser.get(f"{origin}/redoc")
    wait(browser).until(visibility_of_element_located((By.CSS_SELECTOR, "#redoc h1")))
    text = browser.execute_script("return document.getElementById('redoc').textContent")
    paths = json.loads(get(port, "/openapi.json")[2])["paths"]
    assert "/generate" in paths
    for path, operations in paths.items():
        assert path in text
        for operation in operations.values():
            assert operation["summary"] in text
    assert complaints(browser) == []
    assert [url for url in requested(browser) if not url.startswith((f"{origin}/", f"blob:{origin}/"))] == []


def test_redoc_searches(browser: Chrome, port: int) -> None:
    """The search of /redoc, which needs a worker, finds an operation."""
    complaints(browser)
    browser.get(f"http://127.0.0.1:{port}/redoc")
    wait(browser).until(visibility_of_element_located((By.CSS_SELECTOR, "#redoc input"))).send_keys("prompt")
    found = wait(browser).until(visibility_of_element_located((By.CSS_SELECTOR, "[data-role='search:results']")))
    wait(browser).until(lambda _: "prompt" in found.text)
    assert complaints(browser) == []


@pytest.mark.parametrize("page", ["docs", "redoc"])
def test_the_policy_holds(browser: Chrome, port: int, page: str) -> None:
    """A script or a style that finds its way into a page does nothing, and the console says so."""
    browser.get(f"http://127.0.0.1:{port}/{page}")
    complaints(browser)
    browser.execute_script(
        "const make = (name, text) => Object.assign(document.createElement(name), { textContent: text });"
        "document.body.append(make('script', 'window.ran = true'), make('style', 'body { outline: 7px solid red }'))"
    )
    assert browser.execute_script("return window.ran") is None
    assert browser.execute_script("return getComputedStyle(document.body).outlineWidth") != "7px"
    assert len(complaints(browser)) == 2


@pytest.mark.parametrize(
    ("page", "extra"), [("/docs", set()), ("/redoc", {"worker-src blob:"}), (f"{PREFIX}/docs", set())]
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


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/redoc"])
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
