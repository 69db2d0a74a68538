"""``upload_file``, ``list_files``, ``get_file``, ``file_content`` and ``delete_file``: OpenAI's Files API."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.generation.batch_objects import file_object, files_of, page_object
from handlers.schemas.batches import FileId, ListFilesRequest, UploadFileRequest
from handlers.schemas.parsing import parse
from runtime.batch_types import PageRequest, StoredFile


async def upload(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Store a file: takes an ``UploadFileRequest``, returns a ``FileObject``.

    Raises:
        FilesOff: the service keeps no files.
        PayloadTooLarge: the file is too large.
        StorageFull: the disk, or the space for all files, is full.
        StorageUnavailable: the file cannot be stored.
    """
    files = files_of(ctx)
    request = parse(UploadFileRequest, payload)
    created, wanted = int(ctx.clock.time()), request.expires_after
    file = StoredFile(
        f"file-{ctx.new_id()}",
        ctx.caller(),
        request.filename,
        request.purpose,
        0,
        created,
        None if wanted is None else created + wanted.seconds,
    )
    return file_object(await files.add(file, request.file))


async def list_files(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a page of the caller's files: takes a ``ListFilesRequest``, returns a ``FileList``.

    Raises:
        FilesOff: the service keeps no files.
        InvalidRequest: the page begins after a file that does not exist.
        StorageUnavailable: the files cannot be read.
    """
    files = files_of(ctx)
    request = parse(ListFilesRequest, payload)
    page = PageRequest(request.limit, request.after, request.order == "desc")
    found, more = await files.page(ctx.caller(), page, request.purpose)
    return page_object([file_object(file) for file in found], more=more)


async def get(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a file's metadata: takes a ``FileId``, returns a ``FileObject``.

    Raises:
        FilesOff: the service keeps no files.
        NotFound: the caller has no such file.
        StorageUnavailable: the file cannot be read.
    """
    files = files_of(ctx)
    return file_object(await files.find(ctx.caller(), parse(FileId, payload).file_id))


async def content(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a file's content: takes a ``FileId``, returns a ``FileText``.

    Raises:
        FilesOff: the service keeps no files.
        NotFound: the caller has no such file.
        InvalidRequest: it is no text in UTF-8, which only HTTP can answer with.
        StorageUnavailable: the file cannot be read.
    """
    files = files_of(ctx)
    return {"content": await files.text(ctx.caller(), parse(FileId, payload).file_id)}


async def delete(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Delete a file: takes a ``FileId``, returns a ``DeletedFile``.

    Raises:
        FilesOff: the service keeps no files.
        NotFound: the caller has no such file.
        FileInUse: a batch that has not ended reads it.
        StorageUnavailable: the file cannot be deleted.
    """
    files = files_of(ctx)
    file_id = parse(FileId, payload).file_id
    await files.remove(ctx.caller(), file_id)
    return {"id": file_id, "object": "file", "deleted": True}
