"""``warmstart sign``: what is printed is what a shell and curl need, tried with both against the real service."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import server
from loadtests.service import Service, running_service
from tests.support.signed import KEY_ID, SECRET, record

URL = "http://127.0.0.1:8000/generate"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNING_SECRET", base64.b64encode(SECRET).decode())


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """The real service, without a model, which signed requests must reach."""
    with running_service(
        API_KEYS=record(scopes=["*", "admin"]), REQUEST_SIGNING="required", PRELOAD="false"
    ) as running:
        running.wait("/livez")
        yield running


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    assert server.main(["sign", "--key-id", KEY_ID, *arguments]) == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


def test_headers(capsys: pytest.CaptureFixture[str]) -> None:
    """One -H option a line: with a body its type and digest too; the method is written as it is sent."""
    lines = _printed(capsys, "post", URL, "--data", "{}").splitlines()
    names = [shlex.split(line)[1].partition(":")[0] for line in lines]
    assert [shlex.split(line)[0] for line in lines] == ["-H"] * 4
    assert names == ["Content-Type", "Content-Digest", "Signature-Input", "Signature"]
    assert [line.split(":")[0] for line in _printed(capsys, "GET", URL).splitlines()] == [
        "-H 'Signature-Input",
        "-H 'Signature",
    ]


def test_secret_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file goes before the environment; neither is printed."""
    secret = base64.b64encode(b"another secret" * 4).decode()
    (tmp_path / "secret").write_text(secret + "\n")
    monkeypatch.setenv("SIGNING_SECRET", "not base64")
    printed = _printed(capsys, "GET", URL, "--secret-file", str(tmp_path / "secret"))
    assert "Signature" in printed
    assert secret not in printed


@pytest.mark.parametrize(
    ("secret", "arguments", "said"),
    [
        ("", ["GET", URL], "the signing key's secret is missing; set SIGNING_SECRET or --secret-file"),
        (" ", ["GET", URL], "the secret is empty"),
        ("not base64", ["GET", URL], "the secret is not base64"),
        ("ü", ["GET", URL], "the secret is not base64"),
        ("YQ==", ["GET", "http://x/a b"], "percent-encoded"),
        ("YQ==", ["GET", "/generate"], "is not http://HOST/PATH"),
        ("YQ==", ["POST", URL, "--data", "\udcff"], "--data must be UTF-8; use --data-file"),
        ("YQ==", ["POST", URL, "--data-file", "/nowhere/at all"], "No such file"),
        ("YQ==", ["POST", URL, "--secret-file", "/nowhere/at all"], "No such file"),
    ],
)
def test_what_cannot_be_signed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, secret: str, arguments: list[str], said: str
) -> None:
    """A sentence that says what to do, status 1, and nothing of the secret."""
    monkeypatch.setenv("SIGNING_SECRET", secret)
    printed = _printed(capsys, *arguments, status=1)
    assert said in printed
    assert printed.startswith("warmstart: ")


BODIES = [
    '{"prompt": "Hi", "max_new_tokens": 0}',
    '{"prompt": "it\'s \\"quoted\\", $HOME `id` \\\\ !! ü",\n "max_new_tokens": 0}\n',
    "@/etc/hostname",
    "  ",
]


def _curl(command: str) -> tuple[int, dict[str, object]]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["sh", "-c", f"{command} --silent --max-time 30 --write-out '\\n%{{http_code}}'"],
        capture_output=True,
        text=True,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body or "{}")


@pytest.mark.parametrize("body", BODIES)
def test_curl_with_a_body(capsys: pytest.CaptureFixture[str], service: Service, tmp_path: Path, body: str) -> None:
    """A body of any characters reaches the service as it was signed, from the command line and from a file."""
    (tmp_path / "it's a file").write_text(body)
    for data in (["--data", body], ["--data-file", str(tmp_path / "it's a file")]):
        status, answer = _curl(_printed(capsys, "POST", f"{service.url}/generate", *data, "--curl").strip())
        wanted = "max_new_tokens" if body.startswith("{") else None  # of which 0 are too few
        assert (status, answer["code"], answer.get("param")) == (400, "invalid_request", wanted), answer


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/models", 200, None),
        ("HEAD", "/models", 200, None),
        ("GET", "/models?a=[1-2]&a={b,c}&d='$x'", 400, "invalid_request"),
        ("POST", "/models/a%2Fb/../c/load", 404, "model_not_found"),
        ("DELETE", "/cache", 200, None),
        ("DELETE", "/models", 405, "method_not_allowed"),
    ],
)
def test_curl_without_a_body(
    capsys: pytest.CaptureFixture[str], service: Service, method: str, path: str, status: int, code: str | None
) -> None:
    """Any method and any URL that can be written reaches the service as it was signed; once."""
    command = _printed(capsys, method, service.url + path, "--curl").strip()
    if method == "HEAD":
        command += " --output /dev/null"
    found, answer = _curl(command)
    assert (found, answer.get("code")) == (status, code), answer
    assert _curl(command)[0] == 401


def test_curl_with_the_headers(capsys: pytest.CaptureFixture[str], service: Service) -> None:
    """The headers alone are good for a curl call of one's own."""
    headers = _printed(capsys, "GET", f"{service.url}/models").replace("\n", " ")
    assert _curl(f"curl {headers} {service.url}/models")[0] == 200


def test_models(capsys: pytest.CaptureFixture[str], service: Service) -> None:
    """``warmstart models`` signs too, wherever in the command the key is named; each of its calls anew."""
    for arguments in (["--key-id", KEY_ID, "ls"], ["ls", "--key-id", KEY_ID], ["--key-id", KEY_ID]):
        assert server.main(["models", "--url", service.url, *arguments]) == 0
        assert "smollm2-135m-instruct" in capsys.readouterr().out
    assert server.main(["models", "--url", service.url, "--key-id", KEY_ID, "unload", "a/b"]) == 1
    assert "no model 'a/b' here" in capsys.readouterr().err
    assert server.main(["models", "--url", service.url]) == 1
    assert server.main(["models", "--url", f"{service.url}/a b", "--key-id", KEY_ID]) == 0
    assert "percent-encoded; these are the models" in capsys.readouterr().err
