"""Converts exceptions that libraries raise during a load into ``ModelUnavailable`` errors without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from runtime.errors import ModelUnavailable
from runtime.host import TORCH_PACKAGES
from runtime.model.catalogue import ModelSpec

_LONGEST = 300  # characters of a library's message that are shown
_NAMES_SHOWN = 5
_FOLDERS = ("HOME", "HF_HOME", "HF_HUB_CACHE", "CACHE_DIR")  # environment variables that name folders with models

_TRACE = re.compile(r"Exception raised from|Traceback \(most recent call last\)|\bframe #\d|C\+\+ CapturedTraceback")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"`<>]*", re.IGNORECASE)
_PATH = re.compile(
    r"""(?P<quote>['"`])(?P<quoted>(?:[a-z]:[\\/]|\\\\|~?/|\.\.?/)[^'"`\n]*)(?P=quote)   # in quotes it may hold blanks
    |(?<![\w.<])(?P<bare>(?:[a-z]:[\\/]|\\\\|~?/|\.\.?/)[^\s'"`,;()<>]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_FILE = re.compile(r"[\w.-]+\.(?:json|safetensors|bin|gguf|model|txt|jinja)", re.IGNORECASE)  # names of a model's files
_SECRET = re.compile(
    r"\b(?:hf_|sk-|wsk_|ghp_|github_pat_)[\w-]{8,}|\b(?:bearer|basic)\s+\S+|\beyJ[\w-]+\.[\w.-]+"
    r"|\b(?=(?:[A-Za-z+/_-]*\d){4})[A-Za-z0-9+/_-]{40,}={0,2}",
    re.IGNORECASE,
)


def unavailable(spec: ModelSpec, error: Exception) -> ModelUnavailable:
    """Return the error that replaces a library's exception: its cause, with secrets removed, and what to do.

    Args:
        spec: the model that was being loaded.
        error: the library's exception.
    """
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in TORCH_PACKAGES:
        return ModelUnavailable(
            f"{spec.id} has files that only torch and transformers can convert, which are not installed here; run "
            f"`warmstart pull {spec.id}` in the full image with the same volume and DTYPE once, or use the full image"
        )
    places = [spec.adapter, None if spec.kind == "hub" else spec.location, *map(os.environ.get, _FOLDERS)]
    shown = reason(error, [place for place in places if place and place != "/"])
    return ModelUnavailable(f"{spec.id} cannot be loaded: {shown}; {_advice(error)}")


def mismatched(model: str, fault: str, left: Collection[str] = ()) -> ModelUnavailable:
    """Return the error for a checkpoint that does not match its model.

    Args:
        model: the model's name.
        fault: description of the tensors or files at fault.
        left: names of superfluous tensors.
    """
    instead = f" and {named(left)} left over" if left else ""
    return ModelUnavailable(
        f"{model} cannot be served: its files do not hold this model ({fault}{instead}); copy or convert them again"
    )


def reason(error: Exception, places: Collection[str] = ()) -> str:
    """Return an exception's message, shortened and without folders, URLs, credentials or stack traces.

    Args:
        error: the exception.
        places: known paths to remove. Other paths are recognized by their form, which fails if they contain blanks.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"the Python package {error.name.partition('.')[0]} is not installed"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "trust_remote_code" in text:
        return "its configuration names code of its own (auto_map), which is never run here"
    text = _TRACE.split(text)[0]
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, "/path")
    text = _URL.sub("(URL)", text)
    text = _PATH.sub(_file_name, text)
    text = _SECRET.sub("(hidden)", text)
    text = " ".join(text.split()).strip(" .:;")
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rpartition(" ")[0] + " ..."
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {text}" if text else "there is not enough memory"
    kind = type(error).__name__
    if not text:
        return kind
    return text if isinstance(error, ImportError) else f"{text} ({kind})"


def named(names: Collection[str]) -> str:
    """Return the first few of a set of tensor names, and the number of the others, as text."""
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _file_name(path: re.Match[str]) -> str:
    """Return the replacement for a path: the file's name if it is a model's file, else ``(path)``."""
    name = re.split(r"[\\/]", (path["quoted"] or path["bare"]).rstrip(".:"))[-1]
    return name if _FILE.fullmatch(name) else "(path)"


def _advice(error: Exception) -> str:
    """Return what an operator can do about an error."""
    if isinstance(error, ImportError):
        return "install that package beside the service, or serve a checkpoint that does not need it"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return "serve a smaller model or fewer of them, or set DTYPE to a smaller type"
    return "check its files, or copy them again; the log has the details"
