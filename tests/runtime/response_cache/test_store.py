"""runtime.response_cache.store: one behaviour, three stores, on real files and a real Redis."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as client

from runtime.errors import SettingsError
from runtime.response_cache.factory import open_store
from runtime.response_cache.memory import MemoryStore
from runtime.response_cache.redis import PREFIX, RedisStore
from runtime.response_cache.sqlite import SqliteStore
from runtime.response_cache.store import OVERHEAD, Size, Store, StoreFailed
from runtime.settings import Settings
from tests.support.damage import damages
from tests.support.redis_server import REDIS_URL, own_names

ROOM = 1000
"""Bytes of the value of most tests."""
COST = ROOM + OVERHEAD
TTL = 100.0
KEYS = [f"{number:x}" * 64 for number in range(16)]
VALUE = bytes(ROOM)

Open = Callable[..., Store]


class Clock:
    """Unix time that stands still."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def names(patient_redis: None) -> Iterator[str]:
    """A prefix of one test's own in a real Redis."""
    with own_names("{{{}}}") as prefix:
        yield prefix


@pytest.fixture(params=["memory", "sqlite", "redis"])
def open_one(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock, patient_redis: None) -> Iterator[Open]:
    """Opens a store on the same place each time; memory's is a new one."""
    opened: list[Store] = []
    names = request.getfixturevalue("names") if request.param == "redis" else ""

    def open_(limit: int = 3 * COST, ttl: float = TTL) -> Store:
        store: Store
        if request.param == "memory":
            store = MemoryStore(limit, ttl, clock)
        elif request.param == "sqlite":
            store = SqliteStore(tmp_path / "responses.sqlite", limit, ttl, clock)
        else:
            store = RedisStore(REDIS_URL, limit, ttl, clock, names)
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


def _keys(store: Store) -> set[str]:
    """Those of ``KEYS`` that are kept, asked for by counting, which is no use of them."""
    kept = set()
    for key in KEYS:
        before = store.size().entries
        if store.remove(prefix=key):
            assert store.size().entries == before - 1
            kept.add(key)
    return kept


def test_keeps(open_one: Open) -> None:
    """A value comes back byte for byte; what was never put is not there."""
    store = open_one()
    value = bytes(range(256)) * 3
    assert store.get(KEYS[0]) is None
    assert store.size() == Size(0, 0)
    store.put(KEYS[0], "m", value)
    assert store.get(KEYS[0]) == value
    assert store.get(KEYS[1]) is None
    assert store.size() == Size(1, len(value) + OVERHEAD)


def test_many(open_one: Open) -> None:
    """Values of several keys come in the order of the keys; reading and storing them count as use in that order, and
    what has no room goes as if they were stored one after the other.
    """
    store = open_one(3 * COST + 2 * (64 + OVERHEAD))
    values = {key: key.encode() for key in KEYS[:3]}
    store.put_many("m", values | {KEYS[9]: bytes(4 * COST)})
    assert store.size() == Size(3, 3 * (64 + OVERHEAD))
    first, second, third = values.values()
    assert store.get_many([KEYS[2], KEYS[5], KEYS[0], KEYS[1]]) == [third, None, first, second]
    store.put_many("n", {key: bytes(ROOM) for key in KEYS[3:6]})
    assert store.counters.evictions == 1
    assert store.get_many(KEYS[:7]) == [first, second, None, VALUE, VALUE, VALUE, None]
    assert store.remove(model="n") == 3
    assert store.get_many([]) == []


def test_replaces(open_one: Open) -> None:
    """A key has one value, the last one, which alone counts; its model is the last one's too."""
    store = open_one()
    store.put(KEYS[0], "m", b"first")
    store.put(KEYS[0], "n", b"2")
    assert store.get(KEYS[0]) == b"2"
    assert store.size() == Size(1, 1 + OVERHEAD)
    assert store.remove(model="m") == 0
    assert store.remove(model="n") == 1


def test_age(open_one: Open, clock: Clock) -> None:
    """A value is good until its time is over, however often it was read; a new value begins its own time."""
    store = open_one()
    store.put(KEYS[0], "m", b"old")
    clock.now += TTL / 2
    store.put(KEYS[1], "m", b"new")
    clock.now += TTL / 2 - 0.01
    assert store.get(KEYS[0]) == b"old"
    clock.now += 0.01
    assert store.get(KEYS[0]) is None
    assert store.get(KEYS[1]) == b"new"
    assert store.size().entries == 1
    assert store.counters.expired == 1
    store.put(KEYS[0], "m", b"newer")
    clock.now += TTL / 2
    assert (store.get(KEYS[0]), store.get(KEYS[1])) == (b"newer", None)
    assert store.size() == Size(1, 5 + OVERHEAD)
    assert (store.counters.expired, store.counters.evictions) == (2, 0)


def test_least_recently_used_goes_first(open_one: Open) -> None:
    """Reading and replacing count as use; room is made by dropping whatever was not used for longest."""
    store = open_one(3 * COST)
    for key in KEYS[:3]:
        store.put(key, "m", VALUE)
    assert store.get(KEYS[0]) == VALUE
    store.put(KEYS[1], "m", VALUE)
    store.put(KEYS[3], "m", VALUE)
    assert store.counters.evictions == 1
    assert store.get(KEYS[2]) is None
    store.put(KEYS[4], "m", VALUE)
    assert store.size() == Size(3, 3 * COST)
    assert _keys(store) == {KEYS[1], KEYS[3], KEYS[4]}


def test_bound(open_one: Open) -> None:
    """All values together never cost more than the bound; as many go as must."""
    store = open_one(10 * COST)
    for key in KEYS[:10]:
        store.put(key, "m", VALUE)
    assert store.size() == Size(10, 10 * COST)
    store.put(KEYS[10], "m", bytes(4 * COST - OVERHEAD))
    assert store.size() == Size(7, 10 * COST)
    assert store.counters.evictions == 4
    assert _keys(store) == set(KEYS[4:11])


def test_too_large(open_one: Open) -> None:
    """A value that has no room even alone is not kept and drives nothing out; one that just fits is."""
    store = open_one(2 * COST)
    store.put(KEYS[0], "m", VALUE)
    store.put(KEYS[1], "m", bytes(2 * COST - OVERHEAD + 1))
    assert store.size() == Size(1, COST)
    store.put(KEYS[1], "m", bytes(2 * COST - OVERHEAD))
    assert store.size() == Size(1, 2 * COST)
    assert open_one(0).put(KEYS[2], "m", b"") is None


def test_remove(open_one: Open) -> None:
    """All, a model's, by how the key begins, or both; what is dropped is no eviction."""
    keys = ["0a" * 32, "0b" * 32, "1a" * 32, "ff" * 32]

    def filled() -> Store:
        store = open_one(100 * COST)
        for key, model in zip(keys, ["m", "n", "m", "m:shout"], strict=True):
            store.put(key, model, b"x")
        return store

    assert filled().remove(model="m", prefix="0") == 1
    for given, gone in [
        ({"model": "m"}, 2),
        ({"model": "nobody"}, 0),
        ({"prefix": "0"}, 2),
        ({"prefix": "f"}, 1),
        ({"prefix": keys[2]}, 1),
        ({"prefix": keys[2][:-1] + "b"}, 0),
        ({}, 4),
    ]:
        store = filled()
        assert store.remove(**given) == gone, given
        assert store.size() == Size(4 - gone, (4 - gone) * (1 + OVERHEAD)), given
        assert (store.counters.evictions, store.counters.expired) == (0, 0)
    assert store.get(keys[0]) is None


def test_threads(open_one: Open) -> None:
    """Many threads at once: a value is always whole, the books agree, the bound holds."""
    store = open_one(8 * COST)
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(30):
            key = KEYS[(number + turn) % 12]
            store.put(key, "m", key.encode() * 8)
            value = store.get(KEYS[(number * 5 + turn) % 12])
            if value is not None and (len(value) != 512 or value != value[:64] * 8):
                wrong.append(value)
            if turn % 10 == 9:
                store.remove(prefix=key)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    size = store.size()
    assert size.bytes == size.entries * (512 + OVERHEAD) <= 8 * COST
    assert len(_keys(store)) == size.entries
    assert store.size() == Size(0, 0)


@pytest.mark.parametrize("open_one", ["sqlite", "redis"], indirect=True)
def test_shared_and_lasting(open_one: Open) -> None:
    """Two stores on one place are one; what was kept is there after a restart, and the bound is of all together."""
    first, second = open_one(2 * COST), open_one(2 * COST)
    first.put(KEYS[0], "m", VALUE)
    assert second.get(KEYS[0]) == VALUE
    second.put(KEYS[1], "m", VALUE)
    second.put(KEYS[2], "m", VALUE)
    assert first.size() == second.size() == Size(2, 2 * COST)
    assert first.get(KEYS[0]) is None
    first.close()
    second.close()
    assert open_one().get(KEYS[1]) == VALUE


# SQLite's own


def _file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "responses.sqlite"


def _sqlite(tmp_path: Path, limit: int = 100 * COST) -> SqliteStore:
    return SqliteStore(_file(tmp_path), limit, TTL, Clock())


@pytest.mark.parametrize("damage", damages("totals"))
def test_damaged_file(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """A file that is damaged, or is none of ours, is begun anew; nothing of it is given, and it works from then on."""
    store = _sqlite(tmp_path)
    for key in KEYS:
        store.put(key, "m", key.encode() * 8)
    store.close()
    damage(_file(tmp_path))
    store = _sqlite(tmp_path)
    assert {store.get(key) for key in KEYS} <= {None, *(key.encode() * 8 for key in KEYS)}
    store.put(KEYS[0], "m", b"new")
    assert store.get(KEYS[0]) == b"new"
    assert store.counters.damaged == 1
    again = _sqlite(tmp_path)
    assert again.get(KEYS[0]) == b"new"
    assert again.counters.damaged == 0
    store.close()
    again.close()


def test_damaged_under_two(tmp_path: Path) -> None:
    """Two that share a damaged file begin it anew once: the second takes up the first one's new file."""
    first, second = _sqlite(tmp_path), _sqlite(tmp_path)
    first.put(KEYS[0], "m", VALUE)
    assert second.get(KEYS[0]) == VALUE
    first._file.rebuild(sqlite3.DatabaseError("planted"))
    first.put(KEYS[1], "m", VALUE)
    second._file.rebuild(sqlite3.DatabaseError("planted"))
    assert second.get(KEYS[1]) == first.get(KEYS[1]) == VALUE
    first.close()
    second.close()


def test_file_is_private(tmp_path: Path) -> None:
    """Only the owner may read what was answered."""
    store = _sqlite(tmp_path)
    store.put(KEYS[0], "m", VALUE)
    assert {path.stat().st_mode & 0o777 for path in _file(tmp_path).parent.iterdir()} == {0o600}
    store.close()


def test_full_disk(tmp_path: Path) -> None:
    """What has no room on the disk fails, loses nothing that was kept, and works again when there is room."""
    store = _sqlite(tmp_path)
    store.put(KEYS[0], "m", VALUE)
    assert store._file.database is not None
    store._file.database.execute("PRAGMA max_page_count = 12")
    with pytest.raises(StoreFailed, match="full"):
        store.put(KEYS[1], "m", bytes(50 * ROOM))
    assert store.get(KEYS[0]) == VALUE
    assert store.get(KEYS[1]) is None
    store.put(KEYS[1], "m", VALUE)
    assert store.size() == Size(2, 2 * COST)
    store.close()


def test_no_place_for_a_file(tmp_path: Path) -> None:
    """A folder that cannot be made is a failure with the reason; it works once it can."""
    (tmp_path / "cache").write_text("in the way")
    store = _sqlite(tmp_path)
    for call in (lambda: store.get(KEYS[0]), lambda: store.put(KEYS[0], "m", VALUE), store.size, store.remove):
        with pytest.raises(StoreFailed, match=r"responses\.sqlite"):
            call()
    (tmp_path / "cache").unlink()
    store.put(KEYS[0], "m", VALUE)
    assert store.get(KEYS[0]) == VALUE
    store.close()


def test_read_only_file(tmp_path: Path) -> None:
    """A file that can be read only gives what it holds as long as nothing must be written, and refuses the rest."""
    store = _sqlite(tmp_path)
    store.put(KEYS[0], "m", VALUE)
    assert store._file.database is not None
    store._file.database.execute("PRAGMA query_only = ON")
    assert store.get(KEYS[0]) == VALUE
    with pytest.raises(StoreFailed, match="readonly"):
        store.put(KEYS[1], "m", VALUE)
    store.close()


def test_somebody_writes_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another holds the file for longer than is waited, that is a failure, and over when it is over."""
    monkeypatch.setattr("runtime.response_cache.sqlite._BUSY_SECONDS", 0.02)
    store = _sqlite(tmp_path)
    store.put(KEYS[0], "m", VALUE)
    other = sqlite3.connect(_file(tmp_path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailed, match="locked"):
        store.put(KEYS[1], "m", VALUE)
    assert store.get(KEYS[0]) == VALUE
    other.execute("ROLLBACK")
    other.close()
    store.put(KEYS[1], "m", VALUE)
    assert store.size().entries == 2
    store.close()


WRITER = """
import sys, time
from pathlib import Path
from runtime.response_cache.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]), int(sys.argv[2]), 1e6, time.time)
number = int(sys.argv[3])
for turn in range(int(sys.argv[4])):
    key = f"{number * 1000 + turn % 50:064x}"
    store.put(key, "m", key.encode() * 200)
    if turn == 20:
        print("under way", flush=True)
"""


def _writer(path: Path, number: int, turns: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(40 * 13_056), str(number), str(turns)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Processes that begin and fill one file together keep whole values, right sums, and the bound."""
    writers = [_writer(_file(tmp_path), number, 60) for number in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    _check_written(_file(tmp_path))


def test_killed_while_writing(tmp_path: Path) -> None:
    """A process that is killed in the middle of writing leaves whole values and right sums."""
    for number in range(3):
        writer = _writer(_file(tmp_path), number, 1_000_000)
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
        writer.wait()
        writer.stdout.close()
        _check_written(_file(tmp_path))


def _check_written(path: Path) -> None:
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT key, value FROM answers").fetchall()
        sums = database.execute("SELECT entries, bytes FROM totals").fetchone()
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    assert rows
    assert all(value == key.encode() * 200 for key, value in rows)
    assert sums == (len(rows), 13_056 * len(rows))
    assert len(rows) <= 40


# Redis's own


def test_redis_forgets(names: str) -> None:
    """All that it holds in Redis is under one prefix, and goes by itself when nothing was put for long enough."""
    store = RedisStore(REDIS_URL, 10 * COST, TTL, Clock(), names)
    store.put(KEYS[0], "m", VALUE)
    server = client.Redis.from_url(REDIS_URL)
    held = sorted(server.scan_iter(names + "*"))
    assert held == sorted(f"{names}:{part}".encode() for part in ("values", "models", "created", "used", "state"))
    assert all(0 < server.pttl(name) <= TTL * 1000 for name in held)
    assert PREFIX.startswith("{warmstart:answers:")
    server.close()
    store.close()


@pytest.mark.parametrize("part", ["values", "models", "created", "used", "state"])
def test_redis_lost_a_part(names: str, part: str) -> None:
    """Should Redis evict one of the keys, no wrong value comes of it, and it soon works as before."""
    store = RedisStore(REDIS_URL, 4 * COST, TTL, Clock(), names)
    server = client.Redis.from_url(REDIS_URL)
    for key in KEYS[:4]:
        store.put(key, "m", key.encode())
    server.delete(f"{names}:{part}")
    assert all(store.get(key) in (None, key.encode()) for key in KEYS[:4])
    for key in KEYS[4:12]:
        store.put(key, "m", VALUE)
        assert store.get(key) == VALUE
    assert store.size().entries <= 8
    server.close()
    store.close()


@pytest.mark.parametrize("part", ["values", "models", "created", "used", "state"])
def test_redis_damaged(names: str, part: str) -> None:
    """Where a key holds something else, all of them are begun anew, once."""
    store = RedisStore(REDIS_URL, 4 * COST, TTL, Clock(), names)
    server = client.Redis.from_url(REDIS_URL)
    store.put(KEYS[0], "m", VALUE)
    server.set(f"{names}:{part}", "something else")
    store.put(KEYS[1], "m", VALUE)
    assert store.get(KEYS[1]) == VALUE
    assert store.get(KEYS[0]) is None
    assert store.size() == Size(1, COST)
    assert store.counters.damaged == 1
    server.close()
    store.close()


def test_redis_restarted(names: str) -> None:
    """Connections that Redis has closed, and scripts that it has forgotten, are made anew without a failure."""
    store = RedisStore(REDIS_URL, 4 * COST, TTL, Clock(), names)
    store.put(KEYS[0], "m", VALUE)
    server = client.Redis.from_url(REDIS_URL)
    mine = store._client.client_id()
    server.client_kill_filter(_id=str(mine))
    assert store.get(KEYS[0]) == VALUE
    server.close()
    store.close()


@pytest.mark.parametrize("answer", [None, b"", b"nonsense\r\n"], ids=["silent", "hangs up", "talks nonsense"])
def test_redis_that_is_none(answer: bytes | None) -> None:
    """A server that says nothing, hangs up or talks nonsense is a failure within the time-out, never a hang."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def serve() -> None:
            listener.settimeout(0.05)
            held = []
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                held.append(connection)
                if answer is not None:
                    connection.sendall(answer)
                    connection.close()
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        store = RedisStore(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", ROOM, TTL, Clock())
        for call in (lambda: store.get(KEYS[0]), store.size, store.remove):
            with pytest.raises(StoreFailed, match="Redis"):
                call()
        store.close()
        stop.set()
        thread.join()


def test_redis_is_not_there() -> None:
    """Nobody listens: a failure, which does not tell the password."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = RedisStore(f"redis://:hunter2@127.0.0.1:{port}/0", ROOM, TTL, Clock())
    with pytest.raises(StoreFailed) as caught:
        store.get(KEYS[0])
    assert "hunter2" not in str(caught.value)
    store.close()


# Which one


def test_settings_choose(tmp_path: Path) -> None:
    """RESPONSE_CACHE names the store; opening one touches neither disk nor network."""
    for name in ("memory", "sqlite", "redis"):
        settings = Settings.load(response_cache=name, cache_dir=tmp_path / "none", redis_url="redis://127.0.0.1:1/0")
        store = open_store(settings, Clock())
        assert store.name == name
        store.close()
    assert not (tmp_path / "none").exists()


def test_url_that_is_none() -> None:
    """A REDIS_URL that is no URL stops the start, and is named but not shown."""
    with pytest.raises(SettingsError, match=r"^REDIS_URL: ") as caught:
        open_store(Settings.load(response_cache="redis", redis_url="http://:hunter2@localhost"), Clock())
    assert "hunter2" not in str(caught.value)
