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
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from runtime.errors import ModelUnavailable
from runtime.loading import loader
from runtime.loading import model_files as sources
from runtime.model.catalogue import CATALOGUE, ModelSpec, parse_model_name
from runtime.model.config import UnsupportedDecoder
from runtime.model.packing import WeightKind, unpack
from runtime.model.progress import Progress
from runtime.model.snapshot import Snapshot
from runtime.model.snapshot_folder import digest_of
from tests.support.models import ROOT, train_tokenizer

Reports = list[tuple[str, float | None]]


def load(spec: ModelSpec, reports: Reports | None = None) -> loader.Loaded:
    return loader.load(spec, "cpu", "float32", _report(reports))


def serving(spec: ModelSpec, cache: Path, reports: Reports | None = None, kind: WeightKind = "float32") -> Snapshot:
    return loader.open_serving(spec, kind, cache, _report(reports))


def _report(reports: Reports | None) -> Progress:
    return (lambda stage, part: reports.append((stage, part))) if reports is not None else lambda stage, part: None


def converts(spec: ModelSpec, cache: Path) -> bool:
    """Whether opening it now would have to read the model with transformers."""
    reports: Reports = []
    serving(spec, cache, reports)
    return "packing" in {stage for stage, _ in reports}


def logits(loaded: loader.Loaded) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = loaded.model(torch.tensor([[5, 6, 7, 8]])).logits
    return found


def matrix(snapshot: Snapshot, name: str) -> NDArray[np.float32]:
    rows, columns = snapshot.shape(name)
    return unpack(snapshot.matrix(name), rows, columns, snapshot.matrix_kind(name))


def test_a_local_folder_is_loaded_in_place(tiny_gpt2: Path) -> None:
    """The reference engine's model, in evaluation mode, with the tokenizer wrapped."""
    loaded = load(parse_model_name(str(tiny_gpt2)))
    assert (loaded.device, loaded.dtype, loaded.model.training, loaded.revision) == ("cpu", "float32", False, None)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("You may not")) == "You may not"


def test_a_gguf_file_is_what_it_was_made_from(tiny_gguf: Path, tiny_llama: Path) -> None:
    """Read with transformers, it computes the same and says the same."""
    loaded, original = load(parse_model_name(str(tiny_gguf))), load(parse_model_name(str(tiny_llama)))
    assert torch.allclose(logits(loaded), logits(original), atol=1e-4)
    assert loaded.tokenizer.encode("You may not use this") == original.tokenizer.encode("You may not use this")
    assert loaded.tokenizer.chat_template == original.tokenizer.chat_template


@pytest.mark.parametrize("name", ["tiny_gguf", "tiny_llama", "tiny_gpt2"])
def test_a_snapshot_is_made_once(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The first start converts, with progress; the next opens what was kept. Both hold the model's weights."""
    source: Path = request.getfixturevalue(name)
    spec = parse_model_name(str(source))
    reports: Reports = []
    first = serving(spec, tmp_path, reports)
    assert ("packing", 1.0) in reports
    again: Reports = []
    second = serving(spec, tmp_path, again)
    assert again == []
    model = load(spec).model
    for found in (first, second):
        assert np.array_equal(matrix(found, "embed"), model.get_input_embeddings().weight.detach().numpy())
        assert found.facts.parameters == sum(p.numel() for p in model.parameters())
        assert found.facts.architecture == type(model).__name__
        assert found.facts.end_ids == ((0,) if name == "tiny_gpt2" else (2,))


def test_each_kind_has_a_snapshot_of_its_own(tiny_llama: Path, tmp_path: Path) -> None:
    """Another number type converts again and leaves the first alone."""
    spec = parse_model_name(str(tiny_llama))
    kinds: list[WeightKind] = ["float32", "bfloat16", "int8"]
    found = [serving(spec, tmp_path, kind=kind) for kind in kinds]
    assert len(list((tmp_path / "serving").iterdir())) == 3
    sizes = [snapshot.nbytes for snapshot in found]
    assert sizes == sorted(sizes, reverse=True)


def _snapshot(cache: Path) -> Path:
    (folder,) = (cache / "serving").iterdir()
    return folder


@pytest.mark.parametrize("damage", ["truncated weights", "no model", "no tokenizer", "empty model", "a tensor less"])
def test_a_damaged_snapshot_is_made_again(
    tiny_gguf: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is not whole is replaced by a good one, with a warning. What else may be wrong: test_snapshot.py."""
    spec = parse_model_name(str(tiny_gguf))
    expected = matrix(serving(spec, tmp_path), "0.down")
    folder = _snapshot(tmp_path)
    match damage:
        case "truncated weights":
            os.truncate(folder / "weights.bin", 1000)
        case "no model":
            (folder / "model.json").unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "empty model":
            (folder / "model.json").write_text("")
        case _:
            content = json.loads((folder / "model.json").read_text())["content"]
            del content["tensors"]["0.down"]
            (folder / "model.json").write_text(json.dumps({"sha256": digest_of(content), "content": content}))
    assert np.array_equal(matrix(serving(spec, tmp_path), "0.down"), expected)
    assert "damaged" in caplog.text
    assert not converts(spec, tmp_path)


def test_a_changed_file_is_converted_anew(tiny_gguf: Path, tmp_path: Path) -> None:
    """The snapshot belongs to one state of the file."""
    file = shutil.copy(tiny_gguf, tmp_path / "model.gguf")
    spec = parse_model_name(str(file))
    serving(spec, tmp_path)
    os.utime(file, ns=(1, 1))
    assert converts(spec, tmp_path)


def test_a_changed_folder_is_converted_anew(tiny_gpt2: Path, tmp_path: Path) -> None:
    """So does a folder's: any of the files that make the model counts, others do not."""
    folder = shutil.copytree(tiny_gpt2, tmp_path / "model")
    spec = parse_model_name(str(folder))
    serving(spec, tmp_path)
    (folder / "README.md").write_text("of no consequence")
    assert not converts(spec, tmp_path)
    os.utime(folder / "tokenizer.json", ns=(1, 1))
    assert converts(spec, tmp_path)


def test_without_a_writable_cache_the_model_still_loads(
    tiny_gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache folder that cannot be made costs a warning, not the model. (A file in its place: root ignores modes.)"""
    (tmp_path / "cache").write_text("in the way")
    spec = parse_model_name(str(tiny_gguf))
    found = serving(spec, tmp_path / "cache")
    assert np.array_equal(matrix(found, "embed"), matrix(serving(spec, tmp_path / "other"), "embed"))
    assert "no snapshot" in caplog.text


def test_two_processes_converting_at_once_do_not_clash(tiny_gguf: Path, tmp_path: Path) -> None:
    """Both succeed, and one whole snapshot is left."""
    program = """
import sys
from pathlib import Path
from runtime.model.catalogue import parse_model_name
from runtime.loading.loader import open_serving
open_serving(parse_model_name(sys.argv[1]), "int8", Path(sys.argv[2]), lambda stage, share: None)
"""
    command = [sys.executable, "-c", program, str(tiny_gguf), str(tmp_path)]
    runs = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    reports: Reports = []
    serving(parse_model_name(str(tiny_gguf)), tmp_path, reports, kind="int8")
    assert reports == []
    assert _snapshot(tmp_path).is_dir()


def test_a_model_the_decoder_does_not_know_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """The configuration is enough, so that the reference engine is not kept waiting; it can load it."""
    from transformers import MptConfig, MptForCausalLM

    folder = tmp_path / "mpt"
    MptForCausalLM(MptConfig(vocab_size=600, d_model=32, n_layers=1, n_heads=2)).save_pretrained(folder)
    train_tokenizer().save_pretrained(folder)
    spec = parse_model_name(str(folder))
    reports: Reports = []
    with pytest.raises(UnsupportedDecoder, match="Mpt"):
        serving(spec, tmp_path / "cache", reports)
    assert "reading weights" not in {stage for stage, _ in reports}
    assert not (tmp_path / "cache").exists()
    assert logits(load(spec)).shape == (1, 4, 600)


def test_a_tokenizer_in_python_only_serves_the_reference_engine(tiny_gpt2: Path, tmp_path: Path) -> None:
    """It cannot be kept in a snapshot, but behaves like the others."""
    from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "bytes"
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    oracle = ByT5Tokenizer()
    oracle.save_pretrained(folder)
    spec = parse_model_name(str(folder))
    own = load(spec).tokenizer
    ids = own.encode("Gr\u00fc\u00dfe")
    assert ids == oracle.encode("Gr\u00fc\u00dfe")
    assert own.eos_token_id == oracle.eos_token_id
    assert own.decode(ids, skip_special_tokens=True) == "Gr\u00fc\u00dfe"
    assert own.token_bytes(ids[0]) == b"G"
    with pytest.raises(UnsupportedDecoder, match=r"tokenizer\.json"):
        serving(spec, tmp_path)


@pytest.mark.parametrize("content", ["not json", "{}", '{"model_type": "no-such-architecture"}'])
def test_broken_files_are_reported_without_their_path(tmp_path: Path, content: str) -> None:
    """Files that are no model: unavailable, with the details in the log only."""
    folder = tmp_path / "secret-place" / "broken"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(content)
    for call in (load, lambda spec: serving(spec, tmp_path)):
        with pytest.raises(ModelUnavailable, match="broken") as caught:
            call(parse_model_name(str(folder)))
        assert "secret-place" not in caught.value.message


def test_a_folder_that_vanished_is_reported(tmp_path: Path) -> None:
    """Gone between start and first use."""
    with pytest.raises(ModelUnavailable, match="gone"):
        serving(ModelSpec("x", "folder", str(tmp_path / "x")), tmp_path)


def test_the_embedded_model_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its wheel the error is the command to run."""
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match="warmstart pull smollm2-135m-instruct"):
        loader.fetch(CATALOGUE["smollm2-135m-instruct"], _report(None))


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
    snapshot = serving(spec, tmp_path, reports)
    assert snapshot.facts.revision == COMMIT
    assert "downloading" in {stage for stage, _ in reports}
    hub.clear()
    assert not converts(spec, tmp_path)
    assert load(spec).revision == COMMIT
    assert hub == []


def test_an_interrupted_download_goes_on(hub: list[str], tmp_path: Path) -> None:
    """Weights of which the index names a file that is not there are asked for again."""
    spec = parse_model_name("owner/tiny")
    folder = loader.fetch(spec, _report(None))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert sources.missing_shards(folder) == ["model-00002-of-00002.safetensors"]
    assert not sources.has_weights(folder)
    hub.clear()
    assert sources.has_weights(loader.fetch(spec, _report(None)))
    assert hub != []


@pytest.mark.parametrize("index", ["not json", "[]", "{}", '{"weight_map": []}'])
def test_an_index_that_is_none_is_left_to_the_load(tmp_path: Path, index: str) -> None:
    """Which files there should be is then not known."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert sources.missing_shards(tmp_path) == []


def test_what_is_on_disk_is_found_as_the_hubs_client_finds_it(hub: list[str], tmp_path: Path) -> None:
    """By branch, by tag and by commit, without asking that client."""
    for name in ("owner/tiny", "owner/tiny@v1"):
        loader.fetch(parse_model_name(name), _report(None))
    for name in ("owner/tiny", "owner/tiny@v1", f"owner/tiny@{COMMIT}"):
        spec = parse_model_name(name)
        found = huggingface_hub.snapshot_download(spec.location, revision=spec.revision, local_files_only=True)
        assert sources.locate(spec) == Path(found)
    assert sources.locate(parse_model_name("owner/tiny@v9")) is None
    assert sources.locate(parse_model_name("owner/other")) is None


def test_a_pull_asks_the_hub_again(hub: list[str]) -> None:
    """Even where a copy is on disk."""
    spec = parse_model_name("owner/tiny")
    loader.fetch(spec, _report(None))
    hub.clear()
    loader.fetch(spec, _report(None))
    assert hub == []
    loader.fetch(spec, _report(None), refresh=True)
    assert hub != []


@pytest.mark.parametrize(("name", "said"), [("owner/none", "does not exist"), ("owner/tiny@v9", "does not exist")])
def test_what_the_hub_does_not_have_is_said(hub: list[str], tmp_path: Path, name: str, said: str) -> None:
    """An unknown repository or revision is told apart from an unreachable hub."""
    with pytest.raises(ModelUnavailable, match=said):
        serving(parse_model_name(name), tmp_path)


def test_an_unreachable_hub_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cached copy and no hub: a clear error, soon, and never another model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailable, match="warmstart pull distilbert/distilgpt2") as caught:
        serving(CATALOGUE["distilgpt2"], tmp_path)
    assert caught.value.retry_after is not None
