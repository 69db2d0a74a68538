"""``get_response`` and ``delete_response``: responses of the operation ``responses`` that are kept."""

from __future__ import annotations

from typing import Any

from handlers.context import Context
from handlers.generation.stored_responses import load, remove
from handlers.schemas.parsing import parse
from handlers.schemas.responses_api import ResponseId


async def get(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Return a response that is kept: takes a ``ResponseId``, returns a ``Response``.

    Raises:
        NotFound: it is not kept.
    """
    return load(parse(ResponseId, payload).response_id, ctx)


async def delete(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Forget a response: takes a ``ResponseId``, returns a ``DeletedResponse``.

    Raises:
        NotFound: it is not kept.
    """
    response_id = parse(ResponseId, payload).response_id
    remove(response_id, ctx)
    return {"id": response_id, "object": "response", "deleted": True}
