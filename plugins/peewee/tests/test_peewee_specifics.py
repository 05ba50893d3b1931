"""What only Peewee has: one object for all threads or tasks, proxies, query hooks, sync and async databases."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import peewee
import pytest
from playhouse.pool import PooledPostgresqlDatabase
from playhouse.postgres_ext import PostgresqlExtDatabase
from playhouse.pwasyncio import AsyncPostgresqlDatabase, AsyncSqliteDatabase
from procrastinate.exceptions import AlreadyEnqueued
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.fallback import Fallback
from procrastinate_extconn.known_plugins import install_line
from procrastinate_extconn.testing.contract.database import Database


@pytest.fixture(params=["psycopg2", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    """Name each of the drivers that Peewee runs on."""
    name: str = request.param
    return name


@pytest.fixture
def db(driver: str, dsn: str) -> Iterator[Any]:
    """Make a database."""
    db = peewee.PostgresqlDatabase(dsn, prefer_psycopg3=driver == "psycopg")
    yield db
    if not db.is_closed():
        db.close()


@pytest.fixture
async def async_db(dsn: str) -> AsyncIterator[Any]:
    """Make an asynchronous database."""
    address = urlsplit(dsn)
    db = AsyncPostgresqlDatabase(
        address.path.strip("/"),
        host=address.hostname,
        port=address.port,
        user=address.username,
        password=address.password,
    )
    yield db
    await db.close_pool()


def place(db: Any, ship: Any, order: int) -> None:
    """Insert a row and a job; fail for the second order."""
    db.execute_sql("INSERT INTO orders VALUES (%s)", (order,))
    ship.configure(connection=db).defer(order=order)
    assert order != 2


def test_atomic(db: Any, database: Database, ship: Any) -> None:
    """An atomic block decides about row and job alike, and so does a block inside it."""
    with db.atomic():
        place(db, ship, 1)
        with pytest.raises(AssertionError), db.atomic():
            place(db, ship, 2)
        with db.atomic():
            place(db, ship, 3)
    assert [json.loads(job["args"])["order"] for job in database.jobs()] == [1, 3]


def test_taken_lock_in_nested_block(db: Any, database: Database, ship: Any) -> None:
    """A taken lock costs the inner block alone."""
    with db.atomic():
        ship.configure(connection=db, queueing_lock="bay").defer()
        with pytest.raises(AlreadyEnqueued), db.atomic():
            ship.configure(connection=db, queueing_lock="bay").defer()
        ship.configure(connection=db).defer()
    assert len(database.jobs()) == 2


def test_states(db: Any, driver: str, ship: Any) -> None:
    """A database that is not connected yet would commit each statement by itself, unless it may not connect."""
    assert extconn.describe(db)[:4] == (driver, "peewee", False, "autocommit")
    assert db.is_closed()
    db.autoconnect = False
    assert extconn.describe(db).state == "closed"
    with db.connection_context(), db.atomic():
        assert extconn.describe(db).state == "in_transaction"


def test_another_thread(db: Any, ship: Any) -> None:
    """Another thread has another connection, which is in no transaction."""
    states: list[str] = []
    with db.atomic():
        thread = threading.Thread(target=lambda: states.append(extconn.describe(db).state))
        thread.start()
        thread.join()
    assert states == ["autocommit"]


def test_override(dsn: str, driver: str, ship: Any) -> None:
    """Our statement runs through the database: what a person overrides sees it."""
    seen: list[str] = []

    class LoudDatabase(peewee.PostgresqlDatabase):  # type: ignore[misc]
        def execute_sql(self, sql: str, params: Any = None) -> Any:
            seen.append(sql)
            return super().execute_sql(sql, params)

    db = LoudDatabase(dsn, prefer_psycopg3=driver == "psycopg")
    with db.connection_context(), db.atomic():
        ship.configure(connection=db).defer()
    assert len(seen) == 1
    assert "procrastinate_defer_jobs" in seen[0]


@pytest.mark.parametrize("cls", [PooledPostgresqlDatabase, PostgresqlExtDatabase])
def test_derived_databases(dsn: str, driver: str, database: Database, ship: Any, cls: Any) -> None:
    """What Peewee derives from its database is taken, with server-side cursors too."""
    options = {"server_side_cursors": True} if cls is PostgresqlExtDatabase else {}
    db = cls(dsn, prefer_psycopg3=driver == "psycopg", **options)
    with db.connection_context(), db.atomic():
        job_id = ship.configure(connection=db).defer()
        [job] = JobManager(ExternalConnector(db)).list_jobs()
    if cls is PooledPostgresqlDatabase:
        db.close_all()
    assert job.id == job_id
    assert len(database.jobs()) == 1


def test_proxy(db: Any, driver: str, database: Database, ship: Any) -> None:
    """A proxy stands for its database, and is refused before it has one."""
    proxy = peewee.DatabaseProxy()
    with pytest.raises(extconn.UnusableConnection, match="not open yet"):
        ship.configure(connection=proxy).defer()
    proxy.initialize(db)
    with proxy.atomic():
        assert extconn.describe(proxy)[:4] == (driver, "peewee", False, "in_transaction")
        ship.configure(connection=proxy).defer()
    assert len(database.jobs()) == 1


def test_install_line(db: Any) -> None:
    """Without the plugin, a database and a proxy for one get the line that installs it."""
    for conn in (db, peewee.DatabaseProxy()):
        refusal = Fallback(lambda: ["psycopg"]).refusal(conn)
        assert f"`{install_line('peewee')}`" in str(refusal)


def test_refusals(db: Any, ship: Any) -> None:
    """What ``atomic()`` gives, and SQLite, are refused."""
    for block in (db.atomic(), db.transaction()):
        with (
            block as transaction,
            pytest.raises(extconn.UnsupportedConnection, match=r"`transaction\.db`"),
        ):
            ship.configure(connection=transaction or block).defer()
    with pytest.raises(extconn.UnsupportedConnection, match="connections to sqlite"):
        ship.configure(connection=peewee.SqliteDatabase(":memory:")).defer()


async def test_async_atomic(async_db: Any, database: Database, ship: Any) -> None:
    """On an asynchronous database, an atomic block decides about row and job alike."""

    async def place(order: int) -> None:
        async with async_db.atomic():
            await async_db.aexecute_sql("INSERT INTO orders VALUES (%s)", (order,))
            await ship.configure(connection=async_db).defer_async(order=order, text="%s $1")
            assert order != 2

    await place(1)
    with pytest.raises(AssertionError):
        await place(2)
    assert [json.loads(job["args"]) for job in database.jobs()] == [{"order": 1, "text": "%s $1"}]


async def test_async_taken_lock(async_db: Any, database: Database, ship: Any) -> None:
    """On an asynchronous database, a savepoint keeps the transaction, and the manager works."""
    async with async_db.atomic():
        locked = {"queueing_lock": "a (bay)"}
        job_id = await ship.configure(connection=async_db, **locked).defer_async()
        kept = extconn.external(async_db, savepoint=True)
        with pytest.raises(AlreadyEnqueued, match=r"a \(bay\)"):
            await ship.configure(connection=kept, **locked).defer_async()
        existing = extconn.external(async_db, on_conflict="existing")
        assert await ship.configure(connection=existing, **locked).defer_async() == job_id
        [job] = await JobManager(ExternalConnector(async_db)).list_jobs_async()
    assert (job.id, job.queueing_lock) == (job_id, "a (bay)")
    assert len(database.jobs()) == 1


async def test_async_states(async_db: Any, database: Database, ship: Any) -> None:
    """Each task has a connection of its own, and only where a block is open it is in a transaction."""
    assert extconn.describe(async_db)[:4] == ("asyncpg", "peewee", True, "autocommit")
    async with async_db.atomic():
        assert extconn.describe(async_db).state == "in_transaction"

        async def elsewhere() -> str:
            return extconn.describe(async_db).state

        assert await asyncio.create_task(elsewhere()) == "autocommit"


async def test_async_commit_as_sql(async_db: Any, database: Database, ship: Any) -> None:
    """After a COMMIT that was sent as SQL, a block is no transaction any more, and a job is refused."""
    async with async_db.atomic():
        await async_db.aexecute_sql("COMMIT")
        assert extconn.describe(async_db).state == "autocommit"
        external = extconn.external(async_db, outside_transaction="error")
        with pytest.raises(extconn.OutsideTransaction):
            await ship.configure(connection=external).defer_async()
    assert not database.jobs()


async def test_async_lost_connection(async_db: Any, database: Database, ship: Any) -> None:
    """No job lands outside the transaction where Peewee would connect anew."""
    with pytest.raises(peewee.PeeweeException):
        await lose_connection(async_db, database, ship)
    assert not database.jobs()


async def lose_connection(async_db: Any, database: Database, ship: Any) -> None:
    """Defer on a connection that the server has ended."""
    async with async_db.atomic():
        held = await async_db.aconnect()
        lost = asyncio.Event()
        held.conn.add_termination_listener(lambda _: lost.set())
        database.value("SELECT pg_terminate_backend(%s)", held.conn.get_server_pid())
        await lost.wait()
        with pytest.raises(extconn.UnusableConnection, match="is closed"):
            await ship.configure(connection=async_db).defer_async()


def test_async_in_a_sync_call(dsn: str, ship: Any) -> None:
    """An asynchronous database in a synchronous call is refused, and asynchronous SQLite is no PostgreSQL."""
    with pytest.raises(extconn.SyncAsyncMismatch, match="defer_async"):
        ship.configure(connection=AsyncPostgresqlDatabase(dsn)).defer()
    with pytest.raises(extconn.UnsupportedConnection, match="not bound to PostgreSQL"):
        ship.configure(connection=AsyncSqliteDatabase(":memory:")).defer()
