"""Settings: read once, checked whole, wrong ones named."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_network
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from runtime.errors import SettingsError
from runtime.model.catalogue import served_models
from runtime.settings import Settings


def test_defaults() -> None:
    """Loopback, port 8000, the embedded model, preloaded; private networks may call, no proxy is trusted, no CORS."""
    settings = Settings.load()
    assert (settings.host, settings.port, settings.model_name) == ("127.0.0.1", 8000, "smollm2-135m-instruct")
    assert settings.preload
    assert not settings.disable_ip_restriction
    assert settings.trusted_proxies == settings.cors_origins == ()
    assert {ip_network(text) for text in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")} <= set(
        settings.allowed_ips
    )
    assert {ip_network("::1/128"), ip_network("fc00::/7")} <= set(settings.allowed_ips)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("PORT", "9000", 9000),
        ("PRELOAD", "false", False),
        ("MODEL_WAIT_SECONDS", "1.5", 1.5),
        ("ALLOWED_IPS", "10.1.2.3/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("ALLOWED_IPS", "", ()),
        ("TRUSTED_PROXIES", "10.0.0.1 10.0.0.2", (ip_network("10.0.0.1"), ip_network("10.0.0.2"))),
        ("CLIENT_IP_HEADER", "forwarded", "forwarded"),
        ("CORS_ORIGINS", "https://a.example,http://b.example", ("https://a.example", "http://b.example")),
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("DEVICE", "cuda:1", "cuda:1"),
        ("HOST", " [::1]\t", "::1"),
        ("PORT", "8000 ", 8000),
        ("PRELOAD", " false\n", False),
        ("ENGINE", "fast ", "fast"),
        ("API_KEYS_FILE", "  ", None),
        ("REDIS_URL", "redis://localhost:1/0\n", SecretStr("redis://localhost:1/0")),
        ("MODELS", "a, b  c", ("a", "b", "c")),
        ("MODELS", '["/my models/a,b", "c"]', ("/my models/a,b", "c")),
        ("PINNED_MODELS", "[]", ()),
    ],
)
def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any) -> None:
    """Each kind of value, as an operator would write it."""
    monkeypatch.setenv(name, text)
    assert getattr(Settings.load(), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("PORT", "abc", "PORT: .*integer.*'abc'"),
        ("PORT", "70000", "PORT: .*65535.*'70000'"),
        ("PORT", "", "PORT"),
        ("ALLOWED_IPS", "10.0.0.0/8,not-a-net", "ALLOWED_IPS.*'not-a-net'"),
        ("TRUSTED_PROXIES", "10.1.2.3/8", r"TRUSTED_PROXIES.*'10\.1\.2\.3/8'"),
        ("ALLOWED_IPS", "::ffff:10.0.0.0/80", "ALLOWED_IPS.*::ffff:10"),
        ("CLIENT_IP_HEADER", "x-client", "CLIENT_IP_HEADER"),
        ("CORS_ORIGINS", "example.com", "CORS_ORIGINS.*example.com"),
        ("DEVICE", "tpu", "DEVICE"),
        ("HOST", "[::1]:80", r"HOST: '\[::1\]:80'.*PORT"),
        ("HOST", "[127.0.0.1]", "HOST.*IPv6"),
        ("MODELS", "[a, b]", r"MODELS: '\[a, b\]'.*JSON"),
        ("MODELS", "[1]", "MODELS.*JSON"),
        ("DTYPE", "int3", "DTYPE"),
        ("MODEL_NAME", "", "MODEL_NAME"),
        ("MAX_BODY_BYTES", "1", "MAX_BODY_BYTES"),
        ("REQUEST_TIMEOUT_SECONDS", "nan", "REQUEST_TIMEOUT_SECONDS"),
    ],
)
def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, text: str, said: str) -> None:
    """The message holds the setting's name and what was given."""
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=said):
        Settings.load()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"REQUEST_SIGNING": "required"}, "REQUEST_SIGNING: set API_KEYS_FILE or API_KEYS"),
        ({"AUDIT_LOG": "/tmp/audit.jsonl", "AUDIT_KEY": "short"}, "AUDIT_KEY: AUDIT_LOG needs a secret of"),
        ({"AUDIT_REQUIRED": "true"}, "AUDIT_REQUIRED: set AUDIT_LOG"),
        ({"TLS_KEY_FILE": "/tmp/key.pem"}, "TLS_CERT_FILE: TLS_KEY_FILE and"),
        (
            {"PROXY_PROTOCOL": "true", "TLS_CERT_FILE": "/tmp/a.pem", "TRUSTED_PROXIES": "127.0.0.1"},
            "cannot be combined with TLS_CERT_FILE",
        ),
        ({"PROXY_PROTOCOL": "true"}, "PROXY_PROTOCOL: set TRUSTED_PROXIES"),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], said: str
) -> None:
    """A setting that needs another one, or excludes it, is an error at the start, not an open door later."""
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=said):
        Settings.load()


def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a container's user that is only a number."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)


@pytest.mark.parametrize("name", ["API_KEYS_FILE", "AUDIT_LOG", "CACHE_DIR", "TLS_CERT_FILE"])
def test_without_a_home_directory(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A path with ~ is refused with the setting's name, the default of CACHE_DIR too; other paths are good."""
    _no_home(monkeypatch)
    monkeypatch.setenv("CACHE_DIR", "/tmp/cache")
    Settings.load()
    monkeypatch.setenv(name, "~/x")
    with pytest.raises(SettingsError, match=f"^{name}: no home directory is known for '~/x'; set HOME") as caught:
        Settings.load()
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("CACHE_DIR", raising=False)
    with pytest.raises(SettingsError, match="CACHE_DIR: no home directory"):
        Settings.load()


def test_a_model_in_a_home_directory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """MODEL_NAME and MODELS are refused likewise."""
    _no_home(monkeypatch)
    for name, models, said in (("~/model", [], "MODEL_NAME"), ("distilgpt2", ["~/model"], "MODELS")):
        with pytest.raises(SettingsError, match=f"^{said}: no home directory"):
            served_models(name, models)


def test_shown_values_can_be_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `warmstart config` shows of MODELS is read as the same."""
    models = ("/my models/a", "b,c")
    shown = {name: value for name, value, *_ in Settings.load(models=models).describe()}["MODELS"]
    monkeypatch.setenv("MODELS", shown)
    assert Settings.load().models == models


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One start is enough to see every mistake."""
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("DTYPE", "y")
    with pytest.raises(SettingsError, match=r"(?s)PORT.*DTYPE"):
        Settings.load()


def test_settings_are_frozen() -> None:
    """Nothing changes them after start."""
    with pytest.raises((ValidationError, dataclasses.FrozenInstanceError)):
        Settings.load().port = 1  # type: ignore[misc]


def test_every_setting_has_help_and_is_described() -> None:
    """`warmstart config` has a line of help for each, and shows current beside default values."""
    rows = {name: (value, default, text) for name, value, default, text in Settings.load(port=1).describe()}
    assert rows.keys() == {name.upper() for name in Settings.model_fields}
    assert all(text.endswith(".") for _, _, text in rows.values())
    assert rows["PORT"][:2] == ("1", "8000")
