"""What lies in ``deploy/`` for Prometheus and Grafana, held against the metrics that the service really shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as read_text

from app import create_app
from runtime import errors
from runtime.settings import Settings
from runtime.status import ModelState

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/warmstart.json").read_text())
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: apt-get install prometheus")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard_queries() -> list[str]:
    """What the panels ask, with Grafana's variables filled in."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [query.replace("$__rate_interval", "1m").replace("$model", ".*") for query in queries]


def error_codes() -> Iterator[str]:
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.ServiceError):
            yield error.code


@needs_promtool
def test_prometheus_takes_the_configuration() -> None:
    """promtool finds nothing wrong with it, nor with the rules that it names."""
    promtool("check", "config", "--lint-fatal", DEPLOY / "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", DEPLOY / "alerts.yml")


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    """The rules' own unit tests, in which every alert is tested."""
    tested = (DEPLOY / "alerts_test.yml").read_text()
    assert [rule["alert"] for rule in RULES if rule["alert"] not in tested] == []
    promtool("test", "rules", DEPLOY / "alerts_test.yml")


@needs_promtool
def test_dashboard_queries_are_valid(tmp_path: Path) -> None:
    """Each panel's query is PromQL."""
    rules = [{"record": f"panel:{i}", "expr": query} for i, query in enumerate(dashboard_queries())]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alerts_say_what_to_do(rule: dict[str, Any]) -> None:
    """Each waits a while, has a severity, and tells what is wrong and what to do about it."""
    assert re.fullmatch(r"[1-9]\d*m", rule["for"])
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "action"}


async def test_every_metric_that_is_asked_for_exists(aiohttp_client: Any, tiny_gpt2: Path) -> None:
    """The names, and the values of labels, in alerts and dashboard are those of a service that has done some work."""
    http = await aiohttp_client(create_app(Settings.load(model_name=str(tiny_gpt2), kv_cache_bytes=1 << 20)))
    for seed in range(2):
        answer = await http.post("/complete", json={"prompt": "You", "max_new_tokens": 4, "seed": seed})
        assert answer.status == 200
    text = await (await http.get("/metrics")).text()
    families = list(read_text(text))
    shown = {sample.name for family in families for sample in family.samples}
    # Of these there is nothing to show before something went wrong or a text was encoded; the family is there.
    declared = {f"{family.name}_total" for family in families if family.type == "counter" and not family.samples}
    later = {"request_failure", "request_rejected", "edge_refusals", "events", "events_retries", "events_dead_letters"}
    assert declared <= {f"warmstart:{name}_total" for name in later | {"encoded_inputs"}}
    lag = "warmstart:events_lag"  # of a queue, which a worker has
    assert any(family.name == lag and family.type == "gauge" for family in families)
    declared.add(lag)
    queries = [*dashboard_queries(), *(rule["expr"] for rule in RULES)]
    queries += [re.search(r"label_values\((.*),", DASHBOARD["templating"]["list"][0]["definition"])[1]]  # type: ignore[index]
    asked = {name for query in queries for name in re.findall(r"\b(?:warmstart|process)[:_]\w+", query)}
    assert len(asked) > 30
    assert asked - shown - declared == set()
    known = {"state": set(get_args(ModelState)), "reason": set(error_codes()), "job": {"warmstart"}}
    for query in queries:
        for label, value in re.findall(r'(\w+)="([^"]*)"', query):
            assert value in known[label], query


async def test_metrics_keep_to_the_models_served(aiohttp_client: Any, tiny_gpt2: Path) -> None:
    """Names that callers make up leave no trace in the metrics."""
    http = await aiohttp_client(create_app(Settings.load(model_name=str(tiny_gpt2), preload=False)))
    assert (await http.post("/complete", json={"prompt": "x", "model": "made-up"})).status == 404
    text = await (await http.get("/metrics")).text()
    assert "made-up" not in text
    assert 'warmstart:model_state{model_name="tiny-gpt2",state="unloaded"} 1.0' in text


def test_prometheus_scrapes_the_service_of_the_compose_file() -> None:
    """By its name, on its port, with the configuration and the rules mounted side by side."""
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = next(job for job in jobs if job["job_name"] == "warmstart")["static_configs"][0]["targets"]
    assert target == f"warmstart:{Settings.model_fields['port'].default}"
    service = COMPOSE["services"]["prometheus"]
    for name in ("prometheus.yml", "alerts.yml"):
        assert f"./deploy/{name}:/etc/prometheus/{name}:ro" in service["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in service["command"]
    assert "edge" in service["networks"]


def test_grafana_finds_its_dashboard_and_prometheus() -> None:
    """What is provisioned is mounted where it is looked for, and every panel asks the provisioned source."""
    mounted = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    for name in ("datasources", "dashboards"):
        assert mounted[f"./deploy/grafana/{name}.yml"].startswith(f"/etc/grafana/provisioning/{name}/")
    (provider,) = yaml.safe_load((DEPLOY / "grafana/dashboards.yml").read_text())["providers"]
    shown = Path(mounted["./deploy/grafana/warmstart.json"])
    assert str(shown.parent) == provider["options"]["path"]
    assert COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == str(shown)
    (source,) = yaml.safe_load((DEPLOY / "grafana/datasources.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = set(re.findall(r'"uid": "(\w+)"', json.dumps(DASHBOARD["panels"])))
    assert used == {source["uid"]}


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_images_are_pinned(name: str) -> None:
    """To one version, not to what happens to be the latest."""
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+", COMPOSE["services"][name]["image"])
