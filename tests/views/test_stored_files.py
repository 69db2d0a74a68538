"""views.stored_files: uploads as forms, however they arrive, and files as answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.batches import storing
from tests.support.fakes import serving

MAX = 4096


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A service that keeps files of up to 4096 bytes, and bodies of up to 1024."""
    settings: dict[str, Any] = {"files_max_bytes": MAX, "max_body_bytes": 1024}
    async with serving(storing(tmp_path, **settings), files_dir=tmp_path, body_timeout_seconds=0.5, **settings) as url:
        yield url


def _form(*parts: tuple[str, str, str | None]) -> tuple[bytes, dict[str, str]]:
    """Return a form and its headers; each part has a name, a content, and the name of a file or None."""
    text = "".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"'
        + (f'; filename="{filename}"' if filename else "")
        + f"\r\n\r\n{content}\r\n"
        for name, content, filename in parts
    )
    return f"{text}--b--\r\n".encode(), {"Content-Type": "multipart/form-data; boundary=b"}


def _staged(folder: Path) -> list[Path]:
    return list(folder.glob("staged/*"))


async def _post(url: str, body: Any, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/files", data=body, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


async def test_a_form(url: str, tmp_path: Path) -> None:
    """Fields may come in any order, and the file may be larger than other bodies; its content comes back as it was."""
    content = "x" * (MAX - 1) + "\n"
    body, headers = _form(
        ("file", content, "in.jsonl"),
        ("expires_after[anchor]", "created_at", None),
        ("expires_after[seconds]", "3600", None),
        ("purpose", "batch", None),
    )
    status, file = await _post(url, body, headers)
    assert (status, file["bytes"], file["filename"]) == (200, MAX, "in.jsonl")
    assert file["expires_at"] == file["created_at"] + 3600
    async with aiohttp.ClientSession() as session:
        for method in (session.get, session.head):
            async with method(f"{url}/v1/files/{file['id']}/content") as answer:
                assert (answer.status, answer.content_type) == (200, "application/octet-stream")
                assert answer.headers["Content-Length"] == str(MAX)
                assert await answer.text() == (content if method == session.get else "")
        async with session.get(f"{url}/v1/files/file-9/content") as answer:
            assert (answer.status, (await answer.json())["error"]["param"]) == (404, "file_id")
    assert _staged(tmp_path) == []


GOOD = ("purpose", "batch", None)
FILE = ("file", "x", "in.jsonl")


@pytest.mark.parametrize(
    ("parts", "status", "param"),
    [
        ([GOOD], 400, "file"),
        ([FILE], 400, "purpose"),
        ([FILE, GOOD, GOOD], 400, "purpose"),
        ([FILE, GOOD, FILE], 400, "file"),
        ([FILE, GOOD, ("x", "1", None)], 400, "x"),
        ([FILE, ("purpose", "vision", None)], 400, "purpose"),
        ([FILE, GOOD, ("expires_after", "1", None)], 400, "expires_after"),
        ([FILE, GOOD, ("expires_after[x]", "1", None)], 400, "expires_after.anchor"),
        ([("purpose", "x" * 5000, None), FILE], 400, "purpose"),
        ([FILE, *(("x", "1", None) for _ in range(1)), *((f"y{i}", "", None) for i in range(20))], 400, None),
        ([("", "x", None)], 400, None),
        ([GOOD, ("file", "x" * (MAX + 1), "in.jsonl")], 413, None),
    ],
)
async def test_wrong_forms(url: str, tmp_path: Path, parts: Any, status: int, param: str | None) -> None:
    """Each is refused in OpenAI's form with the field's name, and nothing is left on the disk."""
    found, answer = await _post(url, *_form(*parts))
    assert (found, answer["error"]["param"]) == (status, param), answer
    assert _staged(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data; boundary=b"),
        (b"x", "multipart/form-data; boundary=b"),
        (b"x", "multipart/form-data"),
        (b"--b\r\n\r\n", "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx', "multipart/form-data; boundary=b"),
        (
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n\xff\r\n--b--',
            "multipart/form-data; boundary=b",
        ),
        (b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--", "multipart/form-data; boundary=b"),
    ],
)
async def test_what_is_no_form(url: str, body: bytes, content_type: str) -> None:
    """A body that is no form is a 400 that says so, never a 500."""
    status, answer = await _post(url, body, {"Content-Type": content_type})
    assert (status, answer["error"]["code"]) == (400, "invalid_request")


async def test_a_length_over_the_limit(url: str) -> None:
    """A file that says that it is too large is refused at once, and so is a compressed one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 100000000\r\n\r\n"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head.lower()
    writer.close()
    body, headers = _form(GOOD, FILE)
    status, _ = await _post(url, body, headers | {"Content-Encoding": "gzip"})
    assert status == 415


async def test_a_slow_file(url: str, tmp_path: Path) -> None:
    """A file that stops arriving is given up after the deadline of bodies, and leaves nothing behind."""

    async def slow() -> AsyncIterator[bytes]:
        body, _ = _form(GOOD, ("file", "x" * 1000, "in.jsonl"))
        yield body[:-500]
        await asyncio.sleep(30)

    status, answer = await _post(url, slow(), _form()[1])
    assert (status, answer["error"]["code"]) == (408, "request_timeout")
    assert _staged(tmp_path) == []


async def test_json(url: str) -> None:
    """A file may be sent as JSON, within the limit of other bodies; other content types are refused."""
    headers = {"Content-Type": "application/json"}
    status, file = await _post(url, json.dumps({"purpose": "batch", "file": "é"}).encode(), headers)
    assert (status, file["bytes"]) == (200, 2)
    assert (await _post(url, json.dumps({"purpose": "batch", "file": "x" * 1024}).encode(), headers))[0] == 413
    assert (await _post(url, b"x", {"Content-Type": "text/plain"}))[0] == 415


async def test_off() -> None:
    """Without a folder an upload is refused with the setting's name."""
    async with serving() as url:
        status, answer = await _post(url, *_form(GOOD, FILE))
    assert (status, answer["error"]["code"]) == (404, "files_off")
    assert "FILES_DIR" in answer["error"]["message"]
