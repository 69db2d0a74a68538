"""Stored files: metadata in SQLite, contents in a folder."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.batch_types import FilePurpose, PageRequest, StagedUpload, StoredFile
from runtime.batches.database import BatchDatabase, storage_errors
from runtime.batches.pages import page_of
from runtime.errors import FileInUse, InvalidRequest, NotFound, PayloadTooLarge, StorageFull
from runtime.storage.files import sync_folder

_COLUMNS = "id, owner, name, purpose, size, created, expires"
_WRITE_BYTES = 1 << 20  # bytes that are written at once
_ORPHAN_SECONDS = 86_400  # age at which a file that belongs to nothing is removed


class FileStore:
    """Files of all callers. Each caller sees its own only.

    Args:
        database: the database, whose folder gets the contents.
        max_bytes: the largest size of an uploaded file, in bytes.
        total_bytes: the size of all files together above which uploads are refused, in bytes.
        ttl_seconds: lifetime of files without one of their own.
        clock: returns Unix time in seconds.
    """

    def __init__(
        self,
        database: BatchDatabase,
        *,
        max_bytes: int,
        total_bytes: int,
        ttl_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.max_bytes = max_bytes
        self.ttl_seconds = ttl_seconds
        self._database = database
        self._contents = database.folder / "files"
        self._staged = database.folder / "staged"
        self._total_bytes = total_bytes
        self._clock = clock

    async def stage(self, chunks: AsyncIterator[bytes]) -> StagedUpload:
        """Receive a file's content; nothing of it is left if that fails.

        Args:
            chunks: the content's bytes.

        Raises:
            PayloadTooLarge: the content is larger than ``FILES_MAX_BYTES``.
            StorageFull: the disk is full.
            StorageUnavailable: the folder cannot be written.
        """
        on_thread = self._database.on_thread
        path, size, part = await on_thread(self._new_staged), 0, bytearray()
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > self.max_bytes:
                    raise PayloadTooLarge(f"the file is larger than {self.max_bytes} bytes (FILES_MAX_BYTES)")
                part += chunk
                if len(part) >= _WRITE_BYTES:
                    whole, part = bytes(part), bytearray()
                    await on_thread(lambda whole=whole: _append(path, whole, last=False))  # type: ignore[misc]
            await on_thread(lambda: _append(path, bytes(part), last=True))
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return StagedUpload(path, size)

    def discard(self, staged: StagedUpload) -> None:
        """Remove a content that belongs to no file; it may have become a file's meanwhile."""
        staged.path.unlink(missing_ok=True)

    async def add(self, file: StoredFile, content: str | StagedUpload) -> StoredFile:
        """Store a file.

        Args:
            file: the file's metadata, without its size; its lifetime is the default if it has none.
            content: its content.

        Returns:
            The stored metadata.

        Raises:
            PayloadTooLarge: the content is larger than ``FILES_MAX_BYTES``.
            StorageFull: the disk is full, or the files together would be larger than ``FILES_TOTAL_BYTES``.
            StorageUnavailable: the file cannot be stored.
        """
        return await self._database.on_thread(lambda: self.add_now(file, content))

    def add_now(self, file: StoredFile, content: str | StagedUpload) -> StoredFile:
        """Store a file as ``add`` does; blocks."""
        if isinstance(content, str):
            data = content.encode()
            if len(data) > self.max_bytes:
                raise PayloadTooLarge(
                    f"file: {len(data)} bytes are more than {self.max_bytes} (FILES_MAX_BYTES)", param="file"
                )
            path = self._new_staged()
            with storage_errors():
                _append(path, data, last=True)
            content = StagedUpload(path, len(data))
        expires = file.created + self.ttl_seconds if file.expires is None else file.expires
        stored = replace(file, size=content.size, expires=expires)
        try:
            self._publish(content, stored.id)
            self._database.write(lambda database: self._insert(database, stored))
        except BaseException:
            self.discard(content)
            self._content(stored.id).unlink(missing_ok=True)
            raise
        return stored

    def add_output(self, database: sqlite3.Connection, file: StoredFile) -> None:
        """Insert the metadata of a batch's output inside a transaction; its content is published before."""
        database.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", _values(file))  # noqa: S608

    async def find(self, owner: str, file_id: str) -> StoredFile:
        """Return a file's metadata.

        Raises:
            NotFound: the caller has no such file.
            StorageUnavailable: the database cannot be read.
        """
        found: StoredFile = await self._read(lambda database: self.find_in(database, owner, file_id))
        return found

    async def page(
        self, owner: str, page: PageRequest, purpose: FilePurpose | None = None
    ) -> tuple[list[StoredFile], bool]:
        """Return some of a caller's files, and whether there are more.

        Raises:
            InvalidRequest: the page begins after a file that does not exist.
            StorageUnavailable: the database cannot be read.
        """
        where = {"owner": owner} | ({} if purpose is None else {"purpose": purpose})
        rows, more = await self._read(lambda database: page_of(database, "files", _COLUMNS, where, page))
        now = self._clock()
        return [file for row in rows if not _expired(file := StoredFile(*row), now)], more

    async def remove(self, owner: str, file_id: str) -> None:
        """Delete a file.

        Raises:
            NotFound: the caller has no such file.
            FileInUse: a batch that has not ended reads it.
            StorageUnavailable: the database cannot be written.
        """

        def work(database: sqlite3.Connection) -> None:
            self.find_in(database, owner, file_id)
            if (user := _reader(database, file_id)) is not None:
                raise FileInUse(f"file_id: {user} reads this file; cancel it first", param="file_id")
            database.execute("DELETE FROM files WHERE id = ?", (file_id,))

        await self._database.on_thread(lambda: self._database.write(work))
        self._content(file_id).unlink(missing_ok=True)

    async def content(self, owner: str, file_id: str) -> tuple[StoredFile, Path]:
        """Return a file's metadata and the path of its content; errors as for ``find``."""
        file = await self.find(owner, file_id)
        return file, self._content(file.id)

    async def text(self, owner: str, file_id: str) -> str:
        """Return a file's content as text.

        Raises:
            NotFound: the caller has no such file.
            InvalidRequest: it is no text in UTF-8.
            StorageUnavailable: it cannot be read.
        """
        _, path = await self.content(owner, file_id)

        def read() -> str:
            with storage_errors():
                return path.read_bytes().decode()

        try:
            return await self._database.on_thread(read)
        except UnicodeDecodeError:
            raise InvalidRequest("file_id: the file is no text in UTF-8", param="file_id") from None

    def find_in(self, database: sqlite3.Connection, owner: str, file_id: str, field: str = "file_id") -> StoredFile:
        """Return a file's metadata inside a transaction; errors as for ``find``, about the request's ``field``."""
        row = database.execute(
            f"SELECT {_COLUMNS} FROM files WHERE id = ? AND owner = ?",  # noqa: S608 - names of ours
            (file_id, owner),
        ).fetchone()
        if row is None or _expired(file := StoredFile(*row), self._clock()):
            raise NotFound(f"{field}: there is no such file", param=field)
        return file

    def input_path(self, file_id: str) -> Path:
        """Return the path of a content by its file's id, without a check."""
        return self._content(file_id)

    def _publish(self, staged: StagedUpload, file_id: str) -> None:
        """Make a staged content, already on the disk, that of a file."""
        with storage_errors():
            self._contents.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.replace(staged.path, self._content(file_id))
            sync_folder(self._contents)

    def publish_output(self, path: Path, file_id: str) -> None:
        """Make a finished output the content of a file, which it replaces if there is one; see ``new_output``."""
        with path.open("rb") as file:
            os.fsync(file.fileno())
        self._publish(StagedUpload(path, 0), file_id)

    def new_output(self) -> Path:
        """Create an empty file for an output that is being written."""
        return self._new_staged()

    def sweep(self) -> int:
        """Remove expired files, and contents that a crash has left without a file; blocks.

        Returns:
            The number of expired files that were removed.
        """
        now = self._clock()

        def work(database: sqlite3.Connection) -> list[str]:
            found = database.execute("SELECT id FROM files WHERE expires <= ? LIMIT 1000", (now,)).fetchall()
            ended = [file_id for (file_id,) in found if _reader(database, file_id) is None]
            database.executemany("DELETE FROM files WHERE id = ?", [(file_id,) for file_id in ended])
            return ended

        removed = self._database.write(work)
        for file_id in removed:
            self._content(file_id).unlink(missing_ok=True)
        known = {
            name
            for (name,) in self._database.read(lambda database: database.execute("SELECT id FROM files").fetchall())
        }
        for folder in (self._contents, self._staged):
            for path in folder.iterdir() if folder.is_dir() else ():
                with suppress(FileNotFoundError):
                    if path.name not in known and path.stat().st_mtime < now - _ORPHAN_SECONDS:
                        path.unlink()
        return len(removed)

    async def _read(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        return await self._database.on_thread(lambda: self._database.read(work))

    def _insert(self, database: sqlite3.Connection, file: StoredFile) -> None:
        total = database.execute("SELECT coalesce(sum(size), 0) FROM files").fetchone()[0]
        if total + file.size > self._total_bytes:
            raise StorageFull(
                f"file: all files together would be larger than {self._total_bytes} bytes (FILES_TOTAL_BYTES); delete "
                "some first",
                param="file",
            )
        self.add_output(database, file)

    def _new_staged(self) -> Path:
        with storage_errors():
            self._staged.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._staged / secrets.token_hex(16)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            return path

    def _content(self, file_id: str) -> Path:
        return self._contents / file_id


def _append(path: Path, data: bytes, *, last: bool) -> None:
    """Append to a file; the last time, wait until all of it is on the disk."""
    with storage_errors(), path.open("ab") as file:
        file.write(data)
        file.flush()
        if last:
            os.fsync(file.fileno())


def _values(file: StoredFile) -> tuple[Any, ...]:
    return (file.id, file.owner, file.name, file.purpose, file.size, file.created, file.expires)


def _expired(file: StoredFile, now: float) -> bool:
    return file.expires is not None and file.expires <= now


def _reader(database: sqlite3.Connection, file_id: str) -> str | None:
    """Return the id of a batch that has not ended and reads the file; None if there is none."""
    row = database.execute("SELECT id FROM batches WHERE ended IS NULL AND input_file = ?", (file_id,)).fetchone()
    return None if row is None else str(row[0])
