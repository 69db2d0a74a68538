"""deploy/knative against Knative's schemas (of release 1.17, as the cloudcoil packages have them) and our settings."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from app import create_app
from handlers.operations import OPERATIONS
from runtime.settings import Settings
from tests.support.fakes import fake_context
from tests.support.models import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # of names in it that shadow others
    from cloudcoil.models.knative_eventing.eventing.v1 import Trigger
    from cloudcoil.models.knative_serving.serving.v1 import Service

KINDS = {"service": Service, "trigger": Trigger}
MANIFESTS = {name: yaml.safe_load((ROOT / f"deploy/knative/{name}.yaml").read_text()) for name in KINDS}
# Whose keys the schema leaves open.
FREE = {"labels", "annotations", "limits", "requests", "prefix", "suffix", "not", "emptyDir"}


def known(name: str, manifest: Any) -> Any:
    """What the API server would keep of it: fields that the schema does not have are dropped.

    Raises:
        ValueError: a field has a wrong type, or one is missing.
    """
    return KINDS[name].model_validate(manifest).model_dump(by_alias=True, exclude_unset=True, mode="json")


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to all keys in it that its schema names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not path or path[-1] not in FREE:
                yield (*path, key)
            yield from keys(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from keys(inner, (*path, number))


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_unknown(name: str) -> None:
    """Every field is one that there is, of the right type."""
    assert known(name, MANIFESTS[name]) == MANIFESTS[name]


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, manifest in MANIFESTS.items() for path in keys(manifest)], ids=str
)
def test_a_misspelt_field_is_found(name: str, path: tuple[Any, ...]) -> None:
    """Each field, with a letter too many, is dropped or missed."""
    manifest = copy.deepcopy(MANIFESTS[name])
    parent = manifest
    for step in path[:-1]:
        parent = parent[step]
    parent[f"{path[-1]}x"] = parent.pop(path[-1])
    try:
        kept = known(name, manifest)
    except ValueError:
        return
    assert kept != manifest


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("trigger", ("spec", "delivery", "retry"), "often"),
        ("trigger", ("spec", "filters"), {"prefix": {}}),
        ("trigger", ("spec", "subscriber"), "warmstart"),
        ("service", ("spec", "template", "spec", "containerConcurrency"), "many"),
        ("service", ("spec", "template", "spec", "containers"), {}),
    ],
)
def test_a_value_of_another_type_is_found(name: str, path: tuple[str, ...], value: Any) -> None:
    """As the API server would refuse it."""
    manifest = copy.deepcopy(MANIFESTS[name])
    parent = manifest
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    with pytest.raises(ValueError, match=path[-1]):
        known(name, manifest)


def passes(rule: dict[str, Any], kind: str) -> bool:
    """Whether an event of a type passes a filter (Knative Eventing's Trigger, ``spec.filters``)."""
    (dialect, given), *more = rule.items()
    assert not more
    if dialect == "not":
        return not passes(given, kind)
    (value,) = given.values()
    assert list(given) == ["type"]
    return {"prefix": kind.startswith, "suffix": kind.endswith}[dialect](value)


def test_which_events_come() -> None:
    """Those that ask for an operation; no answers, which go back to the broker, and no events of other people."""
    filters = MANIFESTS["trigger"]["spec"]["filters"]

    def comes(kind: str) -> bool:
        return all(passes(rule, kind) for rule in filters)

    for name in OPERATIONS:
        assert comes(f"warmstart.{name}")
        assert not comes(f"warmstart.{name}.result")
        assert not comes(f"warmstart.{name}.error")
    assert not comes("com.example.asked")


def test_the_service_fits_the_program() -> None:
    """Its settings, port and probes are ours, and it waits longer than a generation may take."""
    spec = MANIFESTS["service"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert set(environment) <= {name.upper() for name in Settings.model_fields}
    secret = {name.lower(): "redis://redis/0" if value is None else value for name, value in environment.items()}
    settings = Settings.load(**secret)
    assert settings.request_timeout_seconds < spec["timeoutSeconds"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"EXPOSE {container['ports'][0]['containerPort']}\n" in dockerfile
    assert f"USER {container['securityContext']['runAsUser']}:" in dockerfile
    paths = {resource.canonical for resource in create_app(settings, fake_context()).router.resources()}
    assert MANIFESTS["trigger"]["spec"]["subscriber"]["uri"] in paths
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths


def test_the_trigger_calls_the_service() -> None:
    """By its name, in the version that it has."""
    service = MANIFESTS["service"]
    assert MANIFESTS["trigger"]["spec"]["subscriber"]["ref"] == {
        "apiVersion": service["apiVersion"],
        "kind": service["kind"],
        "name": service["metadata"]["name"],
    }
