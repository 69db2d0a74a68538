"""The servers under comparison: their commands, their health paths and their versions."""

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
    """One server configuration. ``{port}`` in the command and in values of variables stands for the port."""

    key: str
    name: str
    command: tuple[str, ...]
    livez: str
    """The path that answers, with any status, as soon as the process listens."""
    version_command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    """The model name that requests must contain."""
    info: str | None = None
    """The path of information about the model, which is stored with the results."""
    most_clients: int = 1_000_000
    """The highest number of clients; larger stages are skipped."""

    def started_on(self, port: int) -> tuple[list[str], dict[str, str]]:
        """Return the command and its environment variables for a port."""
        command = [part.replace("{port}", str(port)) for part in self.command]
        return command, {name: value.replace("{port}", str(port)) for name, value in self.environment.items()}

    def version(self) -> str:
        """Return the version that the server's command prints, in one line."""
        said = subprocess.run(
            self.version_command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        ).stdout
        wanted = [line for line in said.splitlines() if "version" in line] or said.splitlines()
        return wanted[0].strip() if wanted else "unknown"


def warmstart(python: Path, gguf: Path | None = None) -> Server:
    """Return Warmstart without the response cache, otherwise as users start it, with this process's environment.

    Args:
        python: the service's interpreter.
        gguf: a model to use instead of the embedded one.
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
    """Return llama.cpp's server.

    Args:
        program: the ``llama-server`` binary.
        gguf: the model.
        quantization: the file's quantization, for the name.
        slots: the number of concurrent answers; further requests wait.
        threads: CPU threads for the model; None uses the cores that this process may use.
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
    """Return ``transformers serve``.

    Args:
        program: the ``transformers`` console script of its environment.
        folder: the model in bfloat16.
        batching: whether to pass ``--continuous-batching``; without it, requests are answered one at a time.
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
        most_clients=1_000_000 if batching else 8,  # with more, an answer takes longer than the stage
    )


def vllm(program: Path, folder: Path) -> Server:
    """Return vLLM's OpenAI-compatible server, in its build for CPUs.

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
