"""Where operations are reached over HTTP: the same, whoever takes the request."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from app import create_app
from handlers.api.routes import ROUTES, allowed, error_form, match
from handlers.operations import OPERATIONS
from runtime.errors import MethodNotAllowed, NotFound
from runtime.settings import Settings
from tests.support.fakes import fake_context

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PATHS = [
    *(route.path.replace("{model:.+}", "fake") for route in ROUTES),
    *("/models/a/b/load", "/models//load", "/models/load", "/models/x\ny/unload", "/models/compare/load", "/cache/"),
    *("/models/default/unload", "/health/", "//health", "/Health", "/v1/", "/models/{model:.+}/load", "/x", "/v1"),
]


@pytest.fixture(scope="module")
def router() -> web.UrlDispatcher:
    """The routes of the service, as aiohttp matches them."""
    return create_app(Settings.load(), fake_context()).router


@pytest.mark.parametrize("path", PATHS)
async def test_it_matches_as_aiohttp_does(router: web.UrlDispatcher, path: str) -> None:
    """The same route, the same fields, the same refusals with the same methods allowed, for every method."""
    for method in METHODS:
        found = await router.resolve(make_mocked_request(method, path.replace("\n", "%0A").replace("{", "%7B")))
        error = found.http_exception
        if isinstance(error, web.HTTPMethodNotAllowed):
            assert ",".join(allowed(path)) == error.headers["Allow"], method
            with pytest.raises(MethodNotAllowed, match=f"^{method} is not allowed on this path; allowed: "):
                match(method, path)
        elif error is not None:
            with pytest.raises(NotFound):
                match(method, path)
        else:
            route, fields = match(method, path)
            info = found.get_info()
            assert (route.plain_path, fields) == (info.get("path", info.get("formatter")), dict(found)), method


def test_every_operation_has_a_route() -> None:
    """And every route an operation."""
    assert {route.operation for route in ROUTES} == OPERATIONS.keys()


OPENAI_PATHS = [
    "/v1/models",
    "/v1/chat/completions",
    "/v1/nowhere",
    "/v1/messagesx",
    "/v1/",
    "/v1",
    "/chat/completions",
]
PROBLEM_PATHS = ["/", "/generate", "/nowhere", "/v1x", "/v10/models", "/V1/models", "/chat/completions/", "/x/v1/"]


@pytest.mark.parametrize("path", OPENAI_PATHS)
def test_openai_paths(path: str) -> None:
    """OpenAI's clients get OpenAI's shape wherever they may ask."""
    assert error_form(path) == "openai"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"])
def test_anthropic_paths(path: str) -> None:
    """Anthropic's clients get Anthropic's shape."""
    assert error_form(path) == "anthropic"


@pytest.mark.parametrize("path", PROBLEM_PATHS)
def test_problem_paths(path: str) -> None:
    """All other paths speak problem details."""
    assert error_form(path) == "problem"


@pytest.mark.parametrize("path", ["/api/chat", "/api/pull", "/api/"])
def test_error_form_of_ollama(path: str) -> None:
    """All paths below /api are asked for by Ollama's clients only."""
    assert error_form(path) == "ollama"
