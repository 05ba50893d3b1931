"""Tasks that hold all other connections do not keep the worker from its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import psycopg
import pytest
from pool.working import CONNECTIONS, Jobs, eventually
from pools import POOLS

import procrastinate_extconn as extconn
from procrastinate_extconn.plugins import plugins

WITH_ONE = [kind for kind in POOLS if kind.id != "psqlpy"]  # psqlpy makes no pool of one

_HEARTBEAT = "SELECT last_heartbeat FROM procrastinate_workers"
_WAITING = (
    "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%finish_job%'"
)


async def test_tasks_hold_all_other_connections(jobs: Jobs, size: int) -> None:
    """Meanwhile the heart beats, and jobs are fetched, retried and ended, on the pool's own connections alone."""
    ran = []

    @jobs.app.task(retry=1)
    async def work(number: int) -> None:
        ran.append(number)
        if ran.count(number) == 1:
            raise ZeroDivisionError

    async with contextlib.AsyncExitStack() as stack, jobs.working(concurrency=size - 2):
        await jobs.registered()
        for number in range(5):
            await work.defer_async(number=number)
        for _ in range(size - 1):
            await stack.enter_async_context(plugins().connect(jobs.pool))
        with psycopg.connect(jobs.dsn) as conn:  # wakes the worker for the retries
            conn.execute('NOTIFY procrastinate_any_queue_v1, \'{"type": "job_inserted"}\'')
        await eventually(lambda: jobs.statuses() == ["succeeded"] * 5)
        for _ in range(2):
            [before] = jobs.fetch(_HEARTBEAT)
            await eventually(lambda before=before: jobs.fetch(_HEARTBEAT) != [before], seconds=2)
        assert len(jobs.fetch(CONNECTIONS)) == size


async def test_a_job_whose_row_is_locked_holds_nobody_up(jobs: Jobs) -> None:
    """Its end waits for the lock; heartbeats and other jobs do not."""
    started, proceed = asyncio.Event(), asyncio.Event()

    @jobs.app.task
    async def work() -> None:
        started.set()
        await proceed.wait()

    async with await psycopg.AsyncConnection.connect(jobs.dsn) as conn, jobs.working(concurrency=2):
        await work.defer_async()
        await asyncio.wait_for(started.wait(), 30)
        await conn.execute("SELECT 1 FROM procrastinate_jobs FOR UPDATE")
        proceed.set()
        await eventually(lambda: jobs.fetch(_WAITING))
        [before] = jobs.fetch(_HEARTBEAT)
        await work.defer_async()
        await eventually(lambda: jobs.statuses() == ["doing", "succeeded"])
        await eventually(lambda: jobs.fetch(_HEARTBEAT) != [before])
        await conn.rollback()
        await eventually(lambda: jobs.statuses() == ["succeeded"] * 2)


async def test_a_pool_that_is_too_small(
    jobs: Jobs, size: int, actions: Callable[[], list[str]]
) -> None:
    """It is warned of where a worker can run on it; the size that is named is always accepted."""
    await jobs.run(concurrency=size - 2)
    assert "small_pool" not in actions()
    await jobs.run(concurrency=size - 1)
    assert "small_pool" in actions()


@pytest.mark.parametrize("size", [1])
@pytest.mark.parametrize("pool_kind", WITH_ONE, indirect=True, ids=lambda kind: kind.id)
async def test_a_pool_of_one_is_refused(jobs: Jobs) -> None:
    """The error names the figure that is needed, and the connection is given back."""
    with pytest.raises(extconn.ExternalConnectionError, match="needs 7"):
        await jobs.run(concurrency=5)
    assert await asyncio.wait_for(jobs.app.job_manager.check_connection_async(), 30)
