"""What only asyncpg has: codecs, record classes, a statement cache, pool proxies, and instrumentation of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import databases
import pytest
import wrapt
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Status
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.plugins import plugins
from procrastinate_extconn.testing.contract.database import Database

NASTY = {
    "text": 'it\'s \\ %s %(x)s :name $1 {} \n é 漢 "q"',
    "integer": 2**70 + 1,
    "float": 0.1,
    "nested": [None, {"a": []}],
}
LOCK = "it's a (lock) "


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Any]:
    """Connect."""
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def set_codecs(conn: Any, *types: str) -> None:
    """Set codecs that nobody can miss: JSON is decoded, text is turned round."""
    for name in types:
        if name == "text":
            await conn.set_type_codec(
                name,
                schema="pg_catalog",
                encoder=lambda text: text[::-1],
                decoder=lambda text: text[::-1],
            )
        else:
            await conn.set_type_codec(
                name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads
            )


@pytest.mark.parametrize("cache_size", [100, 0], ids=["cache", "no-cache"])
@pytest.mark.parametrize("types", [("json", "jsonb"), ("text",), ("json", "jsonb", "text")])
async def test_codecs(
    dsn: str, database: Database, ship: Any, types: tuple[str, ...], cache_size: int
) -> None:
    """What a person's codecs make of json, jsonb and text neither changes a job nor what is read of it."""
    conn = await asyncpg.connect(dsn, statement_cache_size=cache_size)
    await set_codecs(conn, *types)
    async with conn.transaction():
        on_conn = ship.configure(connection=conn, lock=LOCK, queueing_lock=f"{LOCK}2")
        job_id = await on_conn.defer_async(**NASTY)
        manager = JobManager(ExternalConnector(conn))
        found = await manager.list_jobs_async(
            id=job_id, status="todo", lock=LOCK, queueing_lock=f"{LOCK}2"
        )
    await conn.close()

    [stored] = database.jobs()
    assert json.loads(stored["args"]) == NASTY
    assert (stored["lock"], stored["queueing_lock"]) == (LOCK, f"{LOCK}2")
    [job] = found
    assert job.task_kwargs == NASTY
    assert (job.lock, job.queueing_lock, job.status) == (LOCK, f"{LOCK}2", "todo")


async def test_text_codec_and_every_other_query(conn: Any, database: Database, ship: Any) -> None:
    """A codec for text changes neither enums, nor arrays of them, nor the statements that have no rows."""
    await set_codecs(conn, "text")
    manager = JobManager(ExternalConnector(conn))
    async with conn.transaction():
        ids = [await ship.configure(connection=conn, lock=LOCK).defer_async() for _ in range(3)]
        await manager.finish_job_by_id_async(ids[0], Status.SUCCEEDED, delete_job=False)
        assert await manager.cancel_job_by_id_async(ids[1])
        statuses = [(await manager.get_job_status_async(job_id)).value for job_id in ids]
        assert await manager.check_connection_async()
        [lock] = await manager.list_locks_async()
    async with conn.transaction():
        await manager.delete_old_jobs(nb_hours=0)

    assert statuses == ["succeeded", "cancelled", "todo"]
    assert (lock["name"], lock["todo"], lock["succeeded"]) == (LOCK, 1, 1)
    assert [job["status"] for job in database.jobs()] == ["cancelled", "todo"]


async def test_existing_job_under_a_text_codec(conn: Any, ship: Any) -> None:
    """The lock of the job that waits is compared as it is stored."""
    await set_codecs(conn, "text")
    async with conn.transaction():
        first = await ship.configure(connection=conn, queueing_lock=LOCK).defer_async()
        external = extconn.external(conn, on_conflict="existing")
        assert await ship.configure(connection=external, queueing_lock=LOCK).defer_async() == first


class Row(asyncpg.Record):  # type: ignore[misc]
    """The record class of asyncpg's documentation."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def items(self) -> Any:
        """Show what a person may do."""
        raise AssertionError("asked a person's record class")

    keys = items


async def test_record_class(dsn: str, ship: Any) -> None:
    """Rows are plain dicts, also on a connection with a record class of its own."""
    conn = await asyncpg.connect(dsn, record_class=Row)
    async with conn.transaction():
        job_id = await ship.configure(connection=conn).defer_async()
        rows = await ExternalConnector(conn).execute_query_all_async("SELECT 1 AS one")
    await conn.close()
    assert isinstance(job_id, int)
    assert [(type(row), row) for row in rows] == [(dict, {"one": 1})]


async def test_own_fetch(dsn: str, ship: Any) -> None:
    """A connection class with a `fetch()` of its own, which takes fewer arguments, is asked all the same."""
    asked: list[str] = []

    class Mine(asyncpg.Connection):
        async def fetch(self, query: str, *args: Any) -> Any:
            asked.append(query)
            return await super().fetch(query, *args)

    conn = await asyncpg.connect(dsn, connection_class=Mine)
    async with conn.transaction():
        assert isinstance(await ship.configure(connection=conn).defer_async(), int)
    await conn.close()
    assert len(asked) == 1


async def test_one_statement(conn: Any, ship: Any) -> None:
    """The first job on a new connection is one statement: no type is looked up."""
    queries: list[str] = []
    async with conn.transaction():
        with conn.query_logger(lambda record: queries.append(record.query)):
            await ship.configure(connection=conn, lock=LOCK).defer_async(**NASTY)
            await asyncio.sleep(0)  # asyncpg calls its loggers with call_soon
    assert len(queries) == 1
    assert "procrastinate_defer_jobs" in queries[0]


@pytest.mark.parametrize(("cache_size", "prepared"), [(100, 1), (0, 0)], ids=["cache", "no-cache"])
async def test_prepared_statements(dsn: str, ship: Any, cache_size: int, prepared: int) -> None:
    """The person's setting decides whether the statement is kept prepared, once for all jobs."""
    conn = await asyncpg.connect(dsn, statement_cache_size=cache_size)
    async with conn.transaction():
        for n in range(5):
            await ship.configure(connection=conn).defer_async(n=n)
    kept = await conn.fetchval(
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%procrastinate_defer_jobs%'"
        " AND statement NOT LIKE '%pg_prepared_statements%'"
    )
    await conn.close()
    assert kept == prepared


async def test_states(dsn: str) -> None:
    """A connection commits each statement by itself, but in `transaction()`; at last it is closed."""
    conn = await asyncpg.connect(dsn)
    states = [extconn.describe(conn).state]
    async with conn.transaction():
        states.append(extconn.describe(conn).state)
    states.append(extconn.describe(conn).state)
    await conn.close()
    states.append(extconn.describe(conn).state)
    assert states == ["autocommit", "in_transaction", "autocommit", "closed"]


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """A person's subclass."""


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapt"])
@pytest.mark.parametrize("pooled", [False, True], ids=["connection", "pool"])
async def test_subclasses_and_proxies(
    dsn: str, database: Database, ship: Any, pooled: bool, wrapped: bool
) -> None:
    """A subclass, what a pool lends and a proxy of either are taken for the connection that they are."""
    pool = asyncpg.create_pool(dsn, min_size=1, max_size=1, connection_class=Connection)
    async with pool, pool.acquire() as lent:
        direct = await asyncpg.connect(dsn, connection_class=Connection)
        conn = lent if pooled else direct
        if wrapped:
            conn = wrapt.ObjectProxy(conn)
        transaction = conn.transaction()
        await transaction.start()
        assert extconn.describe(conn)[:4] == ("asyncpg", "asyncpg", True, "in_transaction")
        job_id = await ship.configure(connection=conn).defer_async()
        assert not database.sees(job_id)
        await transaction.commit()
        assert database.sees(job_id)
        await direct.close()


async def test_connection_given_back(dsn: str, ship: Any) -> None:
    """What was given back to its pool is refused."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        async with pool.acquire() as conn:
            pass
        assert extconn.describe(conn).state == "closed"
        with pytest.raises(extconn.UnusableConnection, match="closed"):
            await ship.configure(connection=conn).defer_async()


async def test_wrong_objects(dsn: str, ship: Any) -> None:
    """What is no connection is refused, with the line that gets one."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        for wrong in (pool, pool.acquire()):
            with pytest.raises(
                extconn.UnsupportedConnection, match=r"async with pool\.acquire\(\)"
            ):
                await ship.configure(connection=wrong).defer_async()
        async with pool.acquire() as conn:
            cursor = conn.cursor("SELECT 1")
            for wrong in (conn.transaction(), cursor):
                with pytest.raises(extconn.UnsupportedConnection, match="connection=conn"):
                    await ship.configure(connection=wrong).defer_async()
            async with conn.transaction():
                with pytest.raises(extconn.UnsupportedConnection, match="connection=conn"):
                    await ship.configure(connection=await cursor).defer_async()


async def test_databases(dsn: str, database: Database, ship: Any) -> None:
    """The package databases is refused with the line to its connection, which is in its transaction."""
    async with databases.Database(dsn) as db, db.transaction(force_rollback=True):
        with pytest.raises(
            extconn.UnsupportedConnection, match=r"database\.connection\(\)\.raw_connection"
        ):
            await ship.configure(connection=db).defer_async()
        with pytest.raises(extconn.UnsupportedConnection, match=r"pass its `\.raw_connection`"):
            await ship.configure(connection=db.connection()).defer_async()
        await ship.configure(connection=db.connection().raw_connection).defer_async()
        assert await db.fetch_val("SELECT count(*) FROM procrastinate_jobs") == 1
    assert database.jobs() == []


async def test_concurrent_use(conn: Any, ship: Any) -> None:
    """A second statement at a time is refused, and the error says what to do."""
    async with conn.transaction():
        busy = asyncio.ensure_future(conn.execute("SELECT 1"))
        await asyncio.sleep(0)
        with pytest.raises(ConnectorException, match="another task"):
            await ship.configure(connection=conn).defer_async()
        await busy


async def test_failed_transaction(conn: Any, ship: Any) -> None:
    """Only the server knows that a transaction has failed, and its answer is explained."""
    transaction = conn.transaction()
    await transaction.start()
    with pytest.raises(asyncpg.DivisionByZeroError):
        await conn.execute("SELECT 1 / 0")
    with pytest.raises(extconn.UnusableConnection, match=r"25P02.*roll it back"):
        await ship.configure(connection=conn).defer_async()
    await transaction.rollback()


async def test_pool_lends_a_transaction(dsn: str, database: Database, ship: Any) -> None:
    """A connection that the pool lends commits on a clean exit, and rolls back on another."""

    async def defer(pool: Any, *, then_divide_by: int) -> None:
        async with plugins().connect(pool) as conn:
            ids.append(await ship.configure(connection=conn).defer_async())
            assert not database.sees(ids[-1])
            1 / then_divide_by

    ids: list[int] = []
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        await defer(pool, then_divide_by=1)
        with pytest.raises(ZeroDivisionError):
            await defer(pool, then_divide_by=0)
    assert [database.sees(job_id) for job_id in ids] == [True, False]


async def test_trace(conn: Any, ship: Any) -> None:
    """OpenTelemetry's instrumentation shows the job's INSERT in the trace of the caller."""
    from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = AsyncPGInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        with provider.get_tracer("request").start_as_current_span("request") as request:
            async with conn.transaction():
                await ship.configure(connection=conn).defer_async()
    finally:
        instrumentor.uninstrument()

    [span] = [
        span
        for span in exporter.get_finished_spans()
        if "procrastinate_defer_jobs" in str((span.attributes or {}).get("db.statement"))
    ]
    assert span.parent is not None
    assert span.parent.span_id == request.get_span_context().span_id
