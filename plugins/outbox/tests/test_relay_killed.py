"""Relays and servers are killed at any moment, and each row becomes its job once all the same."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg
import pytest
from faults.chance import LONG, SEED
from faults.servers import new_database
from outbox_processes import app_on, forked, relay_until_killed
from procrastinate_extconn_outbox import Tables, relay
from procrastinate_extconn_outbox.payload import new_id
from sqlalchemy import URL, Engine, create_engine, insert, make_url

from procrastinate_extconn.temporary_server import TemporaryServer

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(7200 if LONG else 300),
    # A driver whose server has gone may leave its socket to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

ROWS = 100_000 if LONG else 600
PORTION = ROWS // (50 if LONG else 6)
"""How many are written after each relay that is killed."""
SERVER_KILLS = 6 if LONG else 1
_COUNTS = """
SELECT count(*), count(DISTINCT args ->> 'n'), (SELECT count(*) FROM procrastinate_outbox_inbox)
FROM procrastinate_jobs
"""


class Place(NamedTuple):
    """A database for rows, and how its server is killed and started again."""

    url: URL
    restart: Callable[[], object]


@contextlib.contextmanager
def on_postgresql(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A PostgreSQL server of its own."""
    with TemporaryServer() as server:
        url = make_url(server.dsn()).set(drivername="postgresql+psycopg")
        Tables().metadata.create_all(engine := create_engine(url))
        engine.dispose()
        yield Place(url, lambda: (server.kill(), server.start()))


@contextlib.contextmanager
def on_mariadb(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A MariaDB server."""
    url = request.getfixturevalue("mariadb_url")
    server = request.getfixturevalue("mariadb")
    yield Place(url, lambda: (server.kill(), server.start()))


@contextlib.contextmanager
def on_sqlite(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A file, which has no server."""
    yield Place(request.getfixturevalue("sqlite_url"), lambda: None)


PLACES = {"postgresql": on_postgresql, "mariadb": on_mariadb, "sqlite": on_sqlite}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A place for rows."""
    with PLACES[request.param](request) as place:
        yield place


@pytest.fixture(scope="module")
def queue_server() -> Iterator[TemporaryServer]:
    """A server for the queue, which is killed."""
    with TemporaryServer() as server:
        yield server


class Audit:
    """Relays that are killed, one after the other, until the outbox is empty.

    :param relays: how many work side by side.
    """

    def __init__(self, place: Place, queue: TemporaryServer, dsn: str, relays: int) -> None:
        self._place = place
        self._queue = queue
        self._dsn = dsn
        self._url = place.url.render_as_string(hide_password=False)
        self._rng = random.Random(SEED)
        self._engine: Engine = create_engine(place.url, pool_pre_ping=True)
        self._written = 0
        self._relays = [self._start() for _ in range(relays)]
        self.kills = 0
        self.server_kills = 0

    def _start(self) -> Any:
        process = forked.Process(
            target=relay_until_killed, args=(self._url, self._dsn), daemon=True
        )
        process.start()
        return process

    def run(self) -> None:
        """Kill relays and servers until all rows are forwarded."""
        try:
            self._write(ROWS // 2)
            server_kills = sorted(self._rng.uniform(0.1, 0.9) for _ in range(SERVER_KILLS))
            while self._written < ROWS or self._has_rows():
                time.sleep(self._rng.uniform(0, 6 if LONG else 1))
                self._kill_relay()
                self._write(PORTION)
                if server_kills and self._forwarded() > server_kills[0] * ROWS:
                    server_kills.pop(0)
                    self._place.restart()
                    self._queue.kill()
                    self._queue.start()
                    self.server_kills += 1
        finally:
            for process in self._relays:
                process.kill()
                process.join()
        # The last ones were killed, too.
        relay(self._url, app_on(self._dsn), wait=False)

    def _kill_relay(self) -> None:
        number = self._rng.randrange(len(self._relays))
        assert self._relays[number].is_alive(), "a relay has ended by itself"
        self._relays[number].kill()
        self._relays[number].join()
        self._relays[number] = self._start()
        self.kills += 1

    def _write(self, count: int) -> None:
        rows = []
        for number in range(self._written, min(self._written + count, ROWS)):
            job = {"queue_name": "q", "task_name": "work", "priority": 0, "args": {"n": number}}
            rows.append({"id": new_id(), "jobs": json.dumps([job])})
        if rows:
            with self._engine.begin() as conn:
                conn.execute(insert(Tables().outbox), rows)
        self._written += len(rows)

    def _has_rows(self) -> bool:
        with self._engine.begin() as conn:
            return conn.execute(Tables().outbox.select().limit(1)).first() is not None

    def _forwarded(self) -> int:
        with psycopg.connect(self._dsn) as conn:
            return int(
                (conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() or [0])[0]
            )

    def counts(self) -> tuple[int, int, int]:
        """How many jobs there are, how many different ones, and what is left in the inbox."""
        self._engine.dispose()
        with psycopg.connect(self._dsn) as conn:
            jobs, different, left = conn.execute(_COUNTS).fetchone() or (0, 0, 0)
        return jobs, different, left


@pytest.mark.parametrize("relays", [1, 4] if LONG else [4])
def test_each_row_becomes_its_job_once(
    place: Place,
    relays: int,
    queue_server: TemporaryServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whenever relays are killed, and both servers, every row has its job in the end, and none has two."""
    with new_database(queue_server) as dsn:
        audit = Audit(place, queue_server, dsn, relays)
        began = time.monotonic()
        audit.run()
        jobs, different, left = audit.counts()
        with capsys.disabled():
            print(  # noqa: T201 - figures are what these tests are for
                f"\n{place.url.get_backend_name()} to postgresql, {relays} relays, seed {SEED}: {audit.kills} relays "
                f"and {audit.server_kills} times both servers killed, {jobs} jobs of {ROWS} rows, "
                f"{jobs - different} twice, {ROWS - different} missing, {left} ids left in the inbox, "
                f"{time.monotonic() - began:.0f} s"
            )
    assert (jobs, different) == (ROWS, ROWS)
