"""Bodies of responses that are sent as fast as the client reads."""

from __future__ import annotations

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

_PIECE = 1 << 15


class PacedBody(Payload):
    """A body that is sent in pieces.

    aiohttp hands bytes over to the transport at once, which copies what the client has not read. So a client that does
    not read would hold a copy of all of a large answer; of this body it holds some pieces.

    Args:
        body: the content.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content as text."""
        content: bytes = self._value
        return content.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the content; the writer waits for the client before it takes more than a few pieces."""
        content = memoryview(self._value)
        for start in range(0, len(content), _PIECE):
            await writer.write(content[start : start + _PIECE])


def paced(body: bytes) -> bytes | PacedBody:
    """Return the body to give to ``web.Response``: the bytes themselves if they fit one piece.

    Args:
        body: the content.
    """
    return body if len(body) <= _PIECE else PacedBody(body)
