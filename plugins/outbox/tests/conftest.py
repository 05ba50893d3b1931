"""Databases for rows: SQLite in a file, a MariaDB server of the run's own, and PostgreSQL beside the queue's."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate_extconn_outbox import Tables
from sqlalchemy import URL, Engine, create_engine, make_url, text

import procrastinate_extconn as extconn
from procrastinate_extconn.testing.server import database_dsn, server_dsn

_PDEATHSIG = 1  # from <sys/prctl.h>
_numbers = itertools.count(1)


class MariaDB:
    """Debian's server on a data folder of its own, never as root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._user = "nobody" if os.geteuid() == 0 else None
        self._data = folder / "data"
        if self._user:
            shutil.chown(folder, self._user)
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port: int = free.getsockname()[1]
        install = self._run("mariadb-install-db", "--auth-root-authentication-method=normal")
        assert install.wait() == 0, (folder / "log").read_text()

    def _run(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        libc = ctypes.CDLL(None)
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [program, "--no-defaults", f"--datadir={self._data}", *args],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._user,
                extra_groups=[] if self._user else None,
                preexec_fn=lambda: libc.prctl(_PDEATHSIG, signal.SIGKILL),
            )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self._server = self._run(
            "mariadbd",
            f"--socket={self._folder}/socket",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--pid-file={self._folder}/pid",
            # So that tests find where a character set or an SQL mode would change what is written.
            "--character-set-server=latin1",
            "--sql-mode=",
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.execute("SELECT 1")
            except Exception:
                assert self._server.poll() is None, (self._folder / "log").read_text()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """Kill the server, as a power cut would."""
        self._server.kill()
        self._server.wait()

    def url(self, driver: str, database: str | None = None) -> URL:
        """Address a database of it."""
        return URL.create(
            driver, username="root", host="127.0.0.1", port=self.port, database=database
        )

    def execute(self, statement: str) -> None:
        """Run a statement on the server."""
        engine = create_engine(self.url("mysql+pymysql"))
        try:
            with engine.begin() as conn:
                conn.execute(text(statement))
        finally:
            engine.dispose()

    def new_database(self) -> str:
        """Make an empty database."""
        name = f"rows_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Start a MariaDB server."""
    if not all(map(shutil.which, ("mariadb-install-db", "mariadbd"))):
        pytest.skip("no mariadbd: install mariadb-server")
    with tempfile.TemporaryDirectory(prefix="mariadb", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = MariaDB(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def mariadb_url(mariadb: MariaDB) -> URL:
    """Address a new database with the tables, on PyMySQL."""
    return with_tables(mariadb.url("mysql+pymysql", mariadb.new_database()))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> URL:
    """Address a new file with the tables."""
    return with_tables(URL.create("sqlite", database=str(tmp_path / "rows.sqlite")))


@pytest.fixture
def postgresql_url(pytestconfig: pytest.Config) -> Iterator[URL]:
    """Address a new database with the tables, on the queue's server, on psycopg."""
    server = server_dsn(pytestconfig)
    name = f"rows_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}".encode())
        url = make_url(database_dsn(server, name)).set(drivername="postgresql+psycopg")
        yield with_tables(url)
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def with_tables(url: URL) -> URL:
    """Create the tables at *url*, and one for orders."""
    engine = create_engine(url)
    Tables().metadata.create_all(engine)
    with engine.begin() as conn:
        conn.execute(text("CREATE TABLE orders (id INTEGER PRIMARY KEY)"))
    engine.dispose()
    return url


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def rows_url(request: pytest.FixtureRequest) -> URL:
    """Address a database for rows, of each make."""
    url: URL = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def ship() -> Iterator[Any]:
    """Make a task of an app whose queue nobody reaches: an outbox needs no connection to it."""
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo="host=127.0.0.1 port=1")
    )
    extconn.patch(app, outside_transaction="error")

    @app.task(name="ship", queue="parcels")
    def ship(**task_kwargs: object) -> None:
        """Do nothing: no worker runs here."""

    yield ship
    extconn.unpatch(app)


@pytest.fixture
def engine(rows_url: URL) -> Iterator[Engine]:
    """Make an engine for rows in a database of each make."""
    engine = create_engine(rows_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite(sqlite_url: URL) -> Iterator[Engine]:
    """Make an engine for rows in SQLite."""
    engine = create_engine(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def app(dsn: str) -> procrastinate.App:
    """Make an app on the queue, which is not open."""
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))


@pytest.fixture
def jobs(dsn: str) -> Callable[..., list[Any]]:
    """Read the jobs in the queue."""

    def jobs(column: str = "args") -> list[Any]:
        with psycopg.connect(dsn) as conn:
            rows = conn.execute(f"SELECT {column} FROM procrastinate_jobs ORDER BY id".encode())
            return [row if len(row) > 1 else row[0] for row in rows.fetchall()]

    return jobs


@pytest.fixture
def dsn(dsn: str) -> str:
    """Address the queue's database, without an inbox."""
    with psycopg.connect(dsn) as conn:
        conn.execute("DROP TABLE IF EXISTS procrastinate_outbox_inbox")
    return dsn
