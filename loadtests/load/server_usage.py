"""Samples a server's processor time and memory: of its processes if it is on this machine, else of its metrics.

On this machine (Linux only) the processes are the one that listens on the port and its descendants. Elsewhere the
figures are ``process_cpu_seconds_total`` and ``process_resident_memory_bytes`` of ``/metrics``, which servers with a
client of Prometheus have.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from loadtests.load.http_answer import BadAnswer
from loadtests.load.http_client import ConnectionPool, Target

_LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp
_METRIC = re.compile(
    rb"^(process_cpu_seconds_total|process_resident_memory_bytes)(?:\{[^}]*\})? ([0-9.eE+-]+)", re.MULTILINE
)
_METRICS_SECONDS = 5.0


class ServerUsage:
    """Reads what a server has used so far."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._pool = ConnectionPool(target)
        self._process = listening_process(target.port) if _is_here(target.host) else None
        self._metrics = self._process is None

    def read(self) -> tuple[float, float] | None:
        """Return processor seconds since the server's start, and its resident bytes now; None: not known."""
        if self._process is not None:
            return process_usage(self._process)
        if self._metrics:
            with suppress(BadAnswer, OSError):
                answer, _, _ = self._pool.request("GET", "/metrics", seconds=_METRICS_SECONDS)
                found = {name: float(value) for name, value in _METRIC.findall(answer.body())}
                if answer.status == 200 and len(found) == 2:
                    return found[b"process_cpu_seconds_total"], found[b"process_resident_memory_bytes"]
        self._metrics = False  # asked once, so that a server without it gets no more requests of ours
        return None


def listening_process(port: int) -> int | None:
    """Return the id of a process that listens on a TCP port of this machine; None if it cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    owners = []
    for entry in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):  # of another user, or just ended
            if any(os.readlink(link) in inodes for link in (entry / "fd").iterdir()):
                owners.append(int(entry.name))
    return min(owners, default=None)


def process_usage(process: int) -> tuple[float, float] | None:
    """Return processor seconds and resident bytes of a process and its descendants; None if it has ended."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    parents: dict[int, int] = {}
    used: dict[int, tuple[float, float]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()  # after the name, which may be anything
            parents[int(entry.name)] = int(fields[1])
            # User and system time, also of children that have ended; resident pages.
            used[int(entry.name)] = sum(map(int, fields[11:15])) / tick, int(fields[21]) * page
    if process not in used:
        return None
    members, todo = set(), [process]
    while todo:
        members.add(parent := todo.pop())
        todo += [child for child, its_parent in parents.items() if its_parent == parent]
    return sum(used[member][0] for member in members), sum(used[member][1] for member in members)


def _is_here(host: str) -> bool:
    with suppress(OSError, ValueError):
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    return False
