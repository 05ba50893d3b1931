"""An app on the pool that the application has anyway."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import procrastinate
import psycopg
import pytest
from holding import Watch, run_python
from procrastinate.exceptions import ConnectorException

import procrastinate_extconn as extconn
from procrastinate_extconn.builtin.sqlalchemy_kinds import url
from procrastinate_extconn.kinds import address_of


class Pool(NamedTuple):
    """A kind of pool, of one connection."""

    id: str
    requires: str
    is_async: bool
    open: Callable[[str], Any]


@contextlib.contextmanager
def psycopg_pool(dsn: str) -> Iterator[Any]:
    """A pool of psycopg's."""
    from psycopg_pool import ConnectionPool

    with ConnectionPool(dsn, min_size=1, max_size=1, open=True) as pool:
        yield pool


@contextlib.contextmanager
def psycopg2_pool(dsn: str) -> Iterator[Any]:
    """A pool of psycopg2's."""
    from psycopg2.pool import ThreadedConnectionPool

    pool = ThreadedConnectionPool(1, 1, dsn)
    yield pool
    pool.closeall()


@contextlib.contextmanager
def engine(dsn: str) -> Iterator[Any]:
    """A SQLAlchemy engine."""
    from sqlalchemy import create_engine

    engine = create_engine(url(dsn, "psycopg"), pool_size=1, max_overflow=0)
    yield engine
    engine.dispose()


@contextlib.asynccontextmanager
async def psycopg_async_pool(dsn: str) -> AsyncIterator[Any]:
    """An asynchronous pool of psycopg's."""
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        yield pool


@contextlib.asynccontextmanager
async def asyncpg_pool(dsn: str) -> AsyncIterator[Any]:
    """A pool of asyncpg's."""
    import asyncpg

    async with asyncpg.create_pool(**address_of(dsn), min_size=1, max_size=1) as pool:
        yield pool


@contextlib.asynccontextmanager
async def async_engine(dsn: str) -> AsyncIterator[Any]:
    """An asynchronous SQLAlchemy engine."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url(dsn, "asyncpg"), pool_size=1, max_overflow=0)
    yield engine
    await engine.dispose()


POOLS = [
    Pool("psycopg", "psycopg_pool", False, psycopg_pool),
    Pool("psycopg2", "procrastinate_extconn_psycopg2", False, psycopg2_pool),
    Pool("sqlalchemy", "sqlalchemy", False, engine),
    Pool("psycopg-async", "psycopg_pool", True, psycopg_async_pool),
    Pool("asyncpg", "procrastinate_extconn_asyncpg", True, asyncpg_pool),
    Pool("sqlalchemy-async", "asyncpg", True, async_engine),
]


def make_app(pool: Any) -> tuple[procrastinate.App, Any]:
    """An app on *pool*, never opened, with a task."""
    app = procrastinate.App(connector=extconn.PoolConnector(pool))
    return app, app.task(name="process_order")(lambda **arguments: None)


@pytest.fixture(params=[one for one in POOLS if not one.is_async], ids=lambda one: one.id)
def pool(request: pytest.FixtureRequest, dsn: str) -> Iterator[Any]:
    """Every synchronous pool."""
    pytest.importorskip(request.param.requires)
    with request.param.open(dsn) as pool:
        yield pool


@pytest.fixture(params=[one for one in POOLS if one.is_async], ids=lambda one: one.id)
async def async_pool(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Any]:
    """Every asynchronous pool."""
    pytest.importorskip(request.param.requires)
    async with request.param.open(dsn) as pool:
        yield pool


def connections(dsn: str) -> int:
    """How many connections the server has to the database of *dsn*, but for this one."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        ).fetchone()
    assert row
    return int(row[0])


def test_calls_commit_by_themselves(dsn: str, pool: Any) -> None:
    """Each call is a transaction of its own, on the pool's one connection and no other."""
    app, task = make_app(pool)
    first = task.defer(order_id=1)
    second, third = task.batch_defer({"order_id": 2}, {"order_id": 3})
    assert app.job_manager.cancel_job_by_id(second)
    while connections(dsn) != 1:
        pass  # one that was closed may say goodbye late
    with psycopg.connect(dsn, autocommit=True) as conn:
        watch = Watch(conn)
        assert watch.jobs() == [first, second, third]
        assert watch.job(second)["status"] == "cancelled"
        assert watch.job(third)["args"] == {"order_id": 3}


async def test_async_calls_commit_by_themselves(dsn: str, async_pool: Any) -> None:
    """The same on an asynchronous pool."""
    app, task = make_app(async_pool)
    first = await task.defer_async(order_id=1)
    second, third = await task.batch_defer_async({"order_id": 2}, {"order_id": 3})
    assert await app.job_manager.cancel_job_by_id_async(second)
    while connections(dsn) != 1:
        pass  # one that was closed may say goodbye late
    with psycopg.connect(dsn, autocommit=True) as conn:
        watch = Watch(conn)
        assert watch.jobs() == [first, second, third]
        assert watch.job(second)["status"] == "cancelled"
        assert watch.job(third)["args"] == {"order_id": 3}


def end_connections(dsn: str) -> None:
    """End all connections to the database of *dsn*, as a server that restarts does."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    while connections(dsn):
        pass


def test_a_pool_heals(dsn: str, pool: Any) -> None:
    """After a restart there is at most one error for the pool's one connection, and then none."""
    _, task = make_app(pool)
    for _ in range(3):
        task.defer()
        end_connections(dsn)
        with contextlib.suppress(ConnectorException):
            task.defer()
        assert task.defer()


async def test_an_async_pool_heals(dsn: str, async_pool: Any) -> None:
    """The same on an asynchronous pool."""
    _, task = make_app(async_pool)
    for _ in range(3):
        await task.defer_async()
        end_connections(dsn)
        with contextlib.suppress(ConnectorException):
            await task.defer_async()
        assert await task.defer_async()


def test_a_failed_call_leaves_the_pool_usable(pool: Any) -> None:
    """A taken queueing lock is rolled back, and the next call finds a clean connection."""
    _, task = make_app(pool)
    task.configure(queueing_lock="one").defer()
    with pytest.raises(procrastinate.exceptions.AlreadyEnqueued):
        task.configure(queueing_lock="one").defer()
    assert task.defer()


async def test_a_failed_async_call_leaves_the_pool_usable(async_pool: Any) -> None:
    """The same on an asynchronous pool."""
    _, task = make_app(async_pool)
    await task.configure(queueing_lock="one").defer_async()
    with pytest.raises(procrastinate.exceptions.AlreadyEnqueued):
        await task.configure(queueing_lock="one").defer_async()
    assert await task.defer_async()


def test_a_pool_without_a_connection_says_so(dsn: str) -> None:
    """Where the pool has no connection to lend, the error is Procrastinate's, with the pool's own as its cause."""
    from psycopg_pool import ConnectionPool, PoolTimeout

    with ConnectionPool(dsn, min_size=1, max_size=1, timeout=0.01, open=True) as pool:
        _, task = make_app(pool)
        with pool.connection(timeout=30), pytest.raises(ConnectorException) as caught:
            task.defer()
    assert isinstance(caught.value.__cause__, PoolTimeout)


def test_a_commit_that_failed_leaves_nothing_to_roll_back(dsn: str, pool: Any) -> None:
    """An error at the pool's own commit is told without a word on a transaction, as the caller has none."""
    with psycopg.connect(dsn) as conn:
        conn.execute("ALTER TABLE procrastinate_jobs ADD UNIQUE (lock) INITIALLY DEFERRED")
    _, task = make_app(pool)
    task.configure(lock="one").defer()
    with pytest.raises(procrastinate.exceptions.UniqueViolation) as caught:
        task.configure(lock="one").defer()
    assert "transaction" not in str(caught.value)


def test_a_connection_wins_over_the_pool(dsn: str, pool: Any) -> None:
    """`connection=` and `using` work as on any app, without patching."""
    _, task = make_app(pool)
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn).defer()
        with extconn.using(conn):
            task.defer()
        conn.rollback()
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert Watch(conn).jobs() == []


def test_a_synchronous_call_on_an_asynchronous_pool_is_refused(dsn: str) -> None:
    """The error names the call to make."""
    from psycopg_pool import AsyncConnectionPool

    _, task = make_app(AsyncConnectionPool(dsn, open=False))
    with pytest.raises(extconn.SyncAsyncMismatch, match="defer_async"):
        task.defer()


async def test_an_asynchronous_call_on_a_synchronous_pool_is_refused(dsn: str) -> None:
    """The error names the call to make, and the event loop is never blocked."""
    from psycopg_pool import ConnectionPool

    _, task = make_app(ConnectionPool(dsn, open=False))
    with pytest.raises(extconn.SyncAsyncMismatch, match=r"defer\(\)"):
        await task.defer_async()


async def test_a_worker_on_a_synchronous_pool_is_refused(pool: Any) -> None:
    """The error says what is synchronous, and what to make the app on instead."""
    app, _ = make_app(pool)
    with pytest.raises(extconn.ExternalConnectionError, match=r"a worker .* asynchronous pool"):
        await app.run_worker_async(wait=False, install_signal_handlers=False)


def test_what_is_no_pool_is_refused(dsn: str) -> None:
    """A connection is not a pool: the error says what it got, who was asked and what to pass."""
    with psycopg.connect(dsn) as conn:
        _, task = make_app(conn)
        with pytest.raises(
            extconn.UnsupportedConnection,
            match=r"psycopg\.Connection.*asked: .*Pass a connection pool or an engine",
        ):
            task.defer()


def test_a_pool_whose_plugin_is_missing_is_refused() -> None:
    """The error names the command that installs the plugin."""
    pytest.importorskip("procrastinate_extconn_asyncpg")
    refusal = run_python(
        """
        import asyncpg, procrastinate, procrastinate_extconn as extconn, procrastinate_extconn_asyncpg

        extconn.unregister(procrastinate_extconn_asyncpg)
        pool = asyncpg.pool.Pool.__new__(asyncpg.pool.Pool)
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        try:
            app.configure_task("process_order").defer()
        except extconn.UnsupportedConnection as exc:
            print(exc)
        """
    )
    assert "run `pip install ./plugins/asyncpg`" in refusal


def test_a_pool_that_commits_each_statement_is_no_surprise(dsn: str) -> None:
    """The transaction guard is for callers' connections: the pool's own may commit by itself."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    engine = sqlalchemy.create_engine(url(dsn, "psycopg"), isolation_level="AUTOCOMMIT")
    app, task = make_app(engine)
    task.defer()
    extconn.patch(app, outside_transaction="error", without_connection="allow")
    task.defer()
    extconn.unpatch(app)
    engine.dispose()
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert len(Watch(conn).jobs()) == 2


def test_the_mode_of_patch_holds_for_callers_connections(dsn: str, pool: Any) -> None:
    """`patch(app, outside_transaction=...)` guards connections that are passed with `connection=` and `using()`."""
    app, task = make_app(pool)
    extconn.patch(app, outside_transaction="error")
    with psycopg.connect(dsn, autocommit=True) as conn:
        with pytest.raises(extconn.OutsideTransaction):
            task.configure(connection=conn).defer()
        with extconn.using(conn), pytest.raises(extconn.OutsideTransaction):
            task.defer()
    extconn.unpatch(app)


def test_the_pool_is_never_closed(dsn: str, pool: Any) -> None:
    """Opening and closing the app leaves the pool as it was."""
    app, task = make_app(pool)
    with app.open():
        task.defer()
    assert task.defer()
