"""The cases of clients run against the service and, in the long form, against its ASGI application, too."""

from __future__ import annotations

import pytest

from tests.support.asgi import serving_asgi
from tests.support.soak import SOAK


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if SOAK and hasattr(metafunc.module, "serving"):
        metafunc.fixturenames.append("application")
        metafunc.parametrize("application", ["aiohttp", "asgi"], indirect=True)


@pytest.fixture
def application(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the service that the module's tests start."""
    if request.param == "asgi":
        monkeypatch.setattr(request.module, "serving", serving_asgi)
