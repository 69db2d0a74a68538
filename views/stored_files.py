"""The aiohttp handlers of uploads as forms (multipart/form-data, RFC 7578) and of files as answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TypeVar

from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.typedefs import Handler

from handlers.api.payload import query_payload
from handlers.api.routes import Route
from handlers.generation.batch_objects import files_of
from handlers.operations import Operation
from handlers.schemas.batches import FileId
from handlers.schemas.parsing import parse
from middleware.body import accept_body, received_reader
from middleware.request_keys import LAST, PAYLOAD
from runtime.batch_types import StagedUpload
from runtime.errors import InvalidRequest, RequestTimeout, ServiceError
from runtime.settings import Settings
from views.app_keys import CONTEXT
from views.operations import Allows, begin, json_answer
from views.pages import BoundedFile

T = TypeVar("T")

MULTIPART = "multipart/form-data"
_FILE = "file"  # the part with the content
_MEMBER = re.compile(r"(\w+)\[(\w+)\]")  # a member of an object, such as expires_after[seconds]
_MAX_PARTS = 16
_MAX_TEXT = 4096  # bytes of a part that is no file
_CHUNK = 1 << 16
_FORM_BYTES = 1 << 16  # of a form besides the file
_MIN_RATE = 65_536  # bytes a second after the deadline of a usual body
_FILE_SECONDS, _FILE_RATE = 300, 20_000  # seconds in which a client must receive a file, at this many bytes a second


def form_handler(operation: Operation, as_json: Handler, settings: Settings, allows: Allows) -> Handler:
    """Return an aiohttp handler of an operation whose fields are sent as a form or as JSON.

    Args:
        operation: the operation, which takes a ``StagedUpload`` as its field ``file``.
        as_json: handles requests with another content type.
        settings: the application's settings.
        allows: returns whether a caller may call an operation.
    """

    async def adapter(request: web.Request) -> web.StreamResponse:
        if request.content_type != MULTIPART:
            return await as_json(request)
        begin(request, allows)
        ctx = request.app[CONTEXT]
        request[LAST] = True  # unless the whole body is read
        files = files_of(ctx)
        await accept_body(request, settings.files_max_bytes + _FORM_BYTES, "FILES_MAX_BYTES")
        form = _Form(request, settings.body_timeout_seconds)
        try:
            payload = await form.read(files.stage)
            request[LAST] = False
            request[PAYLOAD] = payload
            return await json_answer(await operation.handle(payload, ctx))
        finally:
            if form.staged is not None:
                files.discard(form.staged)

    return adapter


def file_handler(route: Route, allows: Allows) -> Handler:
    """Return an aiohttp handler that answers with the content of a file.

    Args:
        route: the route, whose path has the file's id.
        allows: returns whether a caller may call an operation.
    """

    async def adapter(request: web.Request) -> web.StreamResponse:
        begin(request, allows)
        ctx = request.app[CONTEXT]
        payload = query_payload(route, {field: request.match_info[field] for field in route.fields}, {})
        request[PAYLOAD] = payload
        files = files_of(ctx)
        file_id = parse(FileId, payload).file_id
        file, path = await files.content(ctx.caller(), file_id)
        headers = {"Content-Type": "application/octet-stream", "Cache-Control": "private, no-store"}
        return BoundedFile(path, seconds=_FILE_SECONDS + file.size / _FILE_RATE, headers=headers)

    return adapter


class _Form:
    """Reads a form whose file may be large: at least ``_MIN_RATE`` bytes a second after the usual deadline.

    Args:
        request: the request.
        seconds: the deadline of a usual body.
    """

    def __init__(self, request: web.Request, seconds: float) -> None:
        self.staged: StagedUpload | None = None
        self._request = request
        self._seconds = seconds
        self._started = asyncio.get_running_loop().time()
        self._received = 0

    async def read(self, stage: Any) -> dict[str, Any]:
        """Return the fields; the file's content is staged.

        Args:
            stage: ``Files.stage``.

        Raises:
            InvalidRequest: the form is not valid.
            RequestTimeout: the form arrives too slowly.
            ServiceError: errors of ``stage``.
        """
        payload: dict[str, Any] = {}
        try:
            reader = MultipartReader(self._request.headers, received_reader(self._request))
            for _ in range(_MAX_PARTS):
                part = await self._in_time(reader.next())
                if part is None:
                    return payload
                if not isinstance(part, BodyPartReader) or not part.name:
                    raise InvalidRequest("the form has a part without a name, or a form inside it")
                await self._read_part(part, payload, stage)
        except ServiceError:
            raise
        except (ValueError, web.RequestPayloadError) as error:
            raise InvalidRequest(f"the body is no valid form (RFC 7578): {error}") from None
        raise InvalidRequest(f"the form has more than {_MAX_PARTS} parts")

    async def _read_part(self, part: BodyPartReader, payload: dict[str, Any], stage: Any) -> None:
        name = str(part.name)
        if name == _FILE and self.staged is None:
            self.staged = payload[_FILE] = await stage(self._chunks(part))
            if part.filename is not None:
                payload.setdefault("filename", part.filename)
            return
        text = b"".join([chunk async for chunk in self._chunks(part, name)]).decode()
        member = _MEMBER.fullmatch(name)
        target, key = (payload, name) if member is None else (payload.setdefault(member[1], {}), member[2])
        if not isinstance(target, dict) or (key in target and key != "filename"):
            raise InvalidRequest(f"{name[:100]}: the form has this field twice", param=name[:100])
        target[key] = text

    async def _chunks(self, part: BodyPartReader, text_name: str | None = None) -> AsyncIterator[bytes]:
        size = 0
        while chunk := await self._in_time(part.read_chunk(_CHUNK)):
            self._received += len(chunk)
            size += len(chunk)
            if text_name is not None and size > _MAX_TEXT:
                raise InvalidRequest(f"{text_name[:100]}: more than {_MAX_TEXT} bytes", param=text_name[:100])
            yield chunk

    async def _in_time(self, read: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(self._started + self._seconds + self._received / _MIN_RATE):
                return await read
        except TimeoutError:
            raise RequestTimeout(
                f"The file arrives too slowly: after {self._seconds:g} seconds, {_MIN_RATE} bytes a second are needed."
            ) from None
