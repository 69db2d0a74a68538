"""What a caller is told of an error that a library raised while a model was loading."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from runtime.errors import ModelUnavailable
from runtime.model.catalogue import ModelSpec

_LONGEST = 300  # characters of a library's message that are shown
_NAMES_SHOWN = 5
_FOLDERS = ("HOME", "HF_HOME", "HF_HUB_CACHE", "CACHE_DIR")  # settings under which models lie

_TRACE = re.compile(r"Exception raised from|Traceback \(most recent call last\)|\bframe #\d|C\+\+ CapturedTraceback")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"`<>]*", re.IGNORECASE)
_PATH = re.compile(
    r"""(?P<quote>['"`])(?P<quoted>(?:[a-z]:[\\/]|\\\\|~?/|\.\.?/)[^'"`\n]*)(?P=quote)   # in quotes it may hold blanks
    |(?<![\w.<])(?P<bare>(?:[a-z]:[\\/]|\\\\|~?/|\.\.?/)[^\s'"`,;()<>]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_FILE = re.compile(r"[\w.-]+\.(?:json|safetensors|bin|gguf|model|txt|jinja)", re.IGNORECASE)  # of a model
_SECRET = re.compile(
    r"\b(?:hf_|sk-|wsk_|ghp_|github_pat_)[\w-]{8,}|\b(?:bearer|basic)\s+\S+|\beyJ[\w-]+\.[\w.-]+"
    r"|\b(?=(?:[A-Za-z+/_-]*\d){4})[A-Za-z0-9+/_-]{40,}={0,2}",
    re.IGNORECASE,
)


def unavailable(spec: ModelSpec, error: Exception) -> ModelUnavailable:
    """The error to answer instead of a library's: what is wrong as far as it is not secret, and what to do.

    Args:
        spec: the model that was loading.
        error: what was raised.
    """
    places = [spec.adapter, None if spec.kind == "hub" else spec.location, *map(os.environ.get, _FOLDERS)]
    shown = reason(error, [place for place in places if place and place != "/"])
    return ModelUnavailable(f"{spec.id} cannot be loaded: {shown}; {_advice(error)}")


def reason(error: Exception, places: Collection[str] = ()) -> str:
    """An exception's message as far as it may be shown: no folders, URLs, credentials or stack traces, and not long.

    Args:
        error: what was raised.
        places: paths that the message may hold. Others are told by their form, which fails where they hold blanks.
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
    """The first few of a set of tensor names, and how many more there are."""
    shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _file_name(path: re.Match[str]) -> str:
    """What is shown of a path: the name of a model's file, and nothing of a folder's."""
    name = re.split(r"[\\/]", (path["quoted"] or path["bare"]).rstrip(".:"))[-1]
    return name if _FILE.fullmatch(name) else "(path)"


def _advice(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "install that package beside the service, or serve a checkpoint that does not need it"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError":
        return "serve a smaller model or fewer of them, or set DTYPE to a smaller type"
    return "check its files, or copy them again; the log has the details"
