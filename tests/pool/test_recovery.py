"""A worker on the application's pool goes on after errors, and each of its jobs runs once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from pool.working import CONNECTIONS, Jobs, eventually
from pools import POOLS, Pool
from procrastinate import sql
from procrastinate.exceptions import ConnectorException

import procrastinate_extconn as extconn
from procrastinate_extconn.plugins import plugins
from procrastinate_extconn.pool import worker
from procrastinate_extconn.sync_async import discard

LISTENING = [kind for kind in POOLS if kind.listens]
_RUNS = "SELECT CAST(status AS text), attempts FROM procrastinate_jobs ORDER BY id"


class Faults:
    """Statements that fail, whichever driver sends them."""

    def __init__(self) -> None:
        self._planned: list[tuple[str, bool]] = []
        self.came: list[str] = []
        self.meanwhile: Callable[[Any], Awaitable[object]] | None = None

    def plan(self, *statements: str, arrives: bool) -> None:
        """Let the next statement that calls each of these functions fail.

        :param arrives: whether the server has run it all the same, and the reply is what was lost.
        """
        self._planned += [(statement, arrives) for statement in statements]

    @extconn.hookimpl(wrapper=True)
    def execute_on_external(self, conn: object, query: str, args: Any) -> Iterator[Any]:
        """Fail as planned."""
        result = yield
        for fault in self._planned:
            if fault[0] in query:
                self._planned.remove(fault)
                self.came.append(fault[0])
                return self._lose(result, args, arrives=fault[1])
        return result

    async def _lose(self, result: Any, args: Any, *, arrives: bool) -> None:
        if arrives:
            await result
        else:
            discard(result)
        if self.meanwhile:
            await self.meanwhile(args)
        raise ConnectionResetError("the connection is gone")


@pytest.fixture
def faults() -> Iterator[Faults]:
    """Faults that end with the test."""
    faults = Faults()
    extconn.register(faults, "faults")
    yield faults
    extconn.unregister(faults)


@pytest.fixture
def ran(jobs: Jobs) -> list[int]:
    """The jobs that have run: the task is "work"."""
    ran: list[int] = []

    @jobs.app.task(name="work", pass_context=True, retry=1)
    async def work(context: procrastinate.JobContext, fails: bool = False) -> None:
        assert context.job.id
        ran.append(context.job.id)
        if fails and context.job.attempts == 0:
            raise ZeroDivisionError

    return ran


@pytest.mark.parametrize("arrives", [True, False], ids=["reply lost", "never sent"])
@pytest.mark.parametrize("statement", ["fetch_job", "finish_job", "retry_job"])
async def test_a_statement_fails(
    jobs: Jobs,
    ran: list[int],
    faults: Faults,
    caplog: pytest.LogCaptureFixture,
    actions: Callable[[], list[str]],
    statement: str,
    *,
    arrives: bool,
) -> None:
    """Each job has run once, or twice if it was to be retried, whether or not the server had run the statement."""
    caplog.set_level(logging.DEBUG)
    faults.plan(statement, statement, arrives=arrives)
    for _ in range(3):
        await jobs.app.configure_task("work").defer_async(fails=statement == "retry_job")
    await jobs.run(concurrency=2)
    await jobs.run(concurrency=2)
    assert faults.came == [statement] * 2
    runs = 2 if statement == "retry_job" else 1
    assert sorted(ran) == sorted([1, 2, 3] * runs)
    assert jobs.fetch(_RUNS) == [("succeeded", runs)] * 3
    assert actions().count("finish_task") == 3 * runs


@pytest.mark.parametrize("statement", ["update_heartbeat", "list_jobs_to_abort"])
async def test_a_side_statement_fails(
    jobs: Jobs, ran: list[int], faults: Faults, statement: str
) -> None:
    """The worker goes on."""
    planned = "update_heartbeat" if statement == "update_heartbeat" else "abort_requested"
    started, proceed = asyncio.Event(), asyncio.Event()

    @jobs.app.task(name="hold")
    async def hold() -> None:
        started.set()
        await proceed.wait()

    faults.plan(planned, planned, arrives=False)
    await hold.defer_async()
    async with jobs.working(abort_job_polling_interval=0.05, update_heartbeat_interval=0.05):
        await eventually(lambda: len(faults.came) == 2)
        proceed.set()
        await eventually(lambda: jobs.statuses() == ["succeeded"])


async def test_a_fetch_arrives_late(jobs: Jobs, ran: list[int], faults: Faults) -> None:
    """A fetch whose connection is lost may be run by the server after the worker has looked for its job."""

    async def fetch_later(args: Any) -> None:
        faults.meanwhile = None
        asyncio.get_running_loop().call_later(0.3, fetch, args["worker_id"])

    def fetch(worker_id: int) -> None:
        with psycopg.connect(jobs.dsn) as conn:
            conn.execute(
                "INSERT INTO procrastinate_jobs (task_name, queue_name) VALUES ('work', 'q')"
            )
            conn.execute(
                sql.queries["fetch_job"].encode(), {"queues": None, "worker_id": worker_id}
            )

    faults.plan("fetch_job", arrives=False)
    faults.meanwhile = fetch_later
    async with jobs.working(fetch_job_polling_interval=0.1):
        await eventually(lambda: ran == [1])
        await eventually(lambda: jobs.statuses() == ["succeeded"])


async def test_a_job_that_others_took_is_left_alone(
    jobs: Jobs, ran: list[int], faults: Faults
) -> None:
    """A job that somebody has retried while its end was in doubt is theirs."""

    async def retry(args: Any) -> None:
        with psycopg.connect(jobs.dsn) as conn:
            conn.execute("SELECT procrastinate_retry_job_v2(1, now() + '1 h', NULL, NULL, NULL)")

    await jobs.app.configure_task("work").defer_async()
    faults.plan("finish_job", arrives=False)
    faults.meanwhile = retry
    await jobs.run()
    assert ran == [1]
    assert jobs.fetch(_RUNS) == [("todo", 1)]


@pytest.mark.parametrize("pool_kind", LISTENING, indirect=True, ids=lambda kind: kind.id)
async def test_a_lost_connection_listens_again(
    jobs: Jobs, ran: list[int], actions: Callable[[], list[str]]
) -> None:
    """What was announced meanwhile is fetched once the worker listens again, long before it polls."""
    async with jobs.working(update_heartbeat_interval=3600):
        for number in range(1, 4):
            await eventually(lambda: jobs.fetch(_LISTENING))
            with psycopg.connect(jobs.dsn, autocommit=True) as conn:
                conn.execute(
                    "SELECT pg_terminate_backend(pid, 30000) "
                    "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                # By hand, as the pool's other connections are dead too.
                conn.execute(
                    "INSERT INTO procrastinate_jobs (task_name, queue_name) VALUES ('work', 'q')"
                )
            await eventually(lambda number=number: ran == [*range(1, number + 1)], seconds=5)
            await eventually(lambda number=number: jobs.statuses() == ["succeeded"] * number)
    assert len(jobs.fetch(CONNECTIONS)) <= 4


_LISTENING = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
    "AND state = 'idle' AND query ILIKE ANY ('{%LISTEN%, %update_heartbeat%, %fetch_job%, %finish_job%}')"
)


async def test_a_worker_without_a_server_stops(
    jobs: Jobs, ran: list[int], faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot reach its server stops all the same, with the error as the reason."""
    monkeypatch.setattr(worker, "_FAREWELL", 0.1)
    faults.plan(*["fetch_job"] * 10_000, *["unregister_worker"] * 10_000, arrives=False)
    task = asyncio.create_task(jobs.app.run_worker_async(install_signal_handlers=False))
    await eventually(lambda: len(faults.came) > 3)
    task.cancel()
    with pytest.raises(ConnectorException, match="ConnectionResetError"):
        await asyncio.wait_for(task, 30)


async def test_the_end_of_a_job_is_tried_until_the_grace_ends(
    jobs: Jobs, ran: list[int], faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stops goes on trying to end its job for as long as it would wait for the job itself."""
    monkeypatch.setattr(worker, "_FAREWELL", 0.0)
    await jobs.app.configure_task("work").defer_async()
    faults.plan(*["finish_job"] * 4, arrives=False)
    async with jobs.working(shutdown_graceful_timeout=30) as task:
        await eventually(lambda: len(faults.came) > 1)
        task.cancel()
        await asyncio.wait([task], timeout=30)
    assert jobs.statuses() == ["succeeded"]
    assert ran == [1]


async def test_the_pools_timeout_is_waited_out(dsn: str) -> None:
    """Where the connection is lost and tasks have taken its place, the worker waits for its turn."""
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(dsn, min_size=0, max_size=3, timeout=0.2, open=False) as pool:
        jobs = Jobs(Pool("psycopg", "", None), pool, dsn)  # type: ignore[arg-type]
        ran = asyncio.Event()

        @jobs.app.task
        async def work() -> None:
            ran.set()

        async with jobs.working(fetch_job_polling_interval=0.1):
            await jobs.registered()
            await work.defer_async()
            await asyncio.wait_for(ran.wait(), 30)
            async with pool.connection(), pool.connection():
                waiting = asyncio.create_task(pool.getconn(timeout=30))
                with psycopg.connect(dsn, autocommit=True) as conn:
                    conn.execute(
                        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
                        "WHERE query ILIKE '%procrastinate%' AND pid <> pg_backend_pid() "
                        "AND datname = current_database()"
                    )
                taken = await waiting
                await asyncio.sleep(0.5)
            await pool.putconn(taken)
            ran.clear()
            await work.defer_async()
            await asyncio.wait_for(ran.wait(), 30)


async def test_connections_that_died_together_are_replaced_together(dsn: str) -> None:
    """After a restart, the pool looks at all its dead connections at once, not at one after the other with pauses."""
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(
        dsn,
        min_size=5,
        max_size=6,
        timeout=2,
        open=False,
        check=AsyncConnectionPool.check_connection,
    ) as pool:
        await pool.wait()
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        listening = plugins().listen(pool, ())
        assert listening is not None
        async with listening as listener:
            assert not listener.conn.closed
