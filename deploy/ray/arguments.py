"""The arguments of the Ray application: ``NAME=VALUE`` behind ``serve run``, or ``args`` in a configuration file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from runtime.errors import SettingsError
from runtime.settings import Settings

# What Ray's HTTP proxy does, or what there is no socket for.
_OF_SOCKETS = ("TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CLIENT_CA_FILE", "PROXY_PROTOCOL")
_OF_LISTENING = ("HOST", "PORT")


class ServeArguments(BaseModel):
    """How many replicas there are, what each has, and how requests reach them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int | None = Field(None, ge=1, le=10_000, description="A fixed number of replicas, instead of a range.")
    min_replicas: int = Field(1, ge=0, le=10_000, description="The least replicas; 0 ends the last one when idle.")
    max_replicas: int = Field(1, ge=1, le=10_000, description="The most replicas.")
    target_requests: float = Field(
        16, gt=0, le=4096, description="Requests per replica at which replicas are added or ended."
    )
    upscale_seconds: float = Field(10, ge=0, le=3600, description="How long load must be higher before it is followed.")
    downscale_seconds: float = Field(300, ge=0, le=86_400, description="How long load must be lower, likewise.")
    cpus: float = Field(1, gt=0, le=1024, description="Cores of a replica, and its NUM_THREADS unless that is set.")
    gpus: float = Field(0, ge=0, le=64, description="GPUs of a replica.")
    ingress_replicas: int = Field(
        1, ge=1, le=1000, description="Processes that route requests. One is placed on the head node, more are spread."
    )
    router: Literal["prefix", "round_robin", "power_of_two"] = Field(
        "prefix", description="How replicas are chosen: by session and prefix, or by one of Ray's routers."
    )
    slack: int = Field(
        8, ge=0, le=4096, description="Requests that a replica may have above the least loaded one and be preferred."
    )
    retry_seconds: float = Field(
        120, gt=0, le=3600, description="How long a request waits for a free replica, or for the first, before 503."
    )
    settings: dict[str, str] = Field(
        default_factory=dict, description="Settings of the service, which override the environment's."
    )
    context: str = Field("", description="module:function that returns a context without a model, for tests.")

    @model_validator(mode="after")
    def _agree(self) -> ServeArguments:
        if self.replicas is not None and {"min_replicas", "max_replicas"} & self.model_fields_set:
            raise ValueError("replicas: it cannot be combined with min_replicas and max_replicas")
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas: {self.min_replicas} is more than max_replicas, {self.max_replicas}")
        known = {name.upper() for name in Settings.model_fields}
        for name in self.settings:
            if name not in known:
                raise ValueError(f"settings: {name!r} is not a setting")
            if name in _OF_LISTENING:
                raise ValueError(f"settings: {name} is Ray's: http_options of its configuration, or --http-options")
            if name in secret_names():
                raise ValueError(f"settings: {name} is a secret: set it in the environment of the nodes")
        return self


def secret_names() -> frozenset[str]:
    """Return the names of the settings that are secrets."""
    return frozenset(name.upper() for name, field in Settings.model_fields.items() if field.annotation is SecretStr)


def replica_settings(
    arguments: ServeArguments, environment: Mapping[str, str] | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the settings of the replicas, and the names of the secrets that their nodes must have.

    Settings of the environment in which the application is built are passed on, so that ``MODEL_NAME=... serve run``
    works as with ``make serve``; secrets are not, because Ray would store them. HOST and PORT are Ray's own.

    Args:
        arguments: the application's arguments.
        environment: the environment; by default this process's.

    Raises:
        SettingsError: a setting belongs to sockets, which a replica has none of.
    """
    environment = os.environ if environment is None else environment
    known = {name.upper() for name in Settings.model_fields} - {*_OF_LISTENING}
    found = {name: value for name, value in environment.items() if name in known} | arguments.settings
    secrets = tuple(sorted(name for name in found if name in secret_names() and found[name]))
    settings = {name: value for name, value in found.items() if name not in secret_names()}
    for name in _OF_SOCKETS:
        if settings.get(name, "").lower() not in ("", "false", "0"):
            raise SettingsError(f"{name}: on Ray the HTTP proxy accepts connections; see docs/growing.md for TLS there")
    settings.setdefault("NUM_THREADS", str(max(1, int(arguments.cpus))))
    return settings, secrets
