"""handlers.operations.batches: creating, reading, listing and cancelling batches, each caller's apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from handlers.api.routes import ROUTES
from handlers.generation.batch_objects import ENDPOINTS
from handlers.operations import OPERATIONS, batches
from runtime.batches.batches import MAX_OPEN
from runtime.errors import FilesOff, InsufficientScope, InvalidRequest, NotFound, TooManyRequests
from tests.support.batches import CREATED, with_batches
from tests.support.fakes import fake_context

CREATE: dict[str, Any] = {
    "input_file_id": "file-1",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}


async def test_create() -> None:
    """A batch has OpenAI's form, and no model runs for it yet."""
    ctx = with_batches(fake_context())
    created = await batches.create(CREATE | {"metadata": {"a": "é"}}, ctx)
    times = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
    assert created == {
        "id": "batch_id1",
        "object": "batch",
        "endpoint": "/v1/chat/completions",
        "errors": None,
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": CREATED,
        "expires_at": CREATED + 86_400,
        **dict.fromkeys(f"{state}_at" for state in times),
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 0,
        },
        "metadata": {"a": "é"},
    }
    assert await batches.get({"batch_id": "batch_id1"}, ctx) == created


def test_endpoints() -> None:
    """Every operation that generates is an endpoint of batches, under the path of its route; but those of Ollama's API,
    which has no batches.
    """
    paths = {(route.path, route.operation) for route in ROUTES if route.method == "POST"}
    assert set(ENDPOINTS.items()) <= paths
    generating = {name for name, operation in OPERATIONS.items() if operation.generates}
    assert generating - set(ENDPOINTS.values()) == {"ollama_chat", "ollama_generate"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input_file_id": ""}, "input_file_id"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"completion_window": "a day"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {"x" * 65: "a"}}, f"metadata.{'x' * 65}.[key]"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"x": 1}, "x"),
    ],
)
async def test_wrong_batches(change: dict[str, Any], param: str) -> None:
    """Each wrong field is named."""
    with pytest.raises(InvalidRequest) as caught:
        await batches.create(CREATE | change, with_batches(fake_context()))
    assert caught.value.param == param


async def test_another_input_file() -> None:
    """The input file must exist, and belong to the caller."""
    ctx = with_batches(fake_context())
    for wrong in (ctx, replace(ctx, caller=lambda: "other")):
        with pytest.raises(NotFound) as caught:
            await batches.create(CREATE | {"input_file_id": "file-3" if wrong is ctx else "file-1"}, wrong)
        assert caught.value.param == "input_file_id"


async def test_scope_of_the_endpoint() -> None:
    """A key that may not call the endpoint may not do it in a batch either."""
    ctx = replace(with_batches(fake_context()), may_call=lambda operation: operation == "chat")
    await batches.create(CREATE, ctx)
    with pytest.raises(InsufficientScope, match="scope 'complete'"):
        await batches.create(CREATE | {"endpoint": "/complete"}, ctx)


async def test_too_many() -> None:
    """A caller has a limited number of batches that have not ended; one that is cancelled makes room when it ends."""
    ctx = with_batches(fake_context())
    for _ in range(MAX_OPEN - 1):
        await batches.create(CREATE, ctx)
    with pytest.raises(TooManyRequests, match=str(MAX_OPEN)):
        await batches.create(CREATE, ctx)


async def test_list() -> None:
    """The newest come first, page by page."""
    ctx = with_batches(fake_context())
    await batches.create(CREATE, ctx)
    first = await batches.list_batches({"limit": "1"}, ctx)
    second = await batches.list_batches({"limit": 1, "after": first["last_id"]}, ctx)
    assert [page["first_id"] for page in (first, second)] == ["batch_id1", "batch_1"]
    assert (first["has_more"], second["has_more"]) == (True, False)
    for wrong in ({"limit": 101}, {"after": "batch_9"}):
        with pytest.raises(InvalidRequest) as caught:
            await batches.list_batches(wrong, ctx)
        assert caught.value.param == next(iter(wrong))


async def test_cancel() -> None:
    """A batch is being cancelled until its runner has ended it, and asking again changes nothing."""
    ctx = with_batches(fake_context())
    for _ in range(2):
        answer = await batches.cancel({"batch_id": "batch_1"}, ctx)
        assert (answer["status"], answer["cancelling_at"]) == ("cancelling", CREATED)


async def test_of_another_caller() -> None:
    """Batches of others are not listed, and do not exist."""
    ctx = replace(with_batches(fake_context()), caller=lambda: "other")
    assert (await batches.list_batches({}, ctx))["data"] == []
    for call in (batches.get, batches.cancel):
        with pytest.raises(NotFound) as caught:
            await call({"batch_id": "batch_1"}, ctx)
        assert caught.value.param == "batch_id"


async def test_off() -> None:
    """Without a folder the error names the setting, whatever is asked."""
    for call in (batches.create, batches.list_batches, batches.get, batches.cancel):
        with pytest.raises(FilesOff, match="FILES_DIR"):
            await call({}, fake_context())
