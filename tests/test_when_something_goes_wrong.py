"""Every message on the page "When something goes wrong" is one that really comes, and the other way round."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import goes_wrong_in_sessions
import procrastinate
import psycopg
import pytest
from goes_wrong_page import as_shown, shown
from holding import FakeConnection, FakeDriver, wait_until_blocked
from procrastinate.exceptions import ConnectorException
from procrastinate.manager import JobManager
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import procrastinate_extconn as extconn
from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.exceptions import OutsideTransactionWarning
from procrastinate_extconn.fallback import Fallback

Task = Any


def a_coroutine(dsn: str, task: Task) -> None:
    """Defer on a connection that was not awaited."""
    connecting = psycopg.AsyncConnection.connect(dsn)
    with contextlib.closing(connecting):
        task.configure(connection=connecting).defer()


def a_block(dsn: str, task: Task) -> None:
    """Defer on a block that was not entered."""
    task.configure(connection=ConnectionPool(dsn, open=False).connection()).defer()


def no_plugin(dsn: str, task: Task) -> None:
    """Defer on a connection of a driver whose plugin is not installed."""
    psycopg2 = pytest.importorskip("psycopg2")
    with contextlib.closing(psycopg2.connect(dsn)) as conn:
        raise Fallback(lambda: ["sqlalchemy", "psycopg"]).refusal(conn)


def nothing_of_ours(dsn: str, task: Task) -> None:
    """Defer on an object that no plugin knows."""
    task.configure(connection=object()).defer()


def a_dsn(dsn: str, task: Task) -> None:
    """Defer on a connection string."""
    task.configure(connection=dsn).defer()


def a_pool(dsn: str, task: Task) -> None:
    """Defer on a pool."""
    task.configure(connection=ConnectionPool(dsn, open=False)).defer()


def a_cursor(dsn: str, task: Task) -> None:
    """Defer on a cursor."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn.cursor()).defer()


def an_engine(dsn: str, task: Task) -> None:
    """Defer on a SQLAlchemy engine."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    task.configure(connection=sqlalchemy.create_engine("postgresql+psycopg://")).defer()


def another_database(dsn: str, task: Task) -> None:
    """Defer on a connection to SQLite."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    with sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.NullPool).connect() as conn:
        task.configure(connection=conn).defer()


def async_in_a_sync_call(dsn: str, task: Task) -> None:
    """Call `defer()` on an asynchronous connection."""

    async def defer() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            task.configure(connection=conn).defer()

    asyncio.run(defer())


def sync_in_an_async_call(dsn: str, task: Task) -> None:
    """Call `defer_async()` on a synchronous connection."""
    with psycopg.connect(dsn) as conn:
        asyncio.run(task.configure(connection=conn).defer_async())


def outside_a_transaction(dsn: str, task: Task) -> None:
    """Defer on an autocommit connection where that is an error."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        task.configure(connection=extconn.external(conn, outside_transaction="error")).defer()


def unknown(dsn: str, task: Task) -> None:
    """Defer on a connection that does not tell its state, where that is an error."""
    driver = FakeDriver()
    driver.state = "unknown"
    extconn.register(driver, "fake")
    try:
        conn = extconn.external(FakeConnection(), outside_transaction="error")
        task.configure(connection=conn).defer()
    finally:
        extconn.unregister(driver)


def closed(dsn: str, task: Task) -> None:
    """Defer on a closed connection."""
    with psycopg.connect(dsn) as conn:
        pass
    task.configure(connection=conn).defer()


def failed(dsn: str, task: Task) -> None:
    """Defer in a failed transaction."""
    with psycopg.connect(dsn) as conn:
        with contextlib.suppress(psycopg.Error):
            conn.execute("SELECT 1/0")
        task.configure(connection=conn).defer()


def killed(dsn: str, task: Task) -> None:
    """Defer on a connection whose server process has gone."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        with psycopg.connect(dsn) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [conn.info.backend_pid])
        try:
            task.configure(connection=conn).defer()
        except extconn.UnusableConnection as exc:
            if exc.__cause__.sqlstate is None:
                pytest.skip("this psycopg does not tell what the server said last")
            raise


def in_use(dsn: str, task: Task) -> None:
    """Defer twice at a time on a connection that does not queue."""
    asyncpg = pytest.importorskip("asyncpg")
    pytest.importorskip("procrastinate_extconn_asyncpg")

    async def defer() -> None:
        conn = await asyncpg.connect(dsn)
        try:
            async with conn.transaction():
                deferrer = task.configure(connection=conn)
                calls = deferrer.defer_async(), deferrer.defer_async()
                _, refused = await asyncio.gather(*calls, return_exceptions=True)
                raise refused
        finally:
            await conn.close()

    asyncio.run(defer())


def read_only(dsn: str, task: Task) -> None:
    """Defer in a read-only transaction."""
    with psycopg.connect(dsn) as conn:
        conn.read_only = True
        task.configure(connection=conn).defer()


def no_schema(dsn: str, task: Task) -> None:
    """Defer where the search_path does not lead to Procrastinate's schema."""
    with psycopg.connect(dsn) as conn:
        conn.execute("SET search_path = pg_temp")
        task.configure(connection=conn).defer()


def another_schema(dsn: str, task: Task) -> None:
    """Defer where Procrastinate's schema is of another version."""
    with psycopg.connect(dsn) as conn:
        conn.execute("DROP FUNCTION procrastinate_defer_jobs_v1")
        task.configure(connection=conn).defer()


def no_privilege(dsn: str, task: Task) -> None:
    """Defer as a role that may not."""
    with psycopg.connect(dsn) as conn:
        try:
            conn.execute("SET ROLE pg_monitor")
        except psycopg.errors.InsufficientPrivilege:
            pytest.skip("the user of this server may not take another role")
        task.configure(connection=conn).defer()


def changed_meanwhile(dsn: str, task: Task) -> None:
    """Cancel a job that somebody has changed since the snapshot was taken."""
    with psycopg.connect(dsn) as conn, psycopg.connect(dsn) as other:
        job_id = task.configure(connection=other).defer()
        other.commit()
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT 1")
        other.execute("UPDATE procrastinate_jobs SET priority = 1")
        other.commit()
        JobManager(ExternalConnector(conn)).cancel_job_by_id(job_id)


def deadlocked(dsn: str, task: Task) -> None:
    """Wait for somebody who waits for us."""
    with psycopg.connect(dsn) as conn, psycopg.connect(dsn) as other:
        conn.execute("SET deadlock_timeout = '10ms'")
        other.execute("SET deadlock_timeout = '1h'")
        for mine, lock in ((conn, "one"), (other, "two")):
            task.configure(connection=mine, queueing_lock=lock).defer()
        waits = task.configure(connection=other, queueing_lock="one")
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(waits.defer)
            try:
                wait_until_blocked(dsn, other)
                task.configure(connection=conn, queueing_lock="two").defer()
            finally:
                conn.rollback()
                waiting.result()


def prepared(dsn: str, task: Task) -> None:
    """Prepare a statement under a name that somebody has left on the server connection."""
    with psycopg.connect(dsn, prepare_threshold=0) as conn:
        conn.execute("PREPARE _pg3_0 AS SELECT 1", prepare=False)
        task.configure(connection=conn).defer()


def not_json(dsn: str, task: Task) -> None:
    """Defer an argument that JSON does not know."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn).defer(amount=float("nan"))


def not_storable(dsn: str, task: Task) -> None:
    """Defer a text that PostgreSQL does not store."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn).defer(name="\0")


def nested_too_deeply(dsn: str, task: Task) -> None:
    """Defer what is nested a hundred thousand times."""
    with psycopg.connect(dsn) as conn:
        connector = ExternalConnector(conn, json_dumps=lambda _: "[" * 100_000 + "]" * 100_000)
        JobManager(connector).defer_job(task.configure().job)


def not_encodable(dsn: str, task: Task) -> None:
    """Defer under a lock that is no text in any encoding."""
    with psycopg.connect(dsn) as conn:
        conn.execute("SELECT 1")
        task.configure(connection=conn, lock="\ud800").defer()


def using_without_install(dsn: str, task: Task) -> None:
    """Enter a block that nobody would look at."""
    extconn.uninstall()
    gc.collect()  # An earlier test's app on a pool is such a connector, too.
    with psycopg.connect(dsn) as conn, extconn.using(conn):
        pass


def using_in_another_thread(dsn: str, task: Task) -> None:
    """Defer in a thread that has inherited a block."""
    with psycopg.connect(dsn) as conn, extconn.using(conn), ThreadPoolExecutor() as pool:
        pool.submit(contextvars.copy_context().run, task.defer).result()


def a_worker_in_a_block(dsn: str, task: Task) -> None:
    """Start a worker inside a block."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
    with psycopg.connect(dsn) as conn, extconn.using(conn):
        app.run_worker(wait=False, install_signal_handlers=False)


def a_worker_on_a_connection(dsn: str, task: Task) -> None:
    """Start a worker on an external connection."""

    async def work() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            app = procrastinate.App(connector=extconn.ExternalConnector(conn))
            await app.run_worker_async(wait=False, install_signal_handlers=False)

    asyncio.run(work())


def _work(pool: object) -> None:
    app = procrastinate.App(connector=extconn.PoolConnector(pool))
    app.run_worker(wait=False, install_signal_handlers=False)


def a_worker_on_a_sync_pool(dsn: str, task: Task) -> None:
    """Start a worker on a synchronous pool."""
    with ConnectionPool(dsn, open=True) as pool:
        _work(pool)


def a_worker_on_an_unopened_pool(dsn: str, task: Task) -> None:
    """Start a worker on a pool that nobody has opened."""
    _work(AsyncConnectionPool(dsn, open=False))


def a_worker_on_a_pool_of_one(dsn: str, task: Task) -> None:
    """Start a worker on a pool that has a connection for the worker and none for its tasks."""

    async def work() -> None:
        async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
            app = procrastinate.App(connector=extconn.PoolConnector(pool))
            await app.run_worker_async(wait=False, install_signal_handlers=False)

    asyncio.run(work())


def no_connection_is_free(dsn: str, task: Task) -> None:
    """Defer while all connections of the app's pool are in use."""
    with (
        ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.1, open=True) as pool,
        pool.connection(timeout=30),
    ):
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        app.configure_task("process_order").defer()


def no_pool(dsn: str, task: Task) -> None:
    """Make an app on what is no pool."""
    procrastinate.App(connector=extconn.PoolConnector(dsn)).configure_task("task").defer()


def not_patched(dsn: str, task: Task) -> None:
    """Defer in a block on an app whose connector is not patched."""
    extconn.uninstall()
    extconn.patch(other := procrastinate.App(connector=procrastinate.PsycopgConnector()))
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
    try:
        with psycopg.connect(dsn) as conn, extconn.using(conn):
            asyncio.run(_batch(app))
    finally:
        extconn.unpatch(other)


async def _batch(app: procrastinate.App) -> None:
    await app.configure_task("process_order").batch_defer_async({})


class MyConnector(procrastinate.SyncPsycopgConnector):
    """A connector that somebody wrote."""

    def execute_query_all(self, query: Any, **arguments: Any) -> Any:
        return []


def an_override(dsn: str, task: Task) -> None:
    """Defer in a block on a connector that runs its queries by itself."""
    app = procrastinate.App(connector=MyConnector(conninfo=dsn))
    with psycopg.connect(dsn) as conn, extconn.using(conn):
        app.configure_task("process_order").defer()


def forgotten(dsn: str, task: Task) -> None:
    """Defer without a connection where that is an error."""
    extconn.install(without_connection="error")
    task.defer()


CASES: list[Callable[[str, Task], None]] = [
    a_coroutine,
    a_block,
    no_plugin,
    nothing_of_ours,
    a_dsn,
    a_pool,
    a_cursor,
    an_engine,
    another_database,
    async_in_a_sync_call,
    sync_in_an_async_call,
    outside_a_transaction,
    unknown,
    closed,
    failed,
    killed,
    in_use,
    read_only,
    no_schema,
    another_schema,
    no_privilege,
    changed_meanwhile,
    deadlocked,
    prepared,
    not_json,
    nested_too_deeply,
    not_encodable,
    not_storable,
    using_without_install,
    using_in_another_thread,
    not_patched,
    an_override,
    forgotten,
    a_worker_in_a_block,
    a_worker_on_a_connection,
    a_worker_on_a_sync_pool,
    a_worker_on_an_unopened_pool,
    a_worker_on_a_pool_of_one,
    no_connection_is_free,
    no_pool,
    *goes_wrong_in_sessions.CASES,
]


STANDBY = "The server is a standby"
"""What a test of `faults.test_no_writes` produces, which has one."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_message_is_on_the_page(
    case: Callable[[str, Task], None], dsn: str, task: Task
) -> None:
    """What is refused is refused with the words that the page explains."""
    with pytest.raises(ConnectorException) as caught:
        case(dsn, task)
    assert as_shown(caught.value) in shown()


def test_the_warning_is_on_the_page(dsn: str, task: Task) -> None:
    """So is the warning."""
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        pytest.warns(OutsideTransactionWarning) as caught,
    ):
        task.configure(connection=conn).defer()
    assert as_shown(caught[0].message) in shown()


def test_a_taken_lock_is_on_the_page(dsn: str, task: Task) -> None:
    """So is Procrastinate's own word for a taken lock."""
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn, queueing_lock="reindex").defer()
        with pytest.raises(procrastinate.exceptions.AlreadyEnqueued) as caught:
            task.configure(connection=conn, queueing_lock="reindex").defer()
    assert as_shown(caught.value) in shown()


def test_the_page_shows_nothing_else() -> None:
    """There is no message on the page that no test produces."""
    assert len([message for message in shown() if STANDBY not in message]) == len(CASES) + 2
