"""What only aiopg has: autocommit until BEGIN, one statement at a time, cursors that are awaited, and pools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiopg
import procrastinate
import psycopg2.extras
import pytest
import wrapt
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.testing.contract.database import Database


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Any]:
    """Connect."""
    async with aiopg.connect(dsn) as conn:
        yield conn


async def test_begin_of_a_cursor(conn: Any, database: Database, ship: Any) -> None:
    """Inside ``cursor.begin()`` a job goes with the rows of the cursor, whose results stay."""

    async def place(order: int) -> list[Any]:
        async with conn.cursor() as cursor, cursor.begin():
            await cursor.execute("INSERT INTO orders VALUES (%s) RETURNING id", [order])
            await ship.configure(connection=conn).defer_async(order=order)
            assert order != 2
            return await cursor.fetchall()  # type: ignore[no-any-return]

    assert await place(1) == [(1,)]
    with pytest.raises(AssertionError):
        await place(2)
    assert [json.loads(job["args"]) for job in database.jobs()] == [{"order": 1}]


async def test_autocommit(conn: Any, database: Database, ship: Any) -> None:
    """Before BEGIN a job is refused where a transaction is demanded."""
    external = extconn.external(conn, outside_transaction="error")
    with pytest.raises(extconn.OutsideTransaction, match=r"cursor\.begin\(\)"):
        await ship.configure(connection=external).defer_async()
    with pytest.warns(match="commits each statement by itself"):
        await ship.configure(connection=conn).defer_async()
    assert len(database.jobs()) == 1


@pytest.mark.parametrize(
    "factory", [psycopg2.extras.RealDictCursor, psycopg2.extras.NamedTupleCursor]
)
async def test_cursor_factory(dsn: str, ship: Any, factory: Any) -> None:
    """Rows are plain dicts, with every cursor class of the connection."""
    async with (
        aiopg.connect(dsn, cursor_factory=factory) as conn,
        conn.cursor() as cursor,
        cursor.begin(),
    ):
        job_id = await ship.configure(connection=conn).defer_async(order=7)
        connector = ExternalConnector(conn)
        rows = await connector.execute_query_all_async("SELECT 1 AS one")
        [job] = await JobManager(connector).list_jobs_async()
    assert (job.id, job.task_kwargs) == (job_id, {"order": 7})
    assert [(type(row), row) for row in rows] == [(dict, {"one": 1})]


async def test_proxy(conn: Any, ship: Any) -> None:
    """A tracing library's proxy is a connection, and described as one."""
    proxy = wrapt.ObjectProxy(conn)
    async with conn.cursor() as cursor, cursor.begin():
        job_id = await ship.configure(connection=proxy).defer_async()
        assert extconn.describe(proxy)[:4] == ("aiopg", "aiopg", True, "in_transaction")
        [job] = await JobManager(ExternalConnector(proxy)).list_jobs_async()
    assert job.id == job_id


async def test_two_tasks(conn: Any, ship: Any) -> None:
    """Where aiopg refuses a second statement at the same time, the error says what to do."""
    async with conn.cursor() as cursor, cursor.begin():
        sleeping = asyncio.create_task(cursor.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0)
        with pytest.raises(ConnectorException, match="in use by another task"):
            await ship.configure(connection=conn).defer_async()
        await sleeping


async def test_a_statement_that_timed_out(dsn: str, conn: Any, ship: Any) -> None:
    """A statement that the server cancels is an error like others: nobody has cancelled the task."""
    async with aiopg.connect(dsn) as other, other.cursor() as theirs, theirs.begin():
        await theirs.execute("LOCK TABLE procrastinate_jobs")
        async with conn.cursor() as cursor:
            await cursor.execute("BEGIN; SET LOCAL statement_timeout = '100ms'")
            with pytest.raises(ConnectorException, match=r"statement timeout \(SQLSTATE 57014\)"):
                await ship.configure(connection=conn).defer_async()


async def test_refusals(dsn: str, conn: Any, ship: Any) -> None:
    """A pool and a cursor are refused, with the line that gets a connection."""
    async with conn.cursor() as cursor:
        with pytest.raises(extconn.UnsupportedConnection, match=r"`cursor\.connection`"):
            await ship.configure(connection=cursor).defer_async()
    async with aiopg.create_pool(dsn, minsize=0) as pool:
        with pytest.raises(extconn.UnsupportedConnection, match=r"`async with pool\.acquire\(\)"):
            await ship.configure(connection=pool).defer_async()


async def test_pool_connector(dsn: str, database: Database) -> None:
    """An app on a pool of one connection takes it, commits, and gives it back, after an error as well."""
    async with aiopg.create_pool(dsn, minsize=0, maxsize=1) as pool:
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        await app.configure_task("ship", queueing_lock="bay").defer_async(order=1)
        with pytest.raises(procrastinate.exceptions.AlreadyEnqueued):
            await app.configure_task("ship", queueing_lock="bay").defer_async(order=2)
        await app.configure_task("ship").defer_async(order=3)
    assert [json.loads(job["args"])["order"] for job in database.jobs()] == [1, 3]


async def test_pool_connector_on_a_lost_connection(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is lost under a call is told of as such, and the pool makes another one."""
    execute = aiopg.Cursor.execute

    async def lose(cursor: Any, query: str, *args: Any) -> None:
        if "procrastinate_defer_jobs" in query:
            pid = cursor.connection.raw.info.backend_pid
            database.value("SELECT pg_terminate_backend(%s, 5000)", pid)
        await execute(cursor, query, *args)

    async with aiopg.create_pool(dsn, minsize=1, maxsize=1) as pool:
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        with monkeypatch.context() as patched:
            patched.setattr(aiopg.Cursor, "execute", lose)
            with pytest.raises(extconn.UnusableConnection, match="connection is gone"):
                await app.configure_task("ship").defer_async(order=1)
        await app.configure_task("ship").defer_async(order=2)
    assert len(database.jobs()) == 1
