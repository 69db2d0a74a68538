"""Judges a Dockerfile by reading it."""

from __future__ import annotations

import json
import re
from types import ModuleType

Instruction = tuple[str, str]


def _instructions(exercise: ModuleType) -> list[Instruction]:
    text = re.sub(r"\\\n", " ", exercise.DOCKERFILE)
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1]) for line in lines]


def _last_stage(exercise: ModuleType) -> list[Instruction]:
    found = _instructions(exercise)
    start = max(place for place, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def _values(instructions: list[Instruction], name: str) -> list[str]:
    return [value for found, value in instructions if found == name]


def check_base(exercise: ModuleType) -> None:
    """Each base image has a version, so that the same file makes the same image next year."""
    stages: set[str] = set()
    for value in _values(_instructions(exercise), "FROM"):
        base, *name = re.split(r"\s+as\s+", value, flags=re.IGNORECASE)
        if base not in stages:
            tag = base.rpartition("/")[2].partition(":")[2] or base.partition("@")[2]
            assert tag and tag != "latest", f"{base} has no version"
        stages.update(name)


def check_stages(exercise: ModuleType) -> None:
    """What builds stays behind: the last stage copies from an earlier one and installs nothing from the network."""
    last = _last_stage(exercise)
    assert any("--from=" in value for value in _values(last, "COPY")), "nothing is copied from another stage"
    assert not [value for value in _values(last, "RUN") if re.search(r"pip3? install|apt-get install", value)]


def check_cache(exercise: ModuleType) -> None:
    """Requirements are copied and installed before the sources, so that a change of a source installs nothing again."""
    found = _instructions(exercise)
    install = next(place for place, (_, value) in enumerate(found) if re.search(r"pip3? install", value))
    before = [value for name, value in found[:install] if name == "COPY"]
    assert before, "nothing is copied before the installation"
    assert all("requirements" in value for value in before), f"copied before the installation: {before}"
    assert "--no-cache-dir" in found[install][1], "pip's cache stays in the image"


def check_user(exercise: ModuleType) -> None:
    """The process is not root, and its user is a number, so that an orchestrator can see that."""
    users = _values(_last_stage(exercise), "USER")
    assert users, "no USER"
    assert re.fullmatch(r"[1-9]\d*(:\d+)?", users[-1]), f"USER {users[-1]}"


def check_signals(exercise: ModuleType) -> None:
    """The command is a list, so that no shell stands between the orchestrator's SIGTERM and the service."""
    commands = _values(_last_stage(exercise), "CMD") + _values(_last_stage(exercise), "ENTRYPOINT")
    assert commands, "no command"
    for command in commands:
        assert isinstance(json.loads(command), list)


def check_secrets(exercise: ModuleType) -> None:
    """No secret is in the image: layers can be read by anyone who has it."""
    for name, value in _instructions(exercise):
        secret = name in ("ENV", "ARG") and re.search(r"(key|token|secret|password)\w*[= ]", value, re.IGNORECASE)
        assert not secret, f"{name} {value}"


def check_sources(exercise: ModuleType) -> None:
    """What is copied is named: not the whole folder with its .git, .env and caches."""
    copied = [value for value in _values(_instructions(exercise), "COPY") if "--from=" not in value]
    assert all(part not in (".", "./") for value in copied for part in value.split()[:-1]), copied


def check_health(exercise: ModuleType) -> None:
    """The image says how to see whether the service can answer."""
    assert any("readyz" in value for value in _values(_last_stage(exercise), "HEALTHCHECK"))
