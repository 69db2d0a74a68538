"""The process: starting, draining, and every command of the command line, as a user runs them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from loadtests.service import free_port, running_service
from tests.support.command_line import warmstart
from tests.support.models import ROOT
from tests.support.waiting import wait_until

WARMSTART = [sys.executable, "-c", "import sys, server; sys.exit(server.main(sys.argv[1:]))"]
FRANCE = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def environment(**settings: str) -> dict[str, str]:
    return os.environ | {"LOG_FORMAT": "json"} | settings


@contextmanager
def serving(**settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """``python server.py`` on a free port, once it is alive: the process, its URL, its log."""
    with running_service(**({"LOG_FORMAT": "json"} | settings)) as service:
        service.wait("/livez")
        yield service.process, service.url, service.log


def get(url: str, path: str, payload: object = None) -> tuple[int, Any]:
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_fresh_server_answers_probes_at_once_and_questions_when_loaded() -> None:
    """/livez is 200 and /readyz 503 while the model loads; a question asked meanwhile waits and is answered."""
    with serving() as (_, url, log):
        assert get(url, "/readyz")[0] == 503
        assert get(url, "/health")[1]["status"] in ("idle", "loading")  # it listens a moment before it loads
        status, answer = get(url, "/chat/completions", FRANCE)
        assert status == 200
        assert "Paris" in answer["choices"][0]["message"]["content"]
        assert get(url, "/readyz") == (200, {"status": "ready"})
        info = get(url, "/model-info")[1]
        assert (info["parameters"], info["architecture"]) == (134_515_008, "LlamaForCausalLM")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert any(line["message"] == "POST /chat/completions" and line["tokens_out"] == 8 for line in lines)


def test_a_socket_file_is_listened_on(tmp_path: Path) -> None:
    """HOST=unix:PATH serves on a socket file; its local callers are let in."""
    path = tmp_path / "warmstart.sock"
    process = subprocess.Popen(
        [sys.executable, "server.py"], cwd=ROOT, env=environment(HOST=f"unix:{path}", PRELOAD="false")
    )
    try:
        wait_until(path.exists, 30)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(path))
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert b" 200 OK" in client.recv(100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_sigterm_drains(tiny_gpt2: Path) -> None:
    """A running stream finishes, probes and new requests are told, and the process ends with status 0."""
    with serving(MODEL_NAME=str(tiny_gpt2), MAX_SEQUENCES="1024") as (process, url, log):
        wait_until(lambda: get(url, "/readyz")[0] == 200)
        body = json.dumps({"prompt": "You may", "max_new_tokens": 120, "num_return_sequences": 64, "stream": True})
        request = urllib.request.Request(url + "/complete", body.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as stream:
            first = stream.readline()
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: get(url, "/readyz") == (503, {"status": "draining"}), 10)
            assert get(url, "/complete", {"prompt": "x"})[1]["code"] == "draining"
            rest = stream.read()
        assert first.startswith(b"data: ")
        assert rest.endswith(b"data: [DONE]\n\n")
        assert process.wait(30) == 0
        assert "Traceback" not in log.read_text()


def test_sigterm_ends_what_does_not_finish(tiny_gpt2: Path) -> None:
    """After DRAIN_SECONDS a stream ends with an error event that says why, and the process ends."""
    with serving(MODEL_NAME=str(tiny_gpt2), MAX_SEQUENCES="1024", DRAIN_SECONDS="0") as (process, url, log):
        wait_until(lambda: get(url, "/readyz")[0] == 200)
        body = json.dumps({"prompt": "You may", "max_new_tokens": 120, "num_return_sequences": 512, "stream": True})
        request = urllib.request.Request(url + "/complete", body.encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as stream:
            stream.readline()
            process.send_signal(signal.SIGTERM)
            rest = stream.read()
        last = json.loads(rest.split(b"data: ")[-1])
        assert last["error"]["code"] == "draining"
        assert process.wait(30) == 0
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_the_process(number: signal.Signals) -> None:
    """Nobody waits for a model that nobody will use."""
    with serving() as (process, _, log):
        process.send_signal(number)
        assert process.wait(30) == 0
        assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PORT": "abc"}, "PORT"),
        ({"ALLOWED_IPS": "10.0.0.0/8,junk"}, "'junk'"),
        ({"MODEL_NAME": "a/b/c"}, "MODEL_NAME"),
        ({"MODELS": "distilgpt2,a/b/c"}, "MODELS='a/b/c'"),
        ({"PINNED_MODELS": "a"}, "PINNED_MODELS: 'a'"),
        ({"HOST": "192.0.2.1"}, "HOST: cannot listen on 192.0.2.1:0: "),
        ({"HOST": "nowhere.invalid"}, "HOST: 'nowhere.invalid' cannot be resolved: "),
        ({"HOST": "a..b"}, "HOST: 'a..b' cannot be resolved: "),
        ({"HOST": "unix:/nowhere/socket"}, "HOST: cannot listen on unix:/nowhere/socket: "),
    ],
)
def test_a_wrong_setting_stops_the_start(settings: dict[str, str], said: str) -> None:
    """The process ends at once, names the setting in one line, and shows no traceback."""
    run = warmstart("serve", **({"PORT": "0"} | settings))
    assert run.returncode in (1, 2)
    assert said in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_a_port_in_use_stops_the_start() -> None:
    """PORT is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = warmstart("serve", PORT=str(port))
    assert run.returncode == 2
    assert run.stderr == f"warmstart: PORT: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_without_a_home_directory() -> None:
    """A user that is only a number, without HOME, is told which setting needs a folder."""
    run = _nobody("serve", PORT="0")
    assert run.returncode == 2
    assert run.stderr.startswith("warmstart: CACHE_DIR: no home directory is known for '~/.cache/warmstart'; set HOME")
    assert len(run.stderr.splitlines()) == 1


def test_without_a_home_directory_a_cache_dir_is_enough(tmp_path: Path) -> None:
    """With CACHE_DIR set nothing else asks for a home directory."""
    assert _nobody("config", CACHE_DIR=str(tmp_path)).returncode == 0


def _nobody(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command in a process without HOME whose user the system does not know."""
    program = "import pwd, sys; pwd.getpwuid = {}.__getitem__; import server; sys.exit(server.main(sys.argv[1:]))"
    home = {"HOME", "CACHE_DIR", "XDG_CACHE_HOME"}
    env = {name: value for name, value in environment(**settings).items() if name not in home or name in settings}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


def test_a_model_that_cannot_be_had_is_a_503_with_advice(tmp_path: Path) -> None:
    """distilgpt2 without a hub: the service runs, says model_unavailable and what to do, and no path."""
    offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "MODEL_NAME": "distilgpt2"}
    with serving(**offline) as (_, url, _):
        status, problem = get(url, "/generate", {"prompt": "Hello"})
        assert (status, problem["code"]) == (503, "model_unavailable")
        assert "warmstart pull" in problem["detail"]
        assert str(tmp_path) not in json.dumps(problem)
        assert get(url, "/health")[1]["status"] == "failed"


def test_invoke_one_and_many(tiny_gpt2: Path) -> None:
    """A payload as argument gives one line; JSON lines on stdin give one line each, failures among them."""
    one = warmstart(
        "invoke", "complete", '{"prompt": "You", "max_new_tokens": 3, "seed": 1}', MODEL_NAME=str(tiny_gpt2)
    )
    assert one.returncode == 0
    assert json.loads(one.stdout)["usage"]["completion_tokens"] == 3
    lines = '{"prompt": "You", "max_new_tokens": 3, "seed": 1}\n\n{"prompt": 5}\nnot json\n'
    many = warmstart("invoke", "complete", stdin=lines, MODEL_NAME=str(tiny_gpt2))
    answers = [json.loads(line) for line in many.stdout.splitlines()]
    assert many.returncode == 1
    assert answers[0] == json.loads(one.stdout)
    assert [answer["error"]["code"] for answer in answers[1:]] == ["invalid_request", "invalid_request"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode(tiny_llama: Path, encoding: str) -> None:
    """Answers and errors come out whatever a terminal's encoding lacks; JSON stays JSON, and is read as UTF-8."""
    odd = "\u20ac\U0001f600"
    lines = json.dumps({"prompt": odd, "max_new_tokens": 2, "temperature": 0}, ensure_ascii=False).encode()
    run = subprocess.run(
        [*WARMSTART, "invoke", "complete", "--model", str(tiny_llama)],
        cwd=ROOT,
        env=environment(PYTHONIOENCODING=encoding),
        input=lines + b'\n{"prompt": "\xff"}\n{"\xe2\x82\xac": 1}\n',
        capture_output=True,
        timeout=120,
    )
    whole, broken, unknown = map(json.loads, run.stdout.decode("ascii").splitlines())
    assert (run.returncode, run.stderr.count(b"Traceback")) == (1, 0)
    assert whole["usage"]["completion_tokens"] == 2
    assert "UTF-8" in broken["error"]["message"]
    assert "error" in unknown
    run = subprocess.run(
        [*WARMSTART, "chat", "--model", str(tiny_llama), "--max-new-tokens", "4", "--temperature", "0"],
        cwd=ROOT,
        env=environment(PYTHONIOENCODING=encoding),
        input=odd.encode() + b"\n" + b"Hello\n",
        capture_output=True,
        timeout=120,
    )
    assert (run.returncode, run.stderr.count(b"Traceback")) == (0, 0)
    assert run.stdout.count(b"> ") == 3
    assert (b"surrogate" in run.stderr) == (encoding == "ascii")  # nothing that could not be read is let pass


def test_generate_streams_what_it_would_print_whole(tiny_gpt2: Path) -> None:
    """With and without --stream the same text, the prompt in front."""
    arguments = ("generate", "You may", "--max-new-tokens", "8", "--seed", "3", "--model", str(tiny_gpt2))
    whole, streamed = warmstart(*arguments), warmstart(*arguments, "--stream")
    assert whole.returncode == streamed.returncode == 0
    assert whole.stdout.startswith("You may")
    assert streamed.stdout == whole.stdout


def test_chat_answers_turn_by_turn(tiny_llama: Path) -> None:
    """Two questions on stdin give two answers; the end of input ends the chat."""
    run = warmstart(
        "chat", "--model", str(tiny_llama), "--max-new-tokens", "4", "--seed", "1", stdin="Hello\n\nAgain\n"
    )
    assert (run.returncode, run.stderr.count("Traceback")) == (0, 0)
    assert run.stdout.count("> ") == 4  # two questions, an empty line, the end


def test_chat_on_a_terminal_survives_ctrl_c(tiny_llama: Path) -> None:
    """Ctrl-C at the prompt ends the command without a traceback."""
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [*WARMSTART, "chat", "--model", str(tiny_llama)],
        cwd=ROOT,
        env=environment(),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    seen = ""
    while ">" not in seen:
        assert select.select([main], [], [], 60)[0], seen
        seen += os.read(main, 1000).decode()
    status = None
    for _ in range(12):  # Python's input() misses a signal between writing its prompt and reading; no hand is that fast
        time.sleep(0.2)
        os.write(main, b"\x03")
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(10)
            break
    assert status == 130
    assert "Traceback" not in seen
    os.close(main)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_in_a_generation_ends_the_command(tiny_gpt2: Path) -> None:
    """Status 130, no traceback, and no abort of the interpreter beneath the engine's thread."""
    payload = {"prompt": "You may", "max_new_tokens": 120, "num_return_sequences": 1000}
    process = subprocess.Popen(
        [*WARMSTART, "invoke", "complete", json.dumps(payload), "--model", str(tiny_gpt2)],
        cwd=ROOT,
        env=environment(MAX_SEQUENCES="1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    while not (lines and "is ready" in lines[-1]):
        lines.append(process.stderr.readline())
        assert lines[-1], lines  # at its end it would be empty for ever
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors


def test_models_lists_the_catalogue_and_the_default(tiny_gpt2: Path) -> None:
    """Each short name with where it comes from, and what MODEL_NAME says."""
    run = warmstart("models", MODEL_NAME=str(tiny_gpt2), PORT=str(free_port()))
    names = ["tiny-gpt2", "smollm2-135m-instruct", "distilgpt2", "all-minilm-l6-v2"]
    assert [line.split()[0] for line in run.stdout.splitlines()] == names
    assert run.stdout.splitlines()[0].endswith("on disk, default")


def test_pull_makes_a_model_ready(tiny_gpt2: Path) -> None:
    """Pulling something that is here succeeds; something that is nowhere fails with advice."""
    assert warmstart("pull", str(tiny_gpt2)).returncode == 0
    failed = warmstart("pull", "owner/none", HF_ENDPOINT="http://127.0.0.1:9")
    assert failed.returncode == 1
    assert "hub cannot be reached" in failed.stderr
    assert "Traceback" not in failed.stderr.splitlines()[-1]


def test_config_prints_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Current values beside defaults."""
    run = warmstart("config", PORT="1234")
    assert "PORT" in run.stdout
    assert "= 1234  (default 8000)" in run.stdout


def test_the_page_of_settings_has_their_table() -> None:
    """The table in docs/settings.md is the one that `warmstart config --markdown` prints."""
    assert warmstart("config", "--markdown").stdout in (ROOT / "docs/settings.md").read_text()


def test_commands_that_need_no_model_import_no_torch() -> None:
    """Importing the server, and even building the application, imports neither torch nor transformers."""
    program = (
        "import sys, server\nfrom runtime.settings import Settings\nserver.create_app(Settings.load())\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment()).returncode == 0
