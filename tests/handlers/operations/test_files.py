"""handlers.operations.files: uploads, lists, contents and deletions, each caller's apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers.operations import files
from runtime.errors import FileInUse, FilesOff, InvalidRequest, NotFound, PayloadTooLarge
from tests.support.batches import CREATED, storing, with_batches
from tests.support.fakes import fake_context

UPLOAD: dict[str, Any] = {"purpose": "batch", "file": "é\n"}


async def test_upload(tmp_path: Path) -> None:
    """A file has OpenAI's form, and ends after the default lifetime or the one that it was given."""
    ctx = storing(tmp_path, files_ttl_seconds=7200)
    assert await files.upload(UPLOAD, ctx) == {
        "id": "file-id1",
        "object": "file",
        "bytes": 3,
        "created_at": CREATED,
        "expires_at": CREATED + 7200,
        "filename": "file.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    own = UPLOAD | {"filename": "x.jsonl", "expires_after": {"anchor": "created_at", "seconds": 3600}}
    answer = await files.upload(own, ctx)
    assert (answer["filename"], answer["expires_at"]) == ("x.jsonl", CREATED + 3600)
    assert await files.content({"file_id": "file-id2"}, ctx) == {"content": "é\n"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"file": 5}, "file"),
        ({"file": "\ud800"}, "file"),
        ({"filename": ""}, "filename"),
        ({"filename": "x" * 256}, "filename"),
        ({"expires_after": {"anchor": "last_active_at", "seconds": 3600}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at", "seconds": 2_592_001}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
        ({"x": 1}, "x"),
    ],
)
async def test_wrong_uploads(tmp_path: Path, change: dict[str, Any], param: str) -> None:
    """Each wrong field is named."""
    with pytest.raises(InvalidRequest) as caught:
        await files.upload(UPLOAD | change, storing(tmp_path))
    assert caught.value.param == param


async def test_too_large(tmp_path: Path) -> None:
    """The error names the limit."""
    with pytest.raises(PayloadTooLarge, match=r"1024 .*FILES_MAX_BYTES"):
        await files.upload(UPLOAD | {"file": "x" * 1025}, storing(tmp_path, files_max_bytes=1024))


async def test_list() -> None:
    """The newest come first; cursor, order, number and purpose may be asked for, as digits in a query, too."""
    ctx = with_batches(fake_context())
    answer = await files.list_files({}, ctx)
    assert [file["id"] for file in answer["data"]] == ["file-2", "file-1"]
    page = {name: answer[name] for name in ("object", "first_id", "last_id", "has_more")}
    assert page == {"object": "list", "first_id": "file-2", "last_id": "file-1", "has_more": False}
    answer = await files.list_files({"limit": "1", "order": "asc"}, ctx)
    assert ([file["id"] for file in answer["data"]], answer["has_more"]) == (["file-1"], True)
    assert (await files.list_files({"after": "file-1"}, ctx))["data"] == []
    answer = await files.list_files({"purpose": "batch_output"}, ctx)
    assert answer == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    for wrong in ({"limit": 10_001}, {"limit": "x"}, {"order": "up"}, {"purpose": "vision"}, {"after": "file-9"}):
        with pytest.raises(InvalidRequest) as caught:
            await files.list_files(wrong, ctx)
        assert caught.value.param == next(iter(wrong))


async def test_delete() -> None:
    """A deleted file is gone; one that a batch reads stays."""
    ctx = with_batches(fake_context())
    with pytest.raises(FileInUse, match="batch_1"):
        await files.delete({"file_id": "file-1"}, ctx)
    answer = await files.delete({"file_id": "file-2"}, ctx)
    assert answer == {"id": "file-2", "object": "file", "deleted": True}
    for call in (files.get, files.content, files.delete):
        with pytest.raises(NotFound) as caught:
            await call({"file_id": "file-2"}, ctx)
        assert caught.value.param == "file_id"


async def test_of_another_caller() -> None:
    """Files of others are not listed, and do not exist."""
    ctx = replace(with_batches(fake_context()), caller=lambda: "other")
    assert (await files.list_files({}, ctx))["data"] == []
    for call in (files.get, files.content, files.delete):
        with pytest.raises(NotFound):
            await call({"file_id": "file-2"}, ctx)


async def test_off() -> None:
    """Without a folder the error names the setting, whatever is asked."""
    for call in (files.upload, files.list_files, files.get, files.content, files.delete):
        with pytest.raises(FilesOff, match="FILES_DIR"):
            await call({}, fake_context())
