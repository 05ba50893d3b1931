"""Where a worker's pool cannot listen, it polls and says so, or takes another pool for that alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from pool.working import Jobs, eventually
from pooler import pgbouncer
from pools import POOLS, Pool
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import procrastinate_extconn as extconn
from procrastinate_extconn.pool import listening

BY_ID = {kind.id: kind for kind in POOLS}


def _direct(dsn: str) -> AsyncConnectionPool:
    return AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False)


def _app(pool: object, listen: object) -> tuple[procrastinate.App, asyncio.Event]:
    app = procrastinate.App(connector=extconn.PoolConnector(pool, listen=listen))
    ran = asyncio.Event()

    @app.task(name="work")
    async def work() -> None:
        ran.set()

    return app, ran


async def _is_heard(jobs: Jobs, ran: asyncio.Event) -> None:
    async with jobs.working(fetch_job_polling_interval=3600):
        await eventually(lambda: jobs.fetch(_LISTENING))
        await jobs.app.configure_task("work").defer_async()
        await asyncio.wait_for(ran.wait(), 30)
        ran.clear()
        with psycopg.connect(jobs.dsn, autocommit=True) as conn:
            conn.execute(
                f"SELECT pg_terminate_backend(pid, 30000) FROM ({_LISTENING}) AS listening"
            )
        await eventually(lambda: jobs.fetch(_LISTENING))
        await jobs.app.configure_task("work").defer_async()
        await asyncio.wait_for(ran.wait(), 30)


_LISTENING = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' "
    "AND pid <> pg_backend_pid() AND query ILIKE 'LISTEN%procrastinate_extconn%'"
)


async def test_another_pool_listens(dsn: str, actions: Callable[[], list[str]]) -> None:
    """With `listen=`, psqlpy's pool hears of jobs, and again after that pool's connection was lost."""
    pytest.importorskip("procrastinate_extconn_psqlpy")
    async with BY_ID["psqlpy"].open(dsn, 4) as pool, _direct(dsn) as listen:
        jobs = Jobs(BY_ID["psqlpy"], pool, dsn)
        jobs.app, ran = _app(pool, listen)
        await _is_heard(jobs, ran)
    assert "worker_polls" not in actions()


@pytest.mark.parametrize("kind", [one for one in POOLS if one.listens], ids=lambda one: one.id)
def test_on_uvloop(dsn: str, kind: Pool) -> None:
    """A worker hears of jobs on uvloop as well, which `uvicorn[standard]` brings."""
    pytest.importorskip(kind.requires)
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with kind.open(dsn, 4) as pool:
            jobs = Jobs(kind, pool, dsn)
            jobs.app, ran = _app(pool, None)
            async with jobs.working():
                for _ in range(20):
                    await jobs.app.configure_task("work").defer_async()
                    await asyncio.wait_for(ran.wait(), 30)
                    ran.clear()

    uvloop.run(main())


@pytest.mark.parametrize("listen", [False, True], ids=["alone", "listen="])
async def test_what_is_announced_during_a_fetch_is_heard(dsn: str, listen: bool) -> None:
    """A job that comes after the server has looked, and before the worker knows that there was none, is run."""
    announced = asyncio.Event()

    class Late(extconn.PoolConnector):
        """Gives the reply to a fetch only after a job was announced."""

        async def run_on(self, conn: object, query: str, *args: Any, **options: Any) -> Any:
            rows = await super().run_on(conn, query, *args, **options)
            if "fetch_job" in query and not announced.is_set():
                with psycopg.connect(dsn, autocommit=True) as other:
                    other.execute(
                        "INSERT INTO procrastinate_jobs (queue_name, task_name) VALUES ('q', 'work')"
                    )
                with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                    await asyncio.wait_for(announced.wait(), 0.5)  # the worker may hear of it now
                announced.set()
            return rows

    async with BY_ID["psycopg"].open(dsn, 4) as pool, _direct(dsn) as direct:
        jobs = Jobs(BY_ID["psycopg"], pool, dsn)
        jobs.app, ran = _app(pool, None)
        connector = Late(pool, listen=direct if listen else None)
        hears = procrastinate.worker.Worker._handle_notification

        async def handle(self: Any, **notification: Any) -> None:
            await hears(self, **notification)
            announced.set()

        with (
            jobs.app.replace_connector(connector) as jobs.app,
            pytest.MonkeyPatch.context() as patched,
        ):
            async with jobs.working():
                await eventually(lambda: jobs.fetch(_LISTENING) if listen else True)
                patched.setattr(procrastinate.worker.Worker, "_handle_notification", handle)
                await asyncio.wait_for(ran.wait(), 30)


@pytest.mark.parametrize("direct", [True, False], ids=["listen=", "alone"])
async def test_behind_pgbouncer(
    dsn: str,
    actions: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    direct: bool,
) -> None:
    """In transaction mode a worker says that it hears nothing and polls; a direct pool for LISTEN makes it hear."""
    monkeypatch.setattr(listening, "_HEARD_WITHIN", 0.3)
    with pgbouncer(dsn, pool_mode="transaction", default_pool_size=3) as pooled:
        async with (
            AsyncConnectionPool(
                pooled, min_size=1, max_size=4, kwargs={"prepare_threshold": None}, open=False
            ) as pool,
            _direct(dsn) as listen,
        ):
            jobs = Jobs(BY_ID["psycopg"], pool, dsn)
            jobs.app, ran = _app(pool, listen if direct else None)
            if direct:
                await _is_heard(jobs, ran)
            else:
                async with jobs.working(fetch_job_polling_interval=0.1):
                    await eventually(lambda: "worker_polls" in actions())
                    await jobs.app.configure_task("work").defer_async()
                    await asyncio.wait_for(ran.wait(), 30)
    assert actions().count("worker_polls") == (not direct)


@pytest.mark.parametrize("listen", [ConnectionPool("", open=False), "a DSN"])
async def test_what_cannot_listen_is_named(
    dsn: str, actions: Callable[[], list[str]], caplog: pytest.LogCaptureFixture, listen: object
) -> None:
    """With `listen=` for what is no asynchronous pool, the worker polls, and says what it got."""
    async with AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
        jobs = Jobs(BY_ID["psycopg"], pool, dsn)
        jobs.app, _ = _app(pool, listen)
        async with jobs.working():
            await eventually(lambda: "worker_polls" in actions())
    assert type(listen).__name__ in caplog.text


def _unopened(kind: str, dsn: str) -> Any:
    if kind == "psycopg":
        return AsyncConnectionPool(dsn, open=False)
    return pytest.importorskip("asyncpg").create_pool(dsn)


@pytest.mark.parametrize(
    ("kind", "line"), [("psycopg", "async with pool"), ("asyncpg", "await pool")]
)
async def test_an_unopened_pool_is_refused(dsn: str, kind: str, line: str) -> None:
    """The worker ends at once, with the line that opens the pool."""
    app, _ = _app(_unopened(kind, dsn), None)
    with pytest.raises(extconn.ExternalConnectionError, match=f"not open.*{line}"):
        await app.run_worker_async(install_signal_handlers=False)


async def test_a_plugin_that_lends_alone(dsn: str, actions: Callable[[], list[str]]) -> None:
    """A worker polls on the pool of a plugin without `listen_external`."""

    class Lender:
        """A pool of somebody's."""

        def __init__(self, pool: AsyncConnectionPool) -> None:
            self.pool = pool

    class Plugin:
        """Lends connections, and knows no more."""

        @extconn.hookimpl
        def connect_external(self, pool: object) -> Any:
            return pool.pool.connection() if isinstance(pool, Lender) else None

    plugin = Plugin()
    extconn.register(plugin, "lender")
    try:
        async with AsyncConnectionPool(dsn, min_size=1, max_size=4, open=False) as pool:
            jobs = Jobs(Pool("lender", "", BY_ID["psycopg"].open, listens=False), None, dsn)
            jobs.app, ran = _app(Lender(pool), None)
            await jobs.app.configure_task("work").defer_async()
            async with jobs.working():
                await asyncio.wait_for(ran.wait(), 30)
                await eventually(lambda: jobs.statuses() == ["succeeded"])
    finally:
        extconn.unregister(plugin)
    assert "worker_polls" in actions()
