"""What only pg8000 has: three APIs, a parameter style that a person may set, and no public way to tell its state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pg8000
import pg8000.dbapi
import pg8000.native
import pytest
import wrapt
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager
from psycopg.conninfo import conninfo_to_dict

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.fallback import Fallback
from procrastinate_extconn.known_plugins import install_line
from procrastinate_extconn.testing.contract.database import Database

NASTY = {"text": "it's \\ %s %% %(x)s :name $1 ? {} \n é 漢", "integer": 2**70 + 1, "float": 0.1}

Connect = Callable[[Callable[..., Any]], Any]


@pytest.fixture
def connect(dsn: str) -> Iterator[Connect]:
    """Connect by any of pg8000's functions."""
    found = conninfo_to_dict(dsn)
    names = {"user": "user", "password": "password", "host": "host", "dbname": "database"}
    arguments: dict[str, Any] = {new: found[old] for old, new in names.items() if old in found}
    arguments["port"] = int(found.get("port") or 5432)
    opened: list[Any] = []

    def connect(function: Callable[..., Any]) -> Any:
        opened.append(function(**arguments))
        return opened[-1]

    yield connect
    for conn in opened:
        if extconn.describe(conn).state != "closed":
            conn.close()


def test_states_of_the_dbapi(connect: Connect) -> None:
    """The next statement opens a transaction, unless autocommit is on."""
    conn = connect(pg8000.dbapi.connect)
    states = [extconn.describe(conn).state]
    conn.cursor().execute("SELECT 1")
    states.append(extconn.describe(conn).state)
    with pytest.raises(pg8000.dbapi.DatabaseError):
        conn.cursor().execute("SELECT 1 / 0")
    states.append(extconn.describe(conn).state)
    conn.rollback()
    conn.autocommit = True
    states.append(extconn.describe(conn).state)
    conn.close()
    states.append(extconn.describe(conn).state)
    assert states == ["idle", "in_transaction", "failed", "autocommit", "closed"]


def test_states_of_a_native_connection(connect: Connect) -> None:
    """A native connection commits each statement by itself, but in a transaction that was started."""
    conn = connect(pg8000.native.Connection)
    states = [extconn.describe(conn).state]
    conn.run("START TRANSACTION")
    states.append(extconn.describe(conn).state)
    conn.run("COMMIT")
    states.append(extconn.describe(conn).state)
    assert states == ["autocommit", "in_transaction", "autocommit"]


@pytest.mark.parametrize("style", ["format", "pyformat", "named", "numeric", "qmark"])
@pytest.mark.parametrize("api", ["dbapi", "legacy"])
def test_parameter_styles(
    connect: Connect,
    database: Database,
    ship: Any,
    monkeypatch: pytest.MonkeyPatch,
    api: str,
    style: str,
) -> None:
    """The parameter style that a person has set is theirs: ours goes along with it."""
    module = pg8000 if api == "legacy" else pg8000.dbapi
    monkeypatch.setattr(module, "paramstyle", style)
    conn = connect(module.connect)
    ship.configure(connection=conn, lock="100%").defer(**NASTY)
    [job] = JobManager(ExternalConnector(conn)).list_jobs(lock="100%", status="todo")
    literals = "SELECT '100%%' AS quoted, 5 %% 3 AS modulo"
    connector = ExternalConnector(conn)
    rows = [
        *connector.execute_query_all(literals),
        *connector.execute_query_all(f"{literals}, CAST(%(n)s AS bigint) AS n", n=1),
    ]
    conn.commit()

    assert job.task_kwargs == NASTY
    assert rows == [{"quoted": "100%", "modulo": 2}, {"quoted": "100%", "modulo": 2, "n": 1}]
    [stored] = database.jobs()
    assert json.loads(stored["args"]) == NASTY


def test_top_level_connect(connect: Connect, database: Database, ship: Any) -> None:
    """What `pg8000.connect` gives, which SQLAlchemy uses too, is taken as well."""
    conn = connect(pg8000.connect)
    conn.run("INSERT INTO orders VALUES (1)")
    job_id = ship.configure(connection=conn).defer()
    assert extconn.describe(conn)[:4] == ("pg8000", "pg8000", False, "in_transaction")
    assert not database.sees(job_id)
    conn.commit()
    assert database.sees(job_id)


@pytest.mark.parametrize("function", [pg8000.dbapi.connect, pg8000.native.Connection])
def test_proxies(connect: Connect, database: Database, ship: Any, function: Any) -> None:
    """A `wrapt` proxy is taken for the connection that it wraps, and called by its own methods."""
    called: list[str] = []

    class Traced(wrapt.ObjectProxy):  # type: ignore[misc]
        def cursor(self) -> Any:
            called.append("cursor")
            return wrapt.ObjectProxy(self.__wrapped__.cursor())

        def run(self, *args: Any, **kwargs: Any) -> Any:
            called.append("run")
            return self.__wrapped__.run(*args, **kwargs)

    conn = Traced(connect(function))
    external = extconn.external(conn, outside_transaction="allow")
    job_id = ship.configure(connection=external).defer()
    if hasattr(conn, "commit"):
        conn.commit()
    assert database.sees(job_id)
    assert called == ["cursor" if hasattr(conn, "commit") else "run"]


def test_wrong_objects(connect: Connect, ship: Any) -> None:
    """A cursor or a prepared statement is refused, with the connection that it has."""
    cursor = connect(pg8000.dbapi.connect).cursor()
    with pytest.raises(extconn.UnsupportedConnection, match=r"`cursor\.connection`"):
        ship.configure(connection=cursor).defer()
    statement = connect(pg8000.native.Connection).prepare("SELECT 1")
    with pytest.raises(extconn.UnsupportedConnection, match=r"`statement\.con`"):
        ship.configure(connection=statement).defer()


def test_sqlstate(connect: Connect, ship: Any) -> None:
    """The server's fields, which pg8000 gives as a dict, are read."""
    conn = connect(pg8000.dbapi.connect)
    conn.cursor().execute("SET LOCAL search_path = pg_catalog")
    with pytest.raises(ConnectorException, match="SQLSTATE 42P01") as caught:
        ship.configure(connection=conn).defer(secret="correct horse")
    assert "correct horse" not in str(caught.value)
    assert extconn.describe(conn).state == "failed"


@pytest.mark.parametrize(
    "function", [pg8000.connect, pg8000.dbapi.connect, pg8000.native.Connection]
)
def test_install_line(connect: Connect, function: Any) -> None:
    """Without the plugin, each kind of connection gets the line that installs it."""
    refusal = Fallback(lambda: ["psycopg"]).refusal(connect(function))
    assert install_line("pg8000") in str(refusal)


@pytest.mark.parametrize("function", [pg8000.dbapi.connect, pg8000.native.Connection])
def test_date_style(connect: Connect, ship: Any, function: Any) -> None:
    """pg8000 guesses at a DateStyle other than ISO: a job is deferred, and what has instants is refused."""
    conn = connect(function)
    execute = conn.run if function is pg8000.native.Connection else conn.cursor().execute
    execute("SET DateStyle = 'SQL, DMY'")
    external = extconn.external(conn, outside_transaction="allow")
    at = datetime(2031, 2, 3, tzinfo=timezone.utc)
    job_id = ship.configure(connection=external, schedule_at=at).defer()
    manager = JobManager(ExternalConnector(external))
    with pytest.raises(extconn.ExternalConnectionError, match="run `SET DateStyle = 'ISO'` first"):
        manager.list_jobs()
    assert manager.get_job_status(job_id).value == "todo"
    execute("SET DateStyle = 'ISO'")
    assert [job.scheduled_at for job in manager.list_jobs() if job.id == job_id] == [at]


@pytest.mark.parametrize("lock", ["null", "NULL", 'a\\"b', " ", "it's {a,b}\r\n", ""])
def test_locks_in_an_array(connect: Connect, ship: Any, lock: str) -> None:
    """A lock is a text in an array too, even where pg8000 would send NULL."""
    conn = connect(pg8000.dbapi.connect)
    external = extconn.external(conn, on_conflict="existing")
    first = ship.configure(connection=external, queueing_lock=lock).defer()
    assert ship.configure(connection=external, queueing_lock=lock).defer() == first


def test_null_as_a_lock_under_sqlalchemy(dsn: str, ship: Any) -> None:
    """The job that waits under the lock ``null`` is found where pg8000 is SQLAlchemy's driver too."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    url = sqlalchemy.make_url(dsn).set(drivername="postgresql+pg8000")
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as conn:
        external = extconn.external(conn, on_conflict="existing")
        first = ship.configure(connection=external, queueing_lock="null").defer()
        assert ship.configure(connection=external, queueing_lock="null").defer() == first
