"""deploy/helm/warmstart, rendered by Helm's own library, against Kubernetes' schemas and those of the other kinds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart

from handlers.cli.parser import build_parser
from runtime.settings import Settings
from tests.support.models import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # of names in them that shadow others
    from cloudcoil.models.keda.v1alpha1 import ScaledObject
    from cloudcoil.models.knative_serving.serving.v1 import Service
    from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

CHART = ROOT / "deploy/helm/warmstart"
KUBERNETES = ("1.30", "1.37")  # the oldest that the chart allows, and the newest that there are schemas of
KINDS = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor, ("Service", "knative"): Service}
# The part of inference.networking.k8s.io/v1 that is used, after the definition's text: no package has its schema.
POOL = {
    "type": "object",
    "additionalProperties": False,
    "required": ["selector", "targetPorts", "endpointPickerRef"],
    "properties": {
        "selector": {
            "type": "object",
            "additionalProperties": False,
            "required": ["matchLabels"],
            "properties": {
                "matchLabels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
            },
        },
        "targetPorts": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["number"],
                "properties": {"number": {"type": "integer", "minimum": 1, "maximum": 65535}},
            },
        },
        "endpointPickerRef": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "group": {"type": "string"},
                "kind": {"type": "string"},
                "name": {"type": "string", "minLength": 1},
                "port": {"type": "object", "required": ["number"], "properties": {"number": {"type": "integer"}}},
                "failureMode": {"enum": ["FailOpen", "FailClose"]},
            },
        },
    },
}
SECRET = {"secrets": {"existingSecret": "settings"}}
FILLED = {
    "image": {"tag": "1", "pullSecrets": ["registry"]},
    "settings": {"MODEL_NAME": "distilgpt2", "ALLOWED_IPS": "10.0.0.0/8"},
    "secrets": {"existingSecret": "settings", "keysSecret": "keys"},
    "shareStateInRedis": True,
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "x"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podDisruptionBudget": {"maxUnavailable": "25%"},
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 6379, "protocol": "TCP"}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "tokenSecret": "token"},
    "keda": {"enabled": True, "authentication": "prometheus"},
    "inferencePool": {"enabled": True},
}


def _worker(broker: str, **autoscaling: Any) -> dict[str, Any]:
    scaling = {"enabled": True, "address": "broker:1234", "authentication": "broker"} | autoscaling
    return SECRET | {"worker": {"enabled": True, "queue": {"broker": broker}, "autoscaling": scaling}}


COMBINATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "everything": FILLED,
    "nothing": {part: {"enabled": False} for part in ("topologySpread", "podDisruptionBudget", "networkPolicy")},
    "volume": {"modelCache": {"type": "volume", "storageClass": "nfs"}},
    "existing-claim": {"modelCache": {"type": "volume", "existingClaim": "models", "pull": False}},
    "ephemeral": {"modelCache": {"type": "ephemeral"}},
    "monitored": {"serviceMonitor": {"enabled": True}},
    "keda": {"keda": {"enabled": True}, "serviceMonitor": {"enabled": True}},
    "pool": {"inferencePool": {"enabled": True}},
    "knative": {"kind": "knative"},
    "knative-filled": {name: value for name, value in FILLED.items() if name not in ("keda", "serviceMonitor")}
    | {"kind": "knative", "knative": {"visibility": ""}, "inferencePool": {"enabled": False}},
    "worker": SECRET | {"worker": {"enabled": True, "operation": "chat", "queue": {"stream": "ORDERS"}}},
    **{f"worker-{broker}": _worker(broker) for broker in ("nats", "redis", "rabbitmq", "kafka")},
}


def render(**values: Any) -> list[dict[str, Any]]:
    """Return the manifests of a release named demo."""
    with Chart.load(CHART) as chart:
        chart.validate_schema(values)
        rendered = chart.render(values, name="demo", namespace="models")
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [manifest for text in texts for manifest in yaml.safe_load_all(text) if manifest]


def only(manifests: list[dict[str, Any]], kind: str, name: str = "demo-warmstart") -> dict[str, Any]:
    """Return the manifest of a kind and a name."""
    (found,) = (one for one in manifests if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def pods(manifests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the pods' specifications."""
    for manifest in manifests:
        if "template" in manifest.get("spec", {}):
            yield manifest["spec"]["template"]["spec"]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a pod's container."""
    found = [(variable["name"], variable["value"]) for variable in pod["containers"][0]["env"]]
    assert len(found) == len(dict(found)), "a variable stands twice"
    return dict(found)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_every_combination_is_valid(name: str) -> None:
    """Each manifest has only fields that its kind has, of the right types, in all versions of Kubernetes."""
    for manifest in render(**COMBINATIONS[name]):
        version = manifest["apiVersion"]
        kind: Any = (manifest["kind"], "knative") if "knative" in version else manifest["kind"]
        if kind in KINDS:
            model = KINDS[kind].model_validate(manifest)
            assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") == manifest
        elif manifest["kind"] == "InferencePool":
            jsonschema.validate(manifest["spec"], POOL)
        else:
            for release in KUBERNETES:
                kubernetes_validate.validate(manifest, release, strict=True)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_pods_are_locked_down(name: str) -> None:
    """No pod runs as root, writes to its image, gains privileges or has a token of the API server."""
    manifests = render(**COMBINATIONS[name])
    assert only(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
    for pod in pods(manifests):
        assert pod["enableServiceLinks"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["runAsNonRoot"] is security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", COMBINATIONS)
def test_settings_are_settings(name: str) -> None:
    """Each variable is one of the service's settings, with a valid value, and none is a secret."""
    for pod in pods(render(**COMBINATIONS[name])):
        found = environment(pod)
        Settings.load(**{setting.lower(): value for setting, value in found.items()})
        assert {setting.lower() for setting in found} <= set(Settings.model_fields)
        assert not {"API_KEYS", "REDIS_URL", "EVENTS_URL", "AUDIT_KEY"} & set(found)
        assert len(found["DRAIN_SECONDS"]) > 0


def test_selectors_find_the_service_only() -> None:
    """Service, budget, pool and policy select the pods that they are for: workers get no requests."""
    manifests = render(**(FILLED | _worker("nats")))
    labels = {
        name: only(manifests, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        for name in ("demo-warmstart", "demo-warmstart-worker")
    }
    selectors = {
        "Service": only(manifests, "Service")["spec"]["selector"],
        "PodDisruptionBudget": only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        "InferencePool": only(manifests, "InferencePool")["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": only(manifests, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        "Deployment": only(manifests, "Deployment")["spec"]["selector"]["matchLabels"],
    }
    for kind, selector in selectors.items():
        assert selector.items() <= labels["demo-warmstart"].items(), kind
        assert (selector.items() <= labels["demo-warmstart-worker"].items()) is (kind == "NetworkPolicy")
    monitored = only(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= only(manifests, "Service")["metadata"]["labels"].items()


def test_a_pod_drains() -> None:
    """The grace period is longer than the drain, with the time before it in which endpoints forget the pod."""
    for pod in pods(render(drainSeconds=100)):
        sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] > 100 + sleep
        assert environment(pod)["DRAIN_SECONDS"] == "100"


def test_an_update_takes_no_pod_away_first() -> None:
    """A new pod is ready before an old one ends."""
    assert only(render(), "Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_probes() -> None:
    """Liveness and readiness ask the routes for them; a load takes as long as it takes."""
    (pod,) = pods(render())
    container = pod["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_your_settings_win() -> None:
    """A setting of the values replaces the chart's own."""
    (pod,) = pods(render(settings={"IDEMPOTENCY": "off", "MODEL_NAME": "distilgpt2"}))
    assert environment(pod)["IDEMPOTENCY"] == "off"
    assert environment(pod)["MODEL_NAME"] == "distilgpt2"


def test_shared_state() -> None:
    """With Redis everything that replicas can share is there."""
    (pod,) = pods(render(shareStateInRedis=True, **SECRET))
    found = environment(pod)
    shared = ("RESPONSE_CACHE", "RATE_LIMIT_STORE", "SIGNING_NONCES", "IDEMPOTENCY")
    assert {found[name] for name in shared} == {"redis"}


def test_scaling_leaves_the_number_of_pods_alone() -> None:
    """Where KEDA decides, a deployment names no number, which an upgrade would go back to."""
    manifests = render(**(_worker("nats") | {"keda": {"enabled": True}}))
    for name in ("demo-warmstart", "demo-warmstart-worker"):
        assert "replicas" not in only(manifests, "Deployment", name)["spec"]
        assert only(manifests, "ScaledObject", name)["spec"]["scaleTargetRef"] == {"name": name}
    assert only(manifests, "ScaledObject", "demo-warmstart-worker")["spec"]["minReplicaCount"] == 0


@pytest.mark.parametrize(
    ("broker", "trigger", "metadata"),
    [
        ("nats", "nats-jetstream", {"stream": "WARMSTART", "consumer": "warmstart", "lagThreshold": "16"}),
        ("redis", "redis-streams", {"stream": "warmstart:requests", "streamLength": "16"}),
        ("rabbitmq", "rabbitmq", {"queueName": "warmstart.requests", "mode": "QueueLength", "value": "16"}),
        ("kafka", "kafka", {"topic": "warmstart.requests", "consumerGroup": "warmstart", "lagThreshold": "16"}),
    ],
)
def test_lag_of_each_broker(broker: str, trigger: str, metadata: dict[str, str]) -> None:
    """KEDA reads the queue that workers of this broker consume by default."""
    (found,) = only(render(**_worker(broker)), "ScaledObject", "demo-warmstart-worker")["spec"]["triggers"]
    assert found["type"] == trigger
    assert metadata.items() <= found["metadata"].items()
    assert found["authenticationRef"] == {"name": "broker"}
    assert all(isinstance(value, str) for value in found["metadata"].values())


def test_the_worker_runs_a_command_that_there_is() -> None:
    """Its arguments are those of the command line."""
    manifests = render(**COMBINATIONS["worker"])
    arguments = only(manifests, "Deployment", "demo-warmstart-worker")["spec"]["template"]["spec"]["containers"][0][
        "args"
    ]
    options = build_parser(print, print).parse_args(arguments[1:])
    assert (options.stream_name, options.group, options.operation, options.port) == (
        "ORDERS",
        "warmstart",
        "chat",
        8000,
    )


def test_knative_sets_the_port() -> None:
    """PORT is left to Knative, which refuses it as a variable; its proxy is trusted with the client's address."""
    (pod,) = pods(render(kind="knative"))
    found = environment(pod)
    assert "PORT" not in found
    assert found["TRUSTED_PROXIES"] == "127.0.0.0/8"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "replicas"),
        ({"kind": "statefulset"}, "kind"),
        ({"settings": {"MAX_BATCH": 8}}, "settings"),
        ({"settings": {"API_KEYS": "k"}}, "API_KEYS"),
        ({"settings": {"PORT": "1"}}, "PORT"),
        ({"modelCache": {"size": "ten"}}, "size"),
        ({"keda": {"minReplicas": 0}}, "minReplicas"),
        ({"kind": "knative", "keda": {"enabled": True}}, "enabled"),
        ({"worker": {"queue": {"broker": "sqs"}}}, "broker"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], named: str) -> None:
    """The schema names what is wrong."""
    with pytest.raises(helm_python.HelmError, match=named):
        render(**values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"worker": {"enabled": True}}, "existingSecret"),
        (_worker("nats", address=""), "worker.autoscaling.address"),
        (_worker("rabbitmq", authentication=""), "worker.autoscaling.authentication"),
    ],
)
def test_values_that_do_not_fit_together(values: dict[str, Any], named: str) -> None:
    """What only a template can see is refused by it."""
    with pytest.raises(helm_python.HelmError, match=named):
        render(**values)


def test_the_schema_covers_every_value() -> None:
    """Each default is described, so that a misspelt one is found, and nothing is described that there is not."""

    def names(value: Any, path: str = "") -> set[str]:
        inner = value.items() if isinstance(value, dict) else ()
        return {f"{path}{name}" for name, _ in inner}.union(*(names(one, f"{path}{name}.") for name, one in inner))

    def described(schema: dict[str, Any], path: str = "") -> set[str]:
        inner = schema.get("properties", {}).items()
        return {f"{path}{name}" for name, _ in inner}.union(*(described(one, f"{path}{n}.") for n, one in inner))

    with Chart.load(CHART) as chart:
        schema, values = chart.schema, chart.values
    assert schema is not None
    open_ended = ("resources.requests.", "resources.limits.")
    assert {name for name in names(values) if not name.startswith(open_ended)} == described(schema) - {"global"}
