"""Runs the Ray application on a cluster of this machine: several raylets, each a node, for tests and measurements.

The cluster is a process of Ray's environment (``RAY_PYTHON``, or ``build/ray``, which is made on first use). It takes
commands on standard input; ``running_cluster`` starts it from this environment.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtests.environments import make_once
from loadtests.service import ROOT, free_port

_ENGINE = b"ray::ServeReplica:default:engine"
_END_SECONDS = 60


class RayCluster:
    """A running cluster, with the application behind ``url``.

    Args:
        process: the process that runs it.
        port: the port of Ray's HTTP proxy, on the head node.
        mark: the variable by which its processes are found.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, mark: str) -> None:
        self._process = process
        self._mark = mark.encode()
        self.url = f"http://127.0.0.1:{port}"

    def do(self, command: str, **options: Any) -> Any:
        """Run a command (``_Commands``) and return its result.

        Raises:
            RuntimeError: it failed, or the cluster has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command} | options) + "\n")
        self._process.stdin.flush()
        return self.result()

    def result(self) -> Any:
        """Return the result of the command that runs; lines before it are Ray's own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"result":'):
                return json.loads(line)["result"]
            if line.startswith('{"error":'):
                raise RuntimeError(json.loads(line)["error"])
        raise RuntimeError(f"the cluster has ended with status {self._process.wait()}")

    def engines(self) -> list[int]:
        """Return the process ids of the engines' replicas that run in this cluster."""
        return sorted(pid for pid in self.processes() if _title(pid).startswith(_ENGINE))

    def processes(self) -> list[int]:
        """Return the process ids of all processes of this cluster."""
        return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if self._mark in _environment(folder)]

    def cpu_seconds(self) -> float:
        """Return the processor time that its running processes have used."""
        return sum(cpu_seconds(pid) for pid in self.processes())

    def kill_engine(self) -> None:
        """Kill the process of one replica with SIGKILL."""
        os.kill(self.engines()[0], signal.SIGKILL)

    def kill_node(self) -> None:
        """End a node on which a replica runs, with all its processes, at once."""
        self.do("kill_node_of", engine=self.engines()[0])


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used; 0 if there is none with this id."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _environment(folder: Path) -> bytes:
    try:
        return (folder / "environ").read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


@contextmanager
def running_cluster(
    arguments: Mapping[str, Any], *, nodes: tuple[float, ...] = (), **environment: str
) -> Iterator[RayCluster]:
    """Run a cluster with the application during the block, which begins when the application is deployed.

    Args:
        arguments: the application's arguments (``ServeArguments``).
        nodes: the cores of each node beside the head node, which then has none for engines; by default the head node
            alone has four.
        environment: variables of the cluster, such as settings.
    """
    port = free_port()
    command = [ray_python(), "-m", "loadtests.ray_cluster", str(port), json.dumps(nodes), json.dumps(arguments)]
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "RAY_")) or name == "RAY_PYTHON"
    } | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray listens on all interfaces. Without a token here it would write one into the home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "FORWARDED_ALLOW_IPS": "",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",  # as docs/growing.md says: it halves Ray's processor time
    }
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables | {"WARMSTART_CLUSTER": str(port)} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("RAY_LOGS") else subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        cluster = RayCluster(process, port, f"WARMSTART_CLUSTER={port}\0")
        cluster.result()
        yield cluster
    finally:
        if process.stdin is not None:
            process.stdin.close()  # it ends Ray, and itself
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ray_python() -> str:
    """Return the Python of Ray's environment, which has this environment's packages, too."""
    if named := os.environ.get("RAY_PYTHON"):
        return named
    folder = ROOT / "build/ray"

    def install() -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (packages / "warmstart.pth").write_text(ours)
        pip = [f"{folder}/bin/pip", "install", "--disable-pip-version-check", "--quiet"]
        subprocess.run([*pip, "-c", "requirements/lock.txt", "-r", "requirements/ray.txt"], cwd=ROOT, check=True)

    make_once(folder, install)
    return f"{folder}/bin/python"


class _Commands:
    """What the cluster's process does; each public method is a command.

    Args:
        port: the port of the HTTP proxy.
        nodes: as for ``running_cluster``.
    """

    def __init__(self, port: int, nodes: list[float]) -> None:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0 if nodes else 4, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [
            self._cluster.add_node(num_cpus=cpus, object_store_memory=80 * 2**20, wait=False) for cpus in nodes
        ]
        self._cluster.wait_for_nodes()
        ray.init(address=self._cluster.address, log_to_driver=bool(os.environ.get("RAY_LOGS")))
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})

    def deploy(self, arguments: dict[str, Any]) -> None:
        """Deploy the application, or update it, and wait until that is done."""
        from ray import serve

        from deploy.ray.application import build

        serve.run(build(arguments))

    def kill_node_of(self, engine: int) -> None:
        """End the node on which a replica with this process id runs."""
        raylet = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
        (node,) = (node for node in self._nodes if node.all_processes["raylet"][0].process.pid == raylet)
        self._cluster.remove_node(node, allow_graceful=False)

    def status(self) -> dict[str, Any]:
        """Return the number of the engine's replicas in each state."""
        from ray import serve

        return dict(serve.status().applications["default"].deployments["engine"].replica_states)

    def close(self) -> None:
        """End Ray."""
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()
        self._cluster.shutdown()


def _main() -> None:
    port, nodes, arguments = sys.argv[1:]
    commands = None
    try:
        commands = _Commands(int(port), json.loads(nodes))
        commands.deploy(json.loads(arguments))
        print(json.dumps({"result": None}), flush=True)
        for line in sys.stdin:
            options = json.loads(line)
            try:
                result = getattr(commands, options.pop("command"))(**options)
                print(json.dumps({"result": result}), flush=True)
            except Exception as error:
                print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
    finally:
        if commands is not None:
            commands.close()


if __name__ == "__main__":
    _main()
