"""Runs the closed-loop streaming load of DESIGN section 4 on Warmstart and on every other server that is installed.

    python3 -m loadtests.peers --llama-server PATH --transformers PATH --out FOLDER

Run it from the repository's root with Python 3.11 or later; see loadtests/peers/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests.load.machine import machine_facts
from loadtests.peers import models, servers
from loadtests.peers.chart import chart
from loadtests.peers.load import GENERATOR, prompt_numbers
from loadtests.peers.report import Figures, Run, middle, tables
from loadtests.peers.servers import Server
from loadtests.peers.session import QUESTION, determinism_turn, turn
from loadtests.service import ROOT

_QUIET = 0.05  # cores that other processes may use without a note in the report


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the servers, print the report and write its files.

    Args:
        arguments: the command line's arguments, by default those of the process.

    Returns:
        0; 1 if a server failed; 2 if there is no server to measure or a model could not be converted; 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    if not GENERATOR.exists():
        print(f"the load generator has no {GENERATOR}; run: make .venv-load/.done", file=sys.stderr)
        return 2
    try:
        found = [server for server in find(options) if not options.servers or server.key in options.servers]
        if not found:
            print("none of these servers is here", file=sys.stderr)
            return 2
        return measure(found, options)
    except models.NoModel as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__.partition("\n")[0])
    add = made.add_argument
    add("--warmstart", type=Path, default=ROOT / ".venv/bin/python", help="the service's interpreter")
    add("--llama-server", type=Path, default=_known("LLAMA_SERVER", "llama-server"), help="or variable LLAMA_SERVER")
    add("--transformers", type=Path, default=_known("TRANSFORMERS"), help="its console script, or TRANSFORMERS")
    add("--vllm", type=Path, default=_known("VLLM", "vllm"), help="its console script, or variable VLLM")
    add("--gguf", type=Path, help="another model than the embedded one, for all")
    add("--models", type=Path, default=Path("~/.cache/warmstart-peers").expanduser(), help="keeps converted models")
    add("--q4", action="store_true", help="llama-server also with the GGUF file as it is")
    add("--slots", type=int, default=16, help="answers at once of llama-server")
    add("--servers", type=_names, help="only these, such as warmstart,llama-q8_0,transformers,transformers-cb,vllm")
    add("--clients", type=_counts, default=(1, 8, 16, 32), help="a stage for each: 1,8,16,32")
    add("--seconds", type=float, default=30.0, help="length of a stage; its first fifth is not counted")
    add("--rounds", type=int, default=3, help="starts of each server, interleaved")
    add("--determinism", type=int, default=0, metavar="N", help="also N seeded requests alone and among 16 clients")
    add("--out", type=Path, help="folder for peers.json, peers.md and peers.svg")
    return made


def find(options: argparse.Namespace) -> list[Server]:
    """Return the servers that are installed, Warmstart first, and print the missing ones on standard error."""
    found = [servers.warmstart(options.warmstart, options.gguf)]
    peers = {"llama-server": options.llama_server, "transformers": options.transformers, "vllm": options.vllm}
    for name, path in peers.items():
        if path is None or not path.exists():
            print(f"not measured: {name} ({f'no {path}' if path else f'give --{name}'})", file=sys.stderr)
            peers[name] = None
    if not any(peers.values()):
        return found
    options.models.mkdir(parents=True, exist_ok=True)
    gguf = options.gguf or models.embedded_gguf(options.warmstart)
    if llama := peers["llama-server"]:
        found.append(
            servers.llama_server(
                llama, models.q8_0(gguf, llama.parent / "llama-quantize", options.models), "Q8_0", options.slots
            )
        )
        if options.q4:
            found.append(servers.llama_server(llama, gguf, gguf.stem.rpartition(".")[2], options.slots))
    if script := peers["transformers"]:
        folder = models.hf_folder(gguf, options.warmstart, options.models)
        found += [servers.transformers_serve(script, folder, batching) for batching in (False, True)]
    if script := peers["vllm"]:
        folder = models.hf_folder(gguf, options.warmstart, options.models)
        found.append(servers.vllm(script, folder))
    return found


def measure(found: Sequence[Server], options: argparse.Namespace) -> int:
    """Run all rounds, then print and write the report.

    Returns:
        0, or 1 if a server failed.
    """
    machine = machine_facts() | {"commit": _commit()}
    versions = {server.name: server.version() for server in found}
    runs: list[Run] = []
    for number, server in itertools.product(range(options.rounds), found):  # interleaved: noise affects all
        _say(f"round {number + 1} of {options.rounds}: {server.name}")
        runs.append(turn(server, options.clients, options.seconds, number))
        _tell(runs[-1])
    figures = {server.name: middle([run for run in runs if run.key == server.key], options.clients) for server in found}
    checks: list[Run] = []
    for server in found if options.determinism else ():
        _say(f"{options.determinism} seeded requests alone and among others: {server.name}")
        checks.append(determinism_turn(server, options.determinism, prompt_numbers(options.rounds)))
        _tell(checks[-1])
    text = _report(figures, options, machine, versions, runs, checks)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {
            "machine": machine,
            "versions": versions,
            "commands": {server.name: server.command for server in found},
            "seconds": options.seconds,
            "medians": figures,
            "runs": [asdict(run) for run in runs],
            "determinism": [asdict(run) for run in checks],
        }
        (options.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "peers.md").write_text(text + "\n")
        subtitle = (
            f"{machine.get('processor', 'unknown processor')}, {machine['cores']} cores, client on the same cores"
        )
        (options.out / "peers.svg").write_text(chart(figures, options.clients, subtitle))
    return 1 if any(run.error for run in [*runs, *checks]) else 0


def _report(
    figures: dict[str, Figures],
    options: argparse.Namespace,
    machine: dict[str, str],
    versions: dict[str, str],
    runs: Sequence[Run],
    checks: Sequence[Run],
) -> str:
    parts = [
        f"Medians of {options.rounds} interleaved rounds, stages of {options.seconds:g} s.",
        "\n".join(f"- {name}: {value}" for name, value in (machine | versions).items()),
        tables(figures, servers.WARMSTART, options.clients),
    ]
    # Near-ties depend on the weights' precision; a nonsensical answer means that a model is served wrongly.
    answers = {run.name: run.answer for run in runs if run.answer}
    parts += [f"{QUESTION} Greedy:", "\n".join(f"- {name}: {answer!r}" for name, answer in answers.items())]
    if checks:
        lines = [f"- {run.name}: {run.identical} of {options.determinism}" for run in checks if not run.error]
        parts += ["Seeded requests with the same text alone and among 16 clients:", "\n".join(lines)]
    if notes := list(_notes([*runs, *checks])):
        parts += ["Trouble:", "\n".join(notes)]
    return "\n\n".join(parts)


def _notes(runs: Iterable[Run]) -> Iterable[str]:
    for run in runs:
        if run.error:
            yield f"- {run.name}: {run.error.strip().splitlines()[0]}"
        for stage in run.stages:
            if stage.others_cpu > _QUIET:
                yield f"- {run.name}, clients: {stage.clients}: other processes took {stage.others_cpu:.2f} cores"
            if stage.failures:
                yield f"- {run.name}, clients: {stage.clients}: {stage.failures} failures, first: {stage.failure}"


def _tell(run: Run) -> None:
    if run.error:
        _say(f"  {run.error}")
    for stage in run.stages:
        _say(f"  {stage}")
    _say(f"  live {run.livez} s, first answer {run.first_answer} s, peak RSS {run.peak_rss}, same {run.identical}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False).stdout.strip() or "unknown"


def _known(variable: str, program: str | None = None) -> Path | None:
    """Return the path that an environment variable names, or that of a program on ``PATH``."""
    path = os.environ.get(variable) or (program and shutil.which(program))
    return Path(path).absolute() if path else None


def _names(text: str) -> list[str]:
    return text.split(",")


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    # Handle all like Ctrl-C, so that a running server is ended; shells start background commands with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
