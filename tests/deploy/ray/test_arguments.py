"""deploy.ray.arguments: what an application is built with, and the settings that its replicas get."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from deploy.ray.arguments import ServeArguments, replica_settings
from runtime.errors import SettingsError


def test_texts_of_the_command_line() -> None:
    """``replicas=2 cpus=0.5`` are numbers."""
    arguments = ServeArguments.model_validate({"replicas": "2", "cpus": "0.5"})
    assert (arguments.replicas, arguments.cpus) == (2, 0.5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 2, "max_replicas": 3}, "replicas"),
        ({"min_replicas": 3}, "min_replicas"),
        ({"router": "random"}, "router"),
        ({"settings": {"MODEL": "x"}}, "'MODEL' is not a setting"),
        ({"settings": {"PORT": "1"}}, "PORT is Ray's"),
        ({"settings": {"AUDIT_KEY": "x"}}, "AUDIT_KEY is a secret"),
    ],
)
def test_a_wrong_argument(given: dict[str, Any], named: str) -> None:
    """It is refused by name."""
    with pytest.raises(ValidationError, match=named):
        ServeArguments.model_validate(given)


def test_settings_of_replicas() -> None:
    """Settings of the environment are sent with the application, arguments override them, secrets stay out."""
    environment = {"MODEL_NAME": "a", "MAX_BATCH": "8", "API_KEYS": "k", "PORT": "1", "HOME": "/root"}
    arguments = ServeArguments(cpus=2, settings={"MODEL_NAME": "b"})
    settings, secrets = replica_settings(arguments, environment)
    assert settings == {"MODEL_NAME": "b", "MAX_BATCH": "8", "NUM_THREADS": "2"}
    assert secrets == ("API_KEYS",)


def test_threads_are_cores() -> None:
    """A replica has as many threads as cores, at least one, unless NUM_THREADS says otherwise."""
    assert replica_settings(ServeArguments(cpus=0.5), {})[0] == {"NUM_THREADS": "1"}
    assert replica_settings(ServeArguments(cpus=4), {"NUM_THREADS": "3"})[0] == {"NUM_THREADS": "3"}


@pytest.mark.parametrize("name", ["TLS_CERT_FILE", "PROXY_PROTOCOL"])
def test_settings_of_sockets(name: str) -> None:
    """What has no meaning without a socket is refused by name, and not if it is off."""
    with pytest.raises(SettingsError, match=name):
        replica_settings(ServeArguments(), {name: "true"})
    replica_settings(ServeArguments(), {name: "false"})
