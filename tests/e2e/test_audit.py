"""The audit log of a real process: killed, started twice, on a disk that is full."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loadtests.service import Service, running_service
from runtime.audit.verify import verify
from tests.runtime.audit.logs import KEYS, SECRET, check, records
from tests.support.command_line import warmstart
from tests.support.full_disk import mounted_disk
from tests.support.soak import soak

KILLS = soak(10, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the log is."""
    return tmp_path / "audit.log"


def settings(path: Path, **more: str) -> dict[str, str]:
    """Those of a service that records."""
    return {"AUDIT_LOG": str(path), "AUDIT_KEY": SECRET, "PRELOAD": "false", "LOG_FORMAT": "json"} | more


def ask(service: Service, times: int = 1) -> list[int]:
    """Statuses of so many requests that are recorded, on one connection, until it is gone."""
    statuses = []
    connection = service.connect(timeout=10)
    try:
        for _ in range(times):
            connection.request("GET", "/models")
            with connection.getresponse() as response:
                response.read()
                statuses.append(response.status)
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return statuses


def test_a_killed_service(path: Path) -> None:
    """Killed at any moment under load, it goes on with the chain at the next start, and no answered request is missing.

    Every record is in the page cache before its answer is sent, which a kill does not harm.
    """
    generator = random.Random(5)
    answered = 0
    for _ in range(KILLS):
        with running_service(**settings(path, AUDIT_MAX_BYTES="20000")) as service:
            service.wait("/livez")
            with ThreadPoolExecutor(4) as clients:
                counts = [clients.submit(ask, service, 2000) for _ in range(4)]
                threading.Event().wait(generator.uniform(0.05, 0.8))
                service.process.kill()
            answered += sum(len(count.result()) for count in counts)
    with running_service(**settings(path)) as service:
        service.wait("/livez")
    report = check(path)
    assert report.problem is None
    assert answered > 0
    assert report.count >= answered + KILLS + 1
    assert sum("without a stop record" in note for note in report.notes) == KILLS


def test_a_second_process_ends_with_the_name_of_the_setting(path: Path) -> None:
    """Its status is that of wrong settings; the first one's log is whole."""
    with running_service(**settings(path)) as service:
        service.wait("/livez")
        with running_service(**settings(path)) as second:
            assert second.process.wait(30) == 2
            assert "AUDIT_LOG: another process writes" in second.log.read_text()
            assert "Traceback" not in second.log.read_text()
        assert ask(service) == [200]
    report = check(path)
    assert (report.problem, report.notes) == (None, [])
    assert [record["event"] for record in records(path)] == ["start", "request", "stop"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KiB."""
    with mounted_disk(tmp_path / "disk", "64k") as folder:
        yield folder


@pytest.mark.parametrize("required", ["false", "true"])
def test_a_full_disk(small_disk: Path, tmp_path: Path, required: str) -> None:
    """It is logged once and counted, serving goes on or not as AUDIT_REQUIRED says, and all mends itself."""
    path = small_disk / "audit.log"
    with running_service(**settings(path, AUDIT_REQUIRED=required)) as service:
        service.wait("/livez")
        statuses = ask(service, 400)
        assert statuses[0] == 200
        assert statuses[-1] == (503 if required == "true" else 200)
        connection = service.connect()
        connection.request("GET", "/metrics")
        figures = connection.getresponse()
        shown = figures.read().decode()
        connection.close()
        if required == "false":
            (line,) = [line for line in shown.splitlines() if line.startswith("warmstart:audit_errors_total")]
            assert float(line.split()[1]) > 10
        full = Path(shutil.move(path, tmp_path))  # an operator makes room
        end = threading.Event()
        for _ in range(100):
            if ask(service) == [200] and path.exists():
                break
            end.wait(0.1)
        assert ask(service) == [200]
        log = service.log.read_text()
    # Once, and again for each short record that found a place at the disk's end.
    assert 1 <= log.count("cannot write the audit log: ") <= 3
    assert "Traceback" not in log
    report = verify([full, path], KEYS)
    assert report.problem is None
    assert any("could not be written" in note for note in report.notes)


def test_verify_as_an_operator_runs_it(path: Path) -> None:
    """While the service runs and after it, in a process of its own."""
    with running_service(**settings(path)) as service:
        service.wait("/livez")
        ask(service, 20)
        done = warmstart("audit", "verify", **settings(path))
        assert (done.returncode, done.stderr) == (0, "")
        assert "ok: 21 records" in done.stdout
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:9] + lines[10:]))
    done = warmstart("audit", "verify", **settings(path))
    assert done.returncode == 1
    assert done.stderr == f"warmstart: {path}:10: record 10 is missing before record 11: removed, or moved\n"
    assert json.loads(lines[9])["seq"] == 10
