"""The shell commands of docs/ that need more than a running service, run as printed but for addresses and folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from loadtests.peers.models import embedded_gguf
from loadtests.service import Service, free_port, running_service
from tests.support.adapters import write_adapter
from tests.support.docs_reader import SERVICE, Reader, blocks
from tests.support.minilm import NAME, minilm_folder
from tests.support.nats_server import own_nats_server
from tests.support.soak import SOAK
from tests.support.source_copy import copy_source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOAK, reason="SOAK=1 runs the shell commands of the pages"),
]
ERROR = re.compile(r'"(code|error_code)": ?"')
ROW = '{{"custom_id": "{name}", "method": "POST", "url": "/v1/chat/completions", "body": {body}}}'
BODY = '{"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}'


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The embedded model, a real encoder, and a folder for files."""
    settings = {"MODELS": str(minilm_folder()), "MODEL_ALIASES": f"{NAME}=model"}
    with running_service(FILES_DIR=str(tmp_path_factory.mktemp("files")), **settings) as running:
        running.wait("/readyz")
        yield running


@pytest.fixture
def reader(service: Service, tmp_path: Path) -> Reader:
    """A reader for whom the printed service is the one of this test, in a folder with the files that pages name."""
    port = SERVICE.rpartition(":")[2]
    made = Reader(tmp_path / "reader", {SERVICE: service.url, f"127.0.0.1:{port}": f"127.0.0.1:{service.port}"})
    made.environment |= {"PORT": str(service.port)}
    rows = [ROW.format(name=name, body=BODY) for name in "abc"]
    for name, lines in {
        "requests.jsonl": rows,
        "lines.txt": ["A text", "Another"],
        "documents.txt": ["Rivers carry sand.", "Bees live in hives."],
        "prompts.jsonl": ['{"prompt": "2 + 2 =", "max_new_tokens": 2}', '{"prompt": "3 + 3 =", "max_new_tokens": 2}'],
    }.items():
        (made.folder / name).write_text("\n".join(lines) + "\n")
    return made


def commands(page: str, number: int) -> list[str]:
    """The commands of a page's block, whose lines may be continued."""
    return shell(blocks(page, "sh")[number][1])


def shell(text: str) -> list[str]:
    """The commands of a text; a comment at a line's end is not part of one, a quoted one or an object is."""
    lines = re.split(r"\n(?=[A-Za-z./])", text.replace("\\\n", " ").strip())
    return [re.sub(r"\s{2,}#.*$", "", line) for line in lines]


@pytest.mark.parametrize(("page", "number"), [("structured-output", 0), ("tools", 0), ("embeddings", 1)])
def test_calls_of_a_page(page: str, number: int, reader: Reader) -> None:
    """Each command gets an answer that is no error."""
    for command in commands(page, number):
        printed = reader.run("bash", command.replace(f"--model {NAME}", f"--model {minilm_folder()}"))
        if ">" not in command:
            assert printed, command
            assert not ERROR.search(printed), (command, printed)
    if page == "embeddings":
        assert len((reader.folder / "vectors.jsonl").read_text().splitlines()) == 2


def test_the_response_cache_s_call(reader: Reader) -> None:
    """The first call is a miss, the second a hit with its age."""
    (call,) = commands("response-cache", 0)
    assert "miss" in reader.run("bash", call).lower()
    again = reader.run("bash", call).lower()
    assert "hit" in again
    assert "age:" in again


def test_troubleshooting_s_first_look(reader: Reader) -> None:
    """State, load and settings are printed, and every setting has a line."""
    health, stats, config = (reader.run("bash", command) for command in commands("troubleshooting", 0))
    assert json.loads(health)["status"] == "ok"
    assert "running" in stats
    assert "MODEL_NAME" in config


def test_batches_by_curl(reader: Reader) -> None:
    """Upload, create, ask and download work in the printed order, with the ids of the answers."""
    upload, create, ask, download = commands("batch", 1)
    file = json.loads(reader.run("bash", upload))["id"]
    batch = json.loads(reader.run("bash", create.replace("file-...", file)))["id"]
    reader.run("bash", f"warmstart batch wait {batch}")
    state = json.loads(reader.run("bash", ask.replace("batch_...", batch)))
    assert state["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    output = reader.run("bash", download.replace("file-...", state["output_file_id"]))
    assert {json.loads(line)["custom_id"] for line in output.splitlines()} == {"a", "b", "c"}


def test_batches_by_the_command_line(reader: Reader) -> None:
    """A run writes its answers; one that is not waited for is waited for later, listed and cancelled."""
    run, start, wait, listed, cancel = commands("batch", 2)
    reader.run("bash", run)
    assert len((reader.folder / "requests.output.jsonl").read_text().splitlines()) == 3
    batch = reader.run("bash", start).strip()
    reader.run("bash", wait.replace("batch_...", batch))
    assert len((reader.folder / f"{batch}.output.jsonl").read_text().splitlines()) == 3
    assert batch in reader.run("bash", listed)
    (reader.folder / "requests.jsonl").write_text(
        "\n".join(ROW.format(name=number, body=BODY.replace("16", "200")) for number in range(200)) + "\n"
    )
    long = reader.run("bash", start).strip()
    assert f"{long} is cancel" in reader.run("bash", cancel.replace("batch_...", long))


def test_batches_over_a_broker(tmp_path: Path) -> None:
    """A worker and a service that has no model run a batch over the broker."""
    consume, serve = commands("batch", 3)
    with ExitStack() as stack:
        broker = stack.enter_context(own_nats_server(tmp_path)).url
        changes = {"nats://broker:4222": broker, "/var/lib/warmstart/files": str(tmp_path / "files")}
        worker = Reader(tmp_path / "worker", changes)
        stack.enter_context(worker.running(f"{consume} --port 0"))
        port = free_port()
        front = Reader(tmp_path / "front", changes)
        front.environment |= {"PORT": str(port), "HOST": "127.0.0.1"}
        settings, _, command = serve.partition(" warmstart ")
        stack.enter_context(front.running(f"env {settings} warmstart {command}"))
        (front.folder / "requests.jsonl").write_text(ROW.format(name="a", body=BODY) + "\n")
        front.wait(f"http://127.0.0.1:{port}/livez")
        front.run("bash", commands("batch", 2)[0])
        assert '"custom_id": "a"' in (front.folder / "requests.output.jsonl").read_text()


def test_the_command_line_without_http(reader: Reader) -> None:
    """Each command ends with status 0; of those that stop for somebody or need a hub, only the help is asked for."""
    for command in commands("without-http", 0):
        line = command.replace("MODEL", str(minilm_folder()))
        if match := re.match(r"(warmstart models) load \| unload \| default \| compare --help", line):
            for word in ("load", "unload", "default", "compare"):
                assert "usage" in reader.run("bash", f"{match[1]} {word} --help")
        elif line.startswith(("warmstart pull", "warmstart serve")):
            assert "usage" in reader.run("bash", f"{line.split(' -')[0]} --help")
        else:
            reader.run("bash", f"{line} < /dev/null" if line == "warmstart chat" else line)
    assert len((reader.folder / "answers.jsonl").read_text().splitlines()) == 2


def test_an_adapter_beside_its_model(tmp_path: Path) -> None:
    """An adapter in a folder of its own is served by its name, and can be merged ahead of time."""
    serve, call, pull = commands("serving-models", 2)
    port = free_port()
    reader = Reader(tmp_path / "reader", {SERVICE.partition("//")[2]: f"127.0.0.1:{port}", ".venv/bin/": ""})
    reader.environment |= {"PORT": str(port)}
    dice = np.random.default_rng(5)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{name}.weight": dice.normal(0, 0.1, shape)
        for layer in range(30)
        for name, shape in (("A", (4, 576)), ("B", (576, 4)))
    }
    tensors = {name: values.astype(np.float32) for name, values in tensors.items()}
    write_adapter(reader.folder / "adapters/shout", tensors, r=4, lora_alpha=8, target_modules=["q_proj"])
    reader.run("bash", pull)
    with reader.running(f"env {serve.replace('make serve', 'warmstart serve')}"):
        reader.wait(f"http://127.0.0.1:{port}/readyz")
        assert json.loads(reader.run("bash", call))["model"].endswith(":shout")


def test_a_file_on_a_disk(tmp_path: Path) -> None:
    """A GGUF file is served by its path, as on a machine without a network."""
    serve = commands("deployment", 1)[2]
    port = free_port()
    reader = Reader(tmp_path / "reader", {"/media/usb/model-q4_k_m.gguf": str(embedded_gguf(Path(sys.executable)))})
    reader.environment |= {"PORT": str(port), "HF_HUB_OFFLINE": "1"}
    with reader.running(f"env {serve}"):
        reader.wait(f"http://127.0.0.1:{port}/readyz")


def installed(folder: Path) -> Path:
    """The wheel, made and installed as printed into an environment that has the dependencies of this one."""
    source = folder / "source"
    copy_source(source)
    build, *_ = commands("install", 2)
    subprocess.run(["bash", "-euc", build.replace("pip", f"{sys.executable} -m pip", 1)], cwd=source, check=True)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


def test_the_wheel_and_its_systemd_unit(tmp_path: Path) -> None:
    """The wheel installs, converts the embedded model and serves by the unit's command; systemd accepts the unit."""
    (_, unit) = blocks("deployment", "ini")[0]
    _, install, pull, *_ = commands("deployment", 0)
    environment = installed(tmp_path)
    here = {"/opt/warmstart/.venv": str(environment), "dist/": str(tmp_path / "source/dist") + "/"}
    reader = Reader(tmp_path / "reader", here)
    port = free_port()
    reader.environment = {name: value for name, value in reader.environment.items() if name != "PYTHONPATH"}
    reader.environment |= {"PORT": str(port), "CACHE_DIR": str(tmp_path / "cache"), "HOST": "127.0.0.1"}
    reader.run("bash", f"{install} --no-deps --force-reinstall")
    reader.run("bash", pull)
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    with reader.running(start):
        reader.wait(f"http://127.0.0.1:{port}/readyz")
    file = tmp_path / "warmstart.service"
    file.write_text(unit.replace("/opt/warmstart/.venv", str(environment)))
    if analyze := shutil.which("systemd-analyze"):
        checked = subprocess.run([analyze, "verify", file], capture_output=True, text=True, env=os.environ)
        assert "warmstart.service:" not in checked.stderr, checked.stderr
