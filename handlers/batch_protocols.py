"""Protocols of stored files and batches, see ``runtime.batches``; tests and other adapters can implement them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from runtime.batch_types import FilePurpose, PageRequest, StagedUpload, StoredBatch, StoredFile


class Files(Protocol):
    """The stored files of all callers. Every method may raise StorageUnavailable."""

    async def stage(self, chunks: AsyncIterator[bytes]) -> StagedUpload:
        """Receive a file's content; nothing of it is left if that fails.

        Args:
            chunks: the content's bytes.

        Raises:
            PayloadTooLarge: the content is too large.
            StorageFull: the disk is full.
        """
        ...

    def discard(self, staged: StagedUpload) -> None:
        """Remove a content that belongs to no file; it may have become a file's meanwhile."""
        ...

    async def add(self, file: StoredFile, content: str | StagedUpload) -> StoredFile:
        """Store a file, and return its metadata with its size and the end of its lifetime.

        Args:
            file: the file's metadata; its size is not used, and its lifetime is the default if it has none.
            content: its content.

        Raises:
            PayloadTooLarge: the content is too large.
            StorageFull: the disk, or the space for all files, is full.
        """
        ...

    async def find(self, owner: str, file_id: str) -> StoredFile:
        """Return the metadata of a caller's file.

        Raises:
            NotFound: the caller has no such file.
        """
        ...

    async def page(
        self, owner: str, page: PageRequest, purpose: FilePurpose | None = None
    ) -> tuple[list[StoredFile], bool]:
        """Return some of a caller's files, and whether there are more.

        Raises:
            InvalidRequest: the page begins after a file that does not exist.
        """
        ...

    async def remove(self, owner: str, file_id: str) -> None:
        """Delete a caller's file.

        Raises:
            NotFound: the caller has no such file.
            FileInUse: a batch that has not ended reads it.
        """
        ...

    async def content(self, owner: str, file_id: str) -> tuple[StoredFile, Path]:
        """Return the metadata of a caller's file and the path of its content; errors as for ``find``."""
        ...

    async def text(self, owner: str, file_id: str) -> str:
        """Return the content of a caller's file.

        Raises:
            NotFound: the caller has no such file.
            InvalidRequest: it is no text in UTF-8.
        """
        ...


class Batches(Protocol):
    """The batches of all callers. Every method may raise StorageUnavailable."""

    async def create(self, batch: StoredBatch) -> StoredBatch:
        """Store a new batch, and start it.

        Raises:
            NotFound: its caller has no such input file.
            InvalidRequest: the input file has another purpose.
            TooManyRequests: too many batches of its caller have not ended.
            StorageFull: the disk is full.
        """
        ...

    async def find(self, owner: str, batch_id: str) -> StoredBatch:
        """Return a caller's batch.

        Raises:
            NotFound: the caller has no such batch.
        """
        ...

    async def page(self, owner: str, page: PageRequest) -> tuple[list[StoredBatch], bool]:
        """Return some of a caller's batches, and whether there are more.

        Raises:
            InvalidRequest: the page begins after a batch that does not exist.
        """
        ...

    async def cancel(self, owner: str, batch_id: str) -> StoredBatch:
        """Request that a batch is cancelled, and return it as it is then.

        Raises:
            NotFound: the caller has no such batch.
            InvalidRequest: the batch has ended, or is about to.
        """
        ...
