"""`relay` on each connector, what it needs, and what wakes it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from outbox_rows import JOB, left, write
from procrastinate.contrib.sqlalchemy import SQLAlchemyPsycopg2Connector
from procrastinate.exceptions import ConnectorException
from procrastinate.testing import InMemoryConnector
from procrastinate_extconn_outbox import Outbox, relay, relay_async, waking
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

import procrastinate_extconn as extconn


def test_an_app_that_is_open_stays_open(sqlite: Engine, dsn: str) -> None:
    """The app is closed in the end if the relay has opened it, and only then."""
    connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=1)
    app = procrastinate.App(connector=connector)
    relay(sqlite, app, wait=False)
    assert connector._async_pool is None
    with app.open():
        relay(sqlite, app, wait=False)
        assert app.check_connection()
    asyncio.run(stay_open(sqlite, app))


async def stay_open(engine: Engine, app: procrastinate.App) -> None:
    """Relay on an app that is open."""
    async with app.open_async():
        await relay_async(engine, app, wait=False)
        assert await app.check_connection_async()


@contextlib.asynccontextmanager
async def on_asyncpg_pool(dsn: str) -> AsyncIterator[Any]:
    """The connector on a pool of asyncpg's."""
    asyncpg = pytest.importorskip("asyncpg")
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        yield extconn.PoolConnector(pool)


@contextlib.asynccontextmanager
async def on_sync_psycopg(dsn: str) -> AsyncIterator[Any]:
    """Procrastinate's synchronous connector."""
    yield procrastinate.SyncPsycopgConnector(conninfo=dsn, min_size=1)


@contextlib.asynccontextmanager
async def on_sqlalchemy(dsn: str) -> AsyncIterator[Any]:
    """Procrastinate's connector on SQLAlchemy."""
    yield SQLAlchemyPsycopg2Connector(dsn=dsn)


@contextlib.asynccontextmanager
async def on_engine(dsn: str) -> AsyncIterator[Any]:
    """The connector on an async engine."""
    engine = create_async_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
    yield extconn.PoolConnector(engine)
    await engine.dispose()


@pytest.mark.parametrize("connector", [on_asyncpg_pool, on_sync_psycopg, on_sqlalchemy, on_engine])
async def test_connectors(
    sqlite: Engine, dsn: str, connector: Any, jobs: Callable[..., list[Any]]
) -> None:
    """The relay works on an app with any connector that has a pool or an engine."""
    write(sqlite, [JOB], [{**JOB, "priority": "high"}], [{**JOB, "queueing_lock": "l"}])
    async with connector(dsn) as one:
        await relay_async(sqlite, procrastinate.App(connector=one), wait=False)
    assert jobs("queueing_lock") == [None, "l"]


def test_a_queue_in_memory_is_refused(sqlite: Engine) -> None:
    """An app whose jobs are in memory cannot take rows."""
    app = procrastinate.App(connector=InMemoryConnector())
    with pytest.raises(extconn.ExternalConnectionError, match="InMemoryConnector"):
        relay(sqlite, app, wait=False)


# -- what is missing --------------------------------------------------------------------------------------------------


def test_no_outbox(sqlite: Engine, app: procrastinate.App) -> None:
    """A database without the table is refused with the command that prints it."""
    with pytest.raises(extconn.ExternalConnectionError, match=r"no table other .*tables --dialect"):
        relay(sqlite, app, table="other", wait=False)


def test_no_inbox_and_no_right_to_create_it(sqlite: Engine, dsn: str) -> None:
    """A role that may not create the inbox is told the command that prints it."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS procrastinate_outbox_inbox")
        conn.execute("CREATE ROLE relay_only LOGIN PASSWORD 'relay_only'")
        try:
            conninfo = psycopg.conninfo.make_conninfo(dsn, user="relay_only", password="relay_only")
            connector = procrastinate.PsycopgConnector(conninfo=conninfo, min_size=1)
            app = procrastinate.App(connector=connector)
            with pytest.raises(extconn.ExternalConnectionError, match=r"outbox tables --inbox"):
                relay(sqlite, app, wait=False)
        finally:
            conn.execute("DROP ROLE relay_only")


async def test_many_relays_create_the_inbox(sqlite: Engine, dsn: str) -> None:
    """Relays that start at the same time, in a queue without an inbox, all find one."""
    for _ in range(3):
        with psycopg.connect(dsn) as conn:
            conn.execute("DROP TABLE IF EXISTS procrastinate_outbox_inbox")
        connectors = [procrastinate.PsycopgConnector(conninfo=dsn, min_size=1) for _ in range(8)]
        apps = [procrastinate.App(connector=one) for one in connectors]
        async with contextlib.AsyncExitStack() as stack:
            for app in apps:
                await stack.enter_async_context(app.open_async())
            await asyncio.gather(*(relay_async(sqlite, app, wait=False) for app in apps))


def test_no_queue(sqlite: Engine, app: procrastinate.App, dsn: str) -> None:
    """An error that concerns every row ends the relay, and sets no row aside."""
    ids = write(sqlite, [JOB])
    with psycopg.connect(dsn) as conn:
        conn.execute("ALTER TABLE procrastinate_jobs RENAME TO elsewhere")
    with pytest.raises(ConnectorException, match="42P01"):
        relay(sqlite, app, wait=False)
    assert left(sqlite) == {ids[0]: None}
    with psycopg.connect(dsn) as conn:
        conn.execute("ALTER TABLE elsewhere RENAME TO procrastinate_jobs")


# -- waking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["url", "psycopg-sync", "asyncpg"])
async def test_notified(
    postgresql_url: URL,
    app: procrastinate.App,
    dsn: str,
    driver: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row in a PostgreSQL outbox is forwarded at once, by a relay that would not look again for an hour."""
    monkeypatch.setattr(waking, "POLL", 3600)
    monkeypatch.setattr(waking, "_POLL_LISTENING", 3600)
    engine = create_engine(postgresql_url)
    sources: dict[str, Callable[[], Any]] = {
        "url": lambda: postgresql_url,
        "psycopg-sync": lambda: engine,
        "asyncpg": lambda: create_async_engine(postgresql_url.set(drivername="postgresql+asyncpg")),
    }
    source = sources[driver]()
    task = asyncio.create_task(relay_async(source, app))
    seen = "SELECT count(*) FROM procrastinate_jobs"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        for number in (1, 2):
            with extconn_patched(app), engine.begin() as rows:
                app.configure_task("ship", connection=Outbox(rows)).defer()
            while (await (await conn.execute(seen)).fetchone()) != (number,):
                assert not task.done(), task
                await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if driver == "asyncpg":
        await source.dispose()
    engine.dispose()


@contextlib.contextmanager
def extconn_patched(app: procrastinate.App) -> Iterator[None]:
    """Let the app take any connection."""
    extconn.patch(app)
    yield
    extconn.unpatch(app)
