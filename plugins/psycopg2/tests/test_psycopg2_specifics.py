"""What only psycopg2 has: cursor factories, casters, named cursors, pools, and an asynchronous mode."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from decimal import Decimal
from functools import partial
from typing import Any

import procrastinate
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import psycopg2.pool
import pytest
import wrapt
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.plugins import plugins
from procrastinate_extconn.testing.contract.database import Database


@pytest.fixture
def conn(dsn: str) -> Iterator[Any]:
    """Connect."""
    with closing(psycopg2.connect(dsn)) as conn:
        yield conn


@contextmanager
def closing_all(pool: Any) -> Iterator[Any]:
    """Close a pool in the end."""
    yield pool
    pool.closeall()


class LoudCursor(psycopg2.extensions.cursor):  # type: ignore[misc]
    """A factory of the person's own, such as tracing libraries set."""

    statements: list[str]

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002
        """Note what is executed."""
        type(self).statements.append(query)
        super().execute(query, vars)


@pytest.mark.parametrize(
    "factory",
    [
        psycopg2.extras.RealDictCursor,
        psycopg2.extras.DictCursor,
        psycopg2.extras.NamedTupleCursor,
    ],
)
def test_cursor_factory(conn: Any, ship: Any, factory: Any) -> None:
    """Rows are plain dicts, with every cursor factory of the connection."""
    conn.cursor_factory = factory
    job_id = ship.configure(connection=conn).defer(order=7)
    rows = ExternalConnector(conn).execute_query_all("SELECT 1 AS one, 'x' AS two")

    [job] = JobManager(ExternalConnector(conn)).list_jobs()
    assert (job.id, job.task_kwargs) == (job_id, {"order": 7})
    assert [(type(row), row) for row in rows] == [(dict, {"one": 1, "two": "x"})]
    assert conn.cursor_factory is factory


def test_own_cursor_factory(conn: Any, ship: Any) -> None:
    """Our statement runs through the connection's own cursor factory."""
    LoudCursor.statements = []
    conn.cursor_factory = LoudCursor
    ship.configure(connection=conn).defer()
    assert len(LoudCursor.statements) == 1
    assert "procrastinate_defer_jobs" in LoudCursor.statements[0]


def test_casters(conn: Any, ship: Any) -> None:
    """What a person's casters make of a value neither reaches us nor is changed by us."""
    text = psycopg2.extensions.new_type((20, 25, 1184), "LOUD", lambda value, cursor: f"<{value}>")
    psycopg2.extensions.register_type(text, conn)
    loads = partial(json.loads, parse_float=Decimal)
    psycopg2.extras.register_default_jsonb(conn, loads=loads)
    job_id = ship.configure(connection=conn, lock="bay").defer(weight=0.1)

    connector = ExternalConnector(conn, json_loads=json.loads)
    [job] = JobManager(connector).list_jobs()
    assert (job.id, job.lock, job.task_kwargs) == (job_id, "bay", {"weight": 0.1})
    with conn.cursor() as cursor:
        cursor.execute("SELECT id, args FROM procrastinate_jobs")
        assert cursor.fetchall() == [(f"<{job_id}>", {"weight": Decimal("0.1")})]


def test_commit_as_sql(conn: Any, database: Database, ship: Any) -> None:
    """After a COMMIT that was sent as SQL, a job is refused, and the line of the refusal helps."""
    with conn.cursor() as cursor:
        cursor.execute("COMMIT")
    external = extconn.external(conn, outside_transaction="error")
    with pytest.raises(extconn.OutsideTransaction, match=r"open one with `conn\.rollback\(\)`"):
        ship.configure(connection=external).defer()
    conn.rollback()
    ship.configure(connection=external).defer()
    conn.rollback()
    assert not database.jobs()


def test_client_encoding_as_sql(conn: Any, ship: Any) -> None:
    """An encoding that was set with SQL is refused, and one that was set by psycopg2's own means is not."""
    with conn.cursor() as cursor:
        cursor.execute("SET client_encoding = 'LATIN1'")
    with pytest.raises(extconn.ExternalConnectionError, match="set to LATIN1 with SQL"):
        ship.configure(connection=conn, lock="é").defer()
    conn.rollback()
    conn.set_client_encoding("EUC_JP")
    ship.configure(connection=conn, lock="日本").defer()
    [job] = JobManager(ExternalConnector(conn)).list_jobs()
    assert job.lock == "日本"


def test_named_cursor_goes_on(conn: Any, ship: Any) -> None:
    """A server-side cursor that is half read stays where it is."""
    with conn.cursor("half") as cursor:
        cursor.itersize = 1
        cursor.execute("SELECT generate_series(1, 3)")
        read = []
        for (number,) in cursor:
            ship.configure(connection=conn).defer(number=number)
            read.append(number)
    assert read == [1, 2, 3]


def test_with_block(conn: Any, database: Database, ship: Any) -> None:
    """``with conn:`` decides about row and job alike."""

    def place(order: int) -> None:
        with conn, conn.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s)", [order])
            ship.configure(connection=conn).defer(order=order)
            assert order != 2

    place(1)
    with pytest.raises(AssertionError):
        place(2)
    assert [json.loads(job["args"]) for job in database.jobs()] == [{"order": 1}]


def test_proxy(conn: Any, ship: Any) -> None:
    """A tracing library's proxy is a connection, and described as one."""
    proxy = wrapt.ObjectProxy(conn)
    job_id = ship.configure(connection=proxy).defer()
    [job] = JobManager(ExternalConnector(proxy)).list_jobs()
    assert job.id == job_id
    assert extconn.describe(proxy)[:4] == ("psycopg2", "psycopg2", False, "in_transaction")


def test_proxied_cursor(dsn: str, ship: Any) -> None:
    """So it is where its cursors are proxies, too."""

    class Connection(psycopg2.extensions.connection):  # type: ignore[misc]
        def cursor(self, *args: Any, **kwargs: Any) -> Any:
            return wrapt.ObjectProxy(super().cursor(*args, **kwargs))

    with closing(psycopg2.connect(dsn, connection_factory=Connection)) as conn:
        job_id = ship.configure(connection=conn).defer(order=7)
        [job] = JobManager(ExternalConnector(conn)).list_jobs()
    assert (job.id, job.task_kwargs) == (job_id, {"order": 7})


def test_autocommit(conn: Any, database: Database, ship: Any) -> None:
    """With autocommit on, a transaction is one that a BEGIN has opened."""
    conn.autocommit = True
    external = extconn.external(conn, outside_transaction="error")
    with pytest.raises(extconn.OutsideTransaction, match=r"`conn\.autocommit = False`"):
        ship.configure(connection=external).defer()
    with pytest.warns(match="commits each statement by itself"):
        ship.configure(connection=conn).defer()
    assert len(database.jobs()) == 1

    with conn.cursor() as cursor:
        cursor.execute("BEGIN")
        ship.configure(connection=external).defer()
        cursor.execute("ROLLBACK")
    assert len(database.jobs()) == 1


def test_asynchronous_mode(dsn: str, ship: Any) -> None:
    """A connection whose results nobody waits for is refused."""
    with (
        closing(psycopg2.connect(dsn, async_=True)) as conn,
        pytest.raises(extconn.UnsupportedConnection, match=r"asynchronous mode.*aiopg"),
    ):
        ship.configure(connection=conn).defer()


def test_refusals(dsn: str, conn: Any, ship: Any) -> None:
    """A pool and a cursor are refused, with the line that gets a connection."""
    with (
        closing(conn.cursor()) as cursor,
        pytest.raises(extconn.UnsupportedConnection, match=r"`cursor\.connection`"),
    ):
        ship.configure(connection=cursor).defer()
    with (
        closing_all(psycopg2.pool.ThreadedConnectionPool(0, 1, dsn)) as pool,
        pytest.raises(extconn.UnsupportedConnection, match=r"`conn = pool\.getconn\(\)`"),
    ):
        ship.configure(connection=pool).defer()


@pytest.mark.parametrize(
    "cls", [psycopg2.pool.SimpleConnectionPool, psycopg2.pool.ThreadedConnectionPool]
)
def test_pool_connector(dsn: str, database: Database, cls: Any) -> None:
    """An app on a pool of one connection takes it, commits, and gives it back, after an error as well."""
    with closing_all(cls(0, 1, dsn)) as pool:
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        app.configure_task("ship", queueing_lock="bay").defer(order=1)
        with pytest.raises(procrastinate.exceptions.AlreadyEnqueued):
            app.configure_task("ship", queueing_lock="bay").defer(order=2)
        app.configure_task("ship").defer(order=3)
    assert [json.loads(job["args"])["order"] for job in database.jobs()] == [1, 3]


def test_pool_connector_on_autocommit(dsn: str, database: Database) -> None:
    """On connections with autocommit on, each call has a transaction, and leaves them as they are."""
    with closing_all(psycopg2.pool.SimpleConnectionPool(1, 1, dsn)) as pool:
        conn = pool.getconn()
        conn.autocommit = True
        pool.putconn(conn)
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        app.configure_task("ship").defer(order=1)
        assert pool.getconn().autocommit
    assert len(database.jobs()) == 1


def test_pool_connector_on_a_lost_connection(dsn: str, database: Database) -> None:
    """A lost connection is told of as such, and the pool makes another one."""
    with closing_all(psycopg2.pool.SimpleConnectionPool(1, 1, dsn)) as pool:
        conn = pool.getconn()
        pool.putconn(conn)
        database.value("SELECT pg_terminate_backend(%s, 5000)", conn.info.backend_pid)
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        with pytest.raises(extconn.UnusableConnection, match="connection is gone"):
            app.configure_task("ship").defer(order=1)
        app.configure_task("ship").defer(order=2)
    assert len(database.jobs()) == 1


def test_pool_connector_keeps_its_places(dsn: str, database: Database) -> None:
    """A connection that dies while it is lent gives its place in the pool back."""
    with closing_all(psycopg2.pool.ThreadedConnectionPool(1, 1, dsn)) as pool:
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        for _ in range(2):
            with suppress(ZeroDivisionError), plugins().connect(pool) as conn:
                with conn.cursor() as cursor:
                    cursor.execute("SELECT 1")
                database.value("SELECT pg_terminate_backend(%s, 5000)", conn.info.backend_pid)
                raise ZeroDivisionError
        app.configure_task("ship").defer(order=1)
    assert len(database.jobs()) == 1


def test_pool_connector_waits_for_a_connection(dsn: str, database: Database) -> None:
    """Where others have all connections, a call waits for one, as with other drivers' pools."""
    with closing_all(psycopg2.pool.ThreadedConnectionPool(1, 1, dsn)) as pool:
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        refused = threading.Event()
        taken = pool.getconn()
        getconn = pool.getconn

        def noticed() -> Any:
            try:
                return getconn()
            except psycopg2.pool.PoolError:
                refused.set()
                raise

        pool.getconn = noticed
        with ThreadPoolExecutor(1) as executor:
            deferred = executor.submit(app.configure_task("ship").defer, order=1)
            assert refused.wait(10)
            pool.putconn(taken)
            deferred.result(timeout=30)
    assert len(database.jobs()) == 1


def test_what_a_process_registers_is_not_ours(dsn: str) -> None:
    """Adapters that a person registers for the whole process do not change what is stored."""
    program = """
        import psycopg2, psycopg2.extensions, psycopg2.extras, procrastinate
        import procrastinate_extconn as extconn

        shout = lambda value: psycopg2.extensions.AsIs(f"'!{value}'")
        for cls in (str, int, bool, float):
            psycopg2.extensions.register_adapter(cls, shout)
        for cls in (dict, list):
            psycopg2.extensions.register_adapter(cls, psycopg2.extras.Json)
        with psycopg2.connect(DSN) as conn:
            app = procrastinate.App(connector=extconn.ExternalConnector(conn))
            app.configure_task("ship", lock="bay").defer(n=[1])
            job, = app.job_manager.list_jobs(task="ship")
            app.job_manager.cancel_job_by_id(job.id)
            print(job.lock, job.task_kwargs, app.job_manager.get_job_status(job.id).value)
    """
    ran = subprocess.run(
        [sys.executable, "-c", f"DSN = {dsn!r}\n{textwrap.dedent(program)}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "bay {'n': [1]} cancelled\n", ran.stderr
