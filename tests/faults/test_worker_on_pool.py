"""A worker on the application's pool, while its server is killed and its connections are terminated.

``EXTCONN_FAULTS=long`` goes on for ten minutes on each pool.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import random
import resource
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from faults.chance import SEED
from pools import POOLS, Pool
from procrastinate.schema import SchemaManager

import procrastinate_extconn as extconn
from procrastinate_extconn.plugins import plugins
from procrastinate_extconn.temporary_server import TemporaryServer

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("installed"),
    # A driver whose server has gone may leave its socket to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KINDS = [kind for kind in POOLS if kind.id in ("psycopg", "asyncpg", "sqlalchemy-asyncpg")]
SIZE = 6
_OTHERS = (
    "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
    "AND application_name <> 'audit' AND backend_type = 'client backend'"
)


class Audit:
    """Jobs that are deferred all the time, the harm that is done meanwhile, and what comes of it."""

    def __init__(self, dsn: str, server: TemporaryServer, rng: random.Random) -> None:
        self._dsn = f"{dsn}?application_name=audit"
        self._server = server
        self._rng = rng
        self.acknowledged: set[int] = set()
        self.runs: collections.Counter[int] = collections.Counter()
        self.connections = 0
        self.harm: collections.Counter[str] = collections.Counter()

    async def defer(self) -> None:
        """Defer jobs, and keep the ids of those that are known to be committed."""
        query = "INSERT INTO procrastinate_jobs (task_name, queue_name) VALUES (%s, 'default') RETURNING id"
        while True:
            with contextlib.suppress(psycopg.Error):
                async with await psycopg.AsyncConnection.connect(self._dsn) as conn:
                    while True:
                        task = self._rng.choice(["count", "write"])
                        row = await (await conn.execute(query, [task])).fetchone()
                        await conn.commit()
                        assert row
                        self.acknowledged.add(row[0])
                        others = await (await conn.execute(_OTHERS)).fetchall()
                        self.connections = max(self.connections, len(others))
                        await asyncio.sleep(self._rng.uniform(0, 0.02))
            await asyncio.sleep(0.05)

    async def do_harm(self) -> None:
        """Kill the server, or terminate connections, again and again."""
        while True:
            await asyncio.sleep(self._rng.uniform(0.2, 3))
            kind = self._rng.choice(["server killed", "all terminated", "one terminated"])
            if kind == "server killed":
                await asyncio.to_thread(self._server.kill)
                await asyncio.to_thread(self._server.start)
            else:
                with contextlib.suppress(psycopg.Error):
                    await asyncio.to_thread(self._terminate, kind == "all terminated")
            self.harm[kind] += 1

    def _terminate(self, all_of_them: bool) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            pids = [pid for (pid,) in conn.execute(_OTHERS)]
            for pid in pids if all_of_them else self._rng.sample(pids, min(1, len(pids))):
                conn.execute("SELECT pg_terminate_backend(%s)", [pid])

    def fetch(self, query: str) -> list[Any]:
        """Ask the server."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            return conn.execute(query.encode()).fetchall()


def _define(app: procrastinate.App, pool: Any, audit: Audit) -> None:
    @app.task(name="count", pass_context=True)
    async def count(context: procrastinate.JobContext) -> None:
        assert context.job.id
        audit.runs[context.job.id] += 1

    @app.task(name="write", pass_context=True, retry=procrastinate.RetryStrategy(max_attempts=1000))
    async def write(context: procrastinate.JobContext) -> None:
        async with plugins().connect(pool) as conn:
            insert = f"INSERT INTO effects (job_id) VALUES ({context.job.id})"
            await extconn.ExternalConnector(conn).execute_query_async(insert)
            await extconn.complete_async(context, conn)


@contextlib.asynccontextmanager
async def _running(*coroutines: Any) -> AsyncIterator[list[asyncio.Task[Any]]]:
    tasks = [asyncio.create_task(one) for one in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.id)
async def test_restarts_at_random_moments(
    kind: Pool,
    own_dsn: str,
    server: TemporaryServer,
    rng: random.Random,
    sized: Callable[[float, float], float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every acknowledged job is run, none twice, and the pool never grows beyond its size.

    pytest keeps the log, and what it quotes: to see the worker's own memory in the figures, pass ``-p no:logging``.
    """
    pytest.importorskip(kind.requires)
    audit = Audit(own_dsn, server, rng)
    with psycopg.connect(own_dsn) as conn:
        conn.execute("CREATE TABLE effects (job_id bigint NOT NULL)")
    async with kind.open(own_dsn, SIZE) as pool:
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        _define(app, pool, audit)
        worker = app.run_worker_async(
            install_signal_handlers=False, concurrency=SIZE - 2, fetch_job_polling_interval=1
        )
        seconds = sized(4, 600)
        async with _running(worker) as [working]:
            async with _running(audit.defer(), audit.do_harm()):
                await asyncio.sleep(seconds / 4)
                memory = _memory()
                await asyncio.sleep(seconds * 3 / 4)
            await _until_done(audit, working)
        grown = _memory() - memory
    runs = audit.fetch(
        "SELECT count(*), count(*) FILTER (WHERE status = 'succeeded'), "
        "(SELECT count(*) FROM effects), (SELECT count(DISTINCT job_id) FROM effects), "
        "count(*) FILTER (WHERE task_name = 'write') FROM procrastinate_jobs"
    )
    jobs, succeeded, effects, distinct, writes = runs[0]
    with capsys.disabled():
        print(  # noqa: T201 - figures are what this test is for
            f"\n{kind.id}, seed {SEED}, {seconds} s: {dict(audit.harm)}; {jobs} jobs ({len(audit.acknowledged)} "
            f"acknowledged), {succeeded} succeeded; at most {audit.connections} of {SIZE} connections; "
            f"memory grew by {grown:.1f} MB"
        )
    found = {job_id for (job_id,) in audit.fetch("SELECT id FROM procrastinate_jobs")}
    assert audit.acknowledged <= found
    assert succeeded == jobs
    assert effects == distinct == writes
    assert [job_id for job_id, times in audit.runs.items() if times > 1] == []
    assert len(audit.runs) == jobs - writes
    assert audit.connections <= SIZE


def _memory() -> float:
    """Resident memory in MB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


async def _until_done(audit: Audit, working: asyncio.Task[Any]) -> None:
    end = time.monotonic() + 120
    query = "SELECT 1 FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    while True:
        with contextlib.suppress(psycopg.Error):
            if not audit.fetch(query):
                return
        assert not working.done(), working.result()
        assert time.monotonic() < end, audit.fetch(
            "SELECT id, task_name, status, attempts, worker_id, (SELECT array_agg(id) FROM procrastinate_workers) "
            "FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        )
        await asyncio.sleep(0.1)


def _psycopg_pool(dsn: str) -> Any:
    from psycopg_pool import AsyncConnectionPool

    return AsyncConnectionPool(
        dsn, min_size=1, max_size=SIZE, open=False, check=AsyncConnectionPool.check_connection
    )


def _asyncpg_pool(dsn: str) -> Any:
    asyncpg = pytest.importorskip("asyncpg")
    return asyncpg.create_pool(dsn, min_size=1, max_size=SIZE)


@pytest.mark.parametrize("make_pool", [_psycopg_pool, _asyncpg_pool])
async def test_failover(make_pool: Callable[[str], Any]) -> None:
    """The primary dies, its synchronous standby is promoted, and the worker goes on there: every job is run, once."""
    with TemporaryServer() as primary, TemporaryServer(standby_of=primary) as standby:
        with psycopg.connect(primary.dsn(), autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            conn.execute("SELECT pg_reload_conf()")
            conn.execute(SchemaManager.get_schema().encode())
        own, others = primary.dsn().rsplit("/", 1)[0], standby.dsn().rsplit("@", 1)[1]
        dsn = f"{own},{others}?target_session_attrs=read-write"
        runs: collections.Counter[int] = collections.Counter()
        async with make_pool(dsn) as pool:
            app = procrastinate.App(connector=extconn.PoolConnector(pool))

            @app.task(name="count", pass_context=True)
            async def count(context: procrastinate.JobContext) -> None:
                assert context.job.id
                runs[context.job.id] += 1

            acknowledged: set[int] = set()

            async def defer() -> None:
                while True:
                    with contextlib.suppress(procrastinate.exceptions.ConnectorException):
                        acknowledged.add(await count.defer_async())
                    await asyncio.sleep(0.005)

            worker = app.run_worker_async(
                install_signal_handlers=False, concurrency=2, fetch_job_polling_interval=0.5
            )
            async with _running(worker) as [working]:
                async with _running(defer()):
                    await _until(lambda: len(runs) > 100)
                    await asyncio.to_thread(primary.kill)
                    with psycopg.connect(standby.dsn(), autocommit=True) as conn:
                        conn.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
                        conn.execute("SELECT pg_promote()")
                    before = len(runs)
                    await _until(lambda: len(runs) > before + 100)
                await _until(lambda: acknowledged <= runs.keys())
                assert not working.done()
        with psycopg.connect(standby.dsn()) as conn:
            query = "SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'"
            assert conn.execute(query).fetchone() == (0,)
        assert set(runs.values()) == {1}


async def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never was"
        await asyncio.sleep(0.02)
