"""runtime.batches.files: files are stored whole or not at all, belong to their owner, and end."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runtime.batch_types import PageRequest, StoredBatch, StoredFile
from runtime.batches.batches import BatchStore
from runtime.batches.database import BatchDatabase
from runtime.batches.files import FileStore
from runtime.errors import (
    FileInUse,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    ServiceError,
    StorageFull,
    StorageUnavailable,
)


class Store:
    """A store in a folder, with a clock that is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        self.database = BatchDatabase(folder)
        self.files = FileStore(
            self.database, max_bytes=2000, total_bytes=5000, ttl_seconds=3600, clock=lambda: self.now
        )

    def file(self, name: str, owner: str = "me", expires: int | None = None) -> StoredFile:
        """Return metadata of a new file."""
        return StoredFile(f"file-{name}", owner, f"{name}.jsonl", "batch", 0, int(self.now), expires)

    def contents(self) -> list[str]:
        """Return the names of all contents, staged ones too."""
        folders = (self.folder / "files", self.folder / "staged")
        return sorted(path.name for folder in folders if folder.is_dir() for path in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store that is closed afterwards."""
    made = Store(tmp_path / "folder")
    yield made
    made.database.close()


async def _chunks(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_stored_and_lasting(store: Store) -> None:
    """A text and an upload are there after a restart, for their owner, and only the service's user can read them."""
    await store.files.add(store.file("a"), "é")
    staged = await store.files.stage(_chunks(b"x" * 10, b"y" * 10))
    added = await store.files.add(store.file("b"), staged)
    assert (added.size, added.expires) == (20, 4600)
    again = Store(store.folder)
    assert await again.files.text("me", "file-a") == "é"
    assert (await again.files.content("me", "file-b"))[1].read_bytes() == b"x" * 10 + b"y" * 10
    assert {path.stat().st_mode & 0o077 for path in store.folder.rglob("*") if path.is_file()} == {0}
    again.database.close()


async def test_of_their_owner_only(store: Store) -> None:
    """Another caller's file does not exist."""
    await store.files.add(store.file("a"), "x")
    for call in (store.files.find, store.files.content, store.files.text, store.files.remove):
        with pytest.raises(NotFound) as caught:
            await call("other", "file-a")
        assert caught.value.param == "file_id"
    assert await store.files.page("other", PageRequest(10)) == ([], False)


async def test_pages(store: Store) -> None:
    """Pages follow each other in both orders; a cursor that does not exist is refused by name."""
    for name in "abcde":
        await store.files.add(store.file(name), "x")
    page, more = await store.files.page("me", PageRequest(2))
    assert ([file.id for file in page], more) == (["file-e", "file-d"], True)
    page, more = await store.files.page("me", PageRequest(3, "file-d"))
    assert ([file.id for file in page], more) == (["file-c", "file-b", "file-a"], False)
    page, more = await store.files.page("me", PageRequest(2, "file-b", descending=False), "batch")
    assert ([file.id for file in page], more) == (["file-c", "file-d"], True)
    assert await store.files.page("me", PageRequest(2), "batch_output") == ([], False)
    with pytest.raises(InvalidRequest) as caught:
        await store.files.page("me", PageRequest(2, "file-x"))
    assert caught.value.param == "after"


async def test_limits(store: Store) -> None:
    """A file that is too large, or that does not fit beside the others, leaves nothing behind."""
    with pytest.raises(PayloadTooLarge, match="FILES_MAX_BYTES"):
        await store.files.add(store.file("a"), "x" * 2001)
    with pytest.raises(PayloadTooLarge, match="FILES_MAX_BYTES"):
        await store.files.stage(_chunks(b"x" * 2000, b"x"))
    for name in "ab":
        await store.files.add(store.file(name), "x" * 2000)
    with pytest.raises(StorageFull, match="FILES_TOTAL_BYTES"):
        await store.files.add(store.file("c"), await store.files.stage(_chunks(b"x" * 1001)))
    assert store.contents() == ["file-a", "file-b"]


async def test_an_upload_that_breaks_off(store: Store) -> None:
    """A client that disappears leaves nothing behind."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        raise ConnectionError("planted")

    with pytest.raises(ConnectionError):
        await store.files.stage(chunks())
    assert store.contents() == []


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageUnavailable)]
)
async def test_a_disk_that_fails(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, error: type[ServiceError]
) -> None:
    """A full disk is told apart from a broken one; the next upload works when there is space again."""

    def fail(descriptor: int) -> None:
        raise OSError(number, "planted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(error):
            await store.files.stage(_chunks(b"x"))
    assert store.contents() == []
    await store.files.add(store.file("a"), await store.files.stage(_chunks(b"x")))


async def test_expiry(store: Store) -> None:
    """A file is gone from its end on, and its content from the next sweep on, unless a batch reads it."""
    for name, expires in (("a", None), ("b", 2000), ("c", 2000)):
        await store.files.add(store.file(name, expires=expires), "x")
    batches = BatchStore(store.database, store.files, lambda: store.now)
    await batches.create(StoredBatch("batch_1", "me", "file-c", "/complete", "24h", 1000, 90_000))
    store.now = 2000.0
    for name in "bc":
        with pytest.raises(NotFound):
            await store.files.find("me", f"file-{name}")
    assert [file.id for file in (await store.files.page("me", PageRequest(9)))[0]] == ["file-a"]
    assert store.files.sweep() == 1
    assert store.contents() == ["file-a", "file-c"]


async def test_in_use(store: Store) -> None:
    """A file that a batch reads cannot be deleted, and the error names the batch; another one can."""
    for name in "ab":
        await store.files.add(store.file(name), "x")
    batches = BatchStore(store.database, store.files, lambda: store.now)
    await batches.create(StoredBatch("batch_1", "me", "file-a", "/complete", "24h", 1000, 90_000))
    with pytest.raises(FileInUse, match="batch_1"):
        await store.files.remove("me", "file-a")
    await store.files.remove("me", "file-b")
    assert store.contents() == ["file-a"]


async def test_what_a_crash_leaves(store: Store) -> None:
    """Contents that belong to no file are removed when they are a day old, not while they may be being stored."""
    await store.files.add(store.file("a"), "x")
    await store.files.stage(_chunks(b"x"))
    (store.folder / "files" / "file-lost").write_bytes(b"x")
    store.now = os.stat(store.folder / "files" / "file-lost").st_mtime + 60
    store.database.write(lambda db: db.execute("UPDATE files SET expires = NULL"))
    store.files.sweep()
    assert len(store.contents()) == 3
    store.now += 86_400
    store.files.sweep()
    assert store.contents() == ["file-a"]


async def test_bytes_are_no_text(store: Store) -> None:
    """A content that is not UTF-8 is refused where a text is needed."""
    await store.files.add(store.file("a"), await store.files.stage(_chunks(b"\xff")))
    with pytest.raises(InvalidRequest, match="UTF-8"):
        await store.files.text("me", "file-a")
