"""The servers: how each is started, where it says that it lives, and which version it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.service import ROOT

WARMSTART = "Warmstart"
CONTEXT_PER_SLOT = 512  # tokens; the load needs about 150
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

VERSION_OF = """
import sys
from importlib.metadata import version
print(", ".join(f"{name} {version(name)}" for name in sys.argv[1:]))
"""


@dataclass(frozen=True)
class Server:
    """One way to serve the model. ``{port}`` in the command and in values of variables stands for the port."""

    key: str
    name: str
    command: tuple[str, ...]
    livez: str
    """Path that answers, with whatever status, as soon as the process listens."""
    version_command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    """What requests must call the model."""
    info: str | None = None
    """Path of facts about the model, kept with the results."""
    most_clients: int = 1_000_000
    """Stages of more clients are left out."""

    def started_on(self, port: int) -> tuple[list[str], dict[str, str]]:
        """The command and its variables for one port."""
        command = [part.replace("{port}", str(port)) for part in self.command]
        return command, {name: value.replace("{port}", str(port)) for name, value in self.environment.items()}

    def version(self) -> str:
        """What it says of itself, in one line."""
        said = subprocess.run(
            self.version_command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        ).stdout
        wanted = [line for line in said.splitlines() if "version" in line] or said.splitlines()
        return wanted[0].strip() if wanted else "unknown"


def warmstart(python: Path, gguf: Path | None = None) -> Server:
    """Warmstart as its users start it, but without kept answers. Settings are taken from this process's environment.

    Args:
        python: the service's interpreter.
        gguf: another model than the embedded one.
    """
    return Server(
        key="warmstart",
        name=WARMSTART,
        command=(str(python), "server.py"),
        environment={"HOST": "127.0.0.1", "PORT": "{port}", "RESPONSE_CACHE": "off"}
        | ({"MODEL_NAME": str(gguf)} if gguf else {}),
        livez="/livez",
        info="/model-info",
        version_command=(str(python), "-c", VERSION_OF, "warmstart", "torch"),
    )


def llama_server(program: Path, gguf: Path, quantization: str, slots: int, threads: int | None = None) -> Server:
    """llama.cpp's server.

    Args:
        program: the ``llama-server`` binary.
        gguf: the model.
        quantization: of that file, for the name.
        slots: answers at once; more requests wait.
        threads: for the model; None takes the cores this process may use.
    """
    cores = str(threads or len(os.sched_getaffinity(0)))
    context = str(slots * CONTEXT_PER_SLOT)
    where = ("--host", "127.0.0.1", "--port", "{port}")
    return Server(
        key=f"llama-{quantization.lower()}",
        name=f"llama-server {quantization}, {slots} slots",
        command=(str(program), "-m", str(gguf), "-np", str(slots), "-c", context, "-t", cores, "-tb", cores, *where),
        livez="/health",
        version_command=(str(program), "--version"),
    )


def transformers_serve(program: Path, folder: Path, batching: bool) -> Server:
    """``transformers serve``.

    Args:
        program: the ``transformers`` console script of its environment.
        folder: the model in bfloat16.
        batching: with ``--continuous-batching``; without it, one request at a time is answered.
    """
    where = ("--host", "127.0.0.1", "--port", "{port}")
    command = (str(program), "serve", str(folder), "--device", "cpu", "--dtype", "bfloat16", *where)
    return Server(
        key="transformers-cb" if batching else "transformers",
        name="transformers serve" + (", continuous batching" if batching else ""),
        command=(*command, "--continuous-batching") if batching else command,
        environment=_OFFLINE,
        livez="/health",
        model=str(folder),
        version_command=(str(program.parent / "python"), "-c", VERSION_OF, "transformers", "torch"),
        most_clients=1_000_000 if batching else 8,  # with more, an answer outlasts the stage
    )


def vllm(program: Path, folder: Path) -> Server:
    """vLLM's OpenAI server, its build for CPUs.

    Args:
        program: the ``vllm`` console script of its environment.
        folder: the model in bfloat16.
    """
    where = ("--host", "127.0.0.1", "--port", "{port}")
    limits = ("--max-model-len", str(CONTEXT_PER_SLOT), "--max-num-seqs", "32")
    return Server(
        key="vllm",
        name="vLLM",
        command=(str(program), "serve", str(folder), "--dtype", "bfloat16", *limits, *where),
        environment={**_OFFLINE, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},  # 1 GiB, and no reports
        livez="/health",
        model=str(folder),
        version_command=(str(program.parent / "python"), "-c", VERSION_OF, "vllm", "torch"),
    )
