"""`relay`: rows become jobs, in each database and on each connector."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.contrib.sqlalchemy import SQLAlchemyPsycopg2Connector
from procrastinate.exceptions import ConnectorException
from procrastinate.testing import InMemoryConnector
from procrastinate_extconn_outbox import Outbox, Tables, relay, relay_async, waking
from procrastinate_extconn_outbox.payload import new_id
from sqlalchemy import URL, Engine, create_engine, insert, select, update
from sqlalchemy.ext.asyncio import create_async_engine

import procrastinate_extconn as extconn

JOB = {"queue_name": "q", "task_name": "ship", "priority": 0, "args": {}}


@pytest.fixture
def app(dsn: str) -> procrastinate.App:
    """Make an app that is not open."""
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))


@pytest.fixture
def engine(rows_url: URL) -> Any:
    """Make an engine for the rows."""
    engine = create_engine(rows_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite(sqlite_url: URL) -> Any:
    """Make an engine for rows in SQLite."""
    engine = create_engine(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def jobs(dsn: str) -> Callable[..., list[Any]]:
    """Read the jobs."""

    def jobs(column: str = "args") -> list[Any]:
        with psycopg.connect(dsn) as conn:
            rows = conn.execute(f"SELECT {column} FROM procrastinate_jobs ORDER BY id".encode())
            return [row if len(row) > 1 else row[0] for row in rows.fetchall()]

    return jobs


def write(engine: Engine, *rows: object) -> list[str]:
    """Write rows as they are, and return their ids."""
    ids = [new_id() for _ in rows]
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    with engine.begin() as conn:
        values = [{"id": row_id, "jobs": text} for row_id, text in zip(ids, texts, strict=True)]
        conn.execute(insert(Tables().outbox), values)
    return ids


def aside(engine: Engine) -> dict[str, str | None]:
    """Read what is left in the outbox."""
    columns = Tables().outbox.c
    with engine.begin() as conn:
        return {
            row.id: row.set_aside for row in conn.execute(select(columns.id, columns.set_aside))
        }


@pytest.mark.usefixtures("installed_strictly")
def test_a_job_arrives_as_it_was_deferred(
    engine: Engine, app: procrastinate.App, dsn: str, jobs: Callable[..., list[Any]]
) -> None:
    """Every attribute arrives, a relay is nobody who has forgotten a connection, and the outbox is empty."""

    @app.task(name="ship", queue="parcels")
    def ship(**task_kwargs: object) -> None: ...

    at = datetime.datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=datetime.timezone.utc)
    args = {"text": "%s :x é 😀 ' \" \\ \n", "large": 2**70, "deep": [{"a": None}, 0.1]}
    with engine.begin() as conn:
        task = ship.configure(
            connection=Outbox(conn), lock="l", queueing_lock="%(q)s", priority=-3, schedule_at=at
        )
        task.defer(**args)
        ship.configure(connection=Outbox(conn)).batch_defer({"n": 1}, {"n": 2})
    relay(engine, app, wait=False)
    columns = "task_name, queue_name, lock, queueing_lock, priority, scheduled_at, args"
    assert jobs(columns)[0] == ("ship", "parcels", "l", "%(q)s", -3, at, args)
    assert jobs()[1:] == [{"n": 1}, {"n": 2}]
    assert aside(engine) == {}


@pytest.fixture
def installed_strictly() -> Any:
    """Refuse every call that was given no connection."""
    extconn.install(outside_transaction="error", without_connection="error")
    yield
    extconn.uninstall()


def test_taken_lock(
    sqlite: Engine,
    app: procrastinate.App,
    jobs: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job whose queueing lock is taken, in the queue or by a row before it, waits already: the row is done."""
    caplog.set_level(logging.INFO)
    locked = {**JOB, "queueing_lock": "l"}
    write(sqlite, [locked])
    relay(sqlite, app, wait=False)
    other = {**JOB, "queueing_lock": "m"}
    write(sqlite, [{**locked, "args": {"n": 1}}, other], [{**other, "args": {"n": 2}}], [JOB])
    relay(sqlite, app, wait=False)
    assert jobs("queueing_lock") == ["l", "m", None]
    assert aside(sqlite) == {}
    said = [one for one in caplog.records if "waits already" in one.message]
    assert len(said) == 2


def test_lock_that_is_taken_meanwhile(
    sqlite: Engine,
    app: procrastinate.App,
    dsn: str,
    jobs: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where another transaction takes the lock after the relay has looked, the job is dropped once that commits."""
    caplog.set_level(logging.INFO)
    write(sqlite, [{**JOB, "queueing_lock": "l"}], [JOB])
    taken = "INSERT INTO procrastinate_jobs (task_name, queue_name, queueing_lock) VALUES ('t', 'q', 'l')"

    async def race() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute(taken)
            task = asyncio.create_task(relay_async(sqlite, app, wait=False))
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
                while not await (await other.execute(waits)).fetchone():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await conn.commit()
        await task

    asyncio.run(race())
    assert jobs("queueing_lock") == ["l", None]
    assert "waits already" in caplog.text


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("secret", "not a JSON array"),
        ("[", "not a JSON array"),
        ('{"task_name": "secret"}', "not a JSON array"),
        ('["secret"]', "not a JSON object"),
        ("[{}] []", "no task_name"),
        ([{**JOB, "lock_mode": "secret"}], r"does not know \(lock_mode\)"),
        ([{**JOB, "SECRET": "secret"}], r"does not know \(\)"),
        ([{**JOB, "priority": "secret"}], r"invalid input syntax .* \(SQLSTATE 22P02\)"),
        ([{**JOB, "queue_name": None}], "null value in column"),
        ([JOB, {**JOB, "args": {"a": "\0 secret"}}], "22P05"),
    ],
)
def test_set_aside(
    sqlite: Engine,
    app: procrastinate.App,
    jobs: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
    row: object,
    reason: str,
) -> None:
    """A row that cannot be forwarded is set aside with a reason that quotes nothing of it, and is in nobody's way."""
    ids = write(sqlite, [{**JOB, "args": {"n": 1}}], row, [{**JOB, "args": {"n": 2}}])
    relay(sqlite, app, wait=False)
    assert jobs() == [{"n": 1}, {"n": 2}]
    [(row_id, said)] = aside(sqlite).items()
    assert row_id == ids[1]
    assert said and re.search(reason, said)
    assert said in caplog.text
    assert "secret" not in caplog.text.lower() + said.lower()


def test_a_row_that_is_mended(
    sqlite: Engine, app: procrastinate.App, jobs: Callable[..., list[Any]]
) -> None:
    """A row that was set aside is forwarded once it is mended and waits again."""
    write(sqlite, [{**JOB, "priority": "high"}])
    relay(sqlite, app, wait=False)
    with sqlite.begin() as conn:
        mended = {"jobs": json.dumps([JOB]), "set_aside": None}
        conn.execute(update(Tables().outbox).values(mended))
    relay(sqlite, app, wait=False)
    assert len(jobs()) == 1
    assert aside(sqlite) == {}


def test_many_outboxes(
    sqlite: Engine,
    mariadb_url: URL,
    postgresql_url: URL,
    app: procrastinate.App,
    dsn: str,
    jobs: Callable[..., list[Any]],
) -> None:
    """Relays of several outboxes work on one queue at once, and leave nothing in its inbox."""
    others = [create_engine(mariadb_url), create_engine(postgresql_url)]
    for engine in (sqlite, *others):
        write(engine, *[[JOB]] * 450)

    async def all_of_them() -> None:
        async with app.open_async():
            await asyncio.gather(
                *(relay_async(engine, app, wait=False) for engine in (sqlite, *others))
            )

    asyncio.run(all_of_them())
    assert len(jobs()) == 3 * 450
    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT count(*) FROM procrastinate_outbox_inbox").fetchone() == (0,)
    for engine in others:
        engine.dispose()


# -- apps -------------------------------------------------------------------------------------------------------------


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
    assert aside(sqlite) == {ids[0]: None}
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
