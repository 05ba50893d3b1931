"""A worker on the application's pool does what Procrastinate's own does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import procrastinate
import pytest
from pool.working import CONNECTIONS, Jobs, eventually

import procrastinate_extconn as extconn


async def test_it_runs_sync_and_async_jobs(jobs: Jobs) -> None:
    """Synchronous and asynchronous tasks run with their arguments, and their jobs succeed."""
    ran: list[Any] = []

    @jobs.app.task
    async def work(**arguments: Any) -> None:
        ran.append(arguments)

    @jobs.app.task
    def work_in_a_thread(**arguments: Any) -> None:
        ran.append(arguments)

    await work.defer_async(text="ä", number=1)
    await work_in_a_thread.defer_async(things=[1, {"a": None}])
    await jobs.run()
    assert ran == [{"text": "ä", "number": 1}, {"things": [1, {"a": None}]}]
    assert jobs.statuses() == ["succeeded"] * 2


async def test_it_retries_and_fails(jobs: Jobs) -> None:
    """A job is retried as its task says, and fails in the end."""

    @jobs.app.task(retry=2, pass_context=True)
    async def fail_once(context: procrastinate.JobContext) -> None:
        if context.job.attempts == 0:
            raise ZeroDivisionError

    @jobs.app.task(retry=1)
    async def fail() -> None:
        raise ZeroDivisionError

    await fail_once.defer_async()
    await fail.defer_async()
    await jobs.run()
    await jobs.run()
    query = "SELECT CAST(status AS text), attempts FROM procrastinate_jobs ORDER BY id"
    assert jobs.fetch(query) == [("succeeded", 2), ("failed", 2)]


async def test_it_aborts(jobs: Jobs) -> None:
    """A job that is told to abort while it runs is cancelled, and it ends as aborted."""
    started = asyncio.Event()

    @jobs.app.task
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    async with jobs.working():
        job_id = await work.defer_async()
        await asyncio.wait_for(started.wait(), 30)
        await jobs.app.job_manager.cancel_job_by_id_async(job_id, abort=True)
        await eventually(lambda: jobs.statuses() == ["aborted"])


async def test_it_defers_periodic_tasks(jobs: Jobs) -> None:
    """A periodic task is deferred by the worker itself, and run."""
    ran = asyncio.Event()

    @jobs.app.periodic(cron="* * * * * *")
    @jobs.app.task
    async def tick(timestamp: int) -> None:
        ran.set()

    async with jobs.working():
        await asyncio.wait_for(ran.wait(), 30)


async def test_it_keeps_locks(jobs: Jobs) -> None:
    """Jobs that share a lock run one after the other, also where the worker could run both."""
    running: list[int] = []
    together = []

    @jobs.app.task(lock="one")
    async def work(number: int) -> None:
        running.append(number)
        await asyncio.sleep(0)
        together.append(len(running))
        running.remove(number)

    for number in range(4):
        await work.defer_async(number=number)
    await jobs.run(concurrency=2)
    assert together == [1] * 4


@pytest.mark.parametrize(("delete_jobs", "left"), [("always", []), ("successful", ["failed"])])
async def test_it_deletes_jobs(jobs: Jobs, delete_jobs: str, left: list[str]) -> None:
    """Ended jobs are deleted if the worker is told so."""

    @jobs.app.task
    async def work(fails: bool) -> None:
        if fails:
            raise ZeroDivisionError

    await work.defer_async(fails=False)
    await work.defer_async(fails=True)
    await jobs.run(delete_jobs=delete_jobs)
    assert jobs.statuses() == left


async def test_it_takes_from_its_queues_alone(jobs: Jobs) -> None:
    """A worker of some queues hears of their jobs, and leaves all others."""
    ran = asyncio.Event()

    @jobs.app.task
    async def work() -> None:
        ran.set()

    await work.configure(queue="other").defer_async()
    async with jobs.working(queues=["mine", 'q"uoted']):
        await jobs.registered()
        await work.configure(queue='q"uoted').defer_async()
        await asyncio.wait_for(ran.wait(), 30)
    assert jobs.statuses() == ["todo", "succeeded"]


async def test_it_stops_when_its_jobs_have_ended(jobs: Jobs) -> None:
    """A worker that is told to stop lets its jobs end, writes that down, and unregisters."""
    started, proceed = asyncio.Event(), asyncio.Event()

    @jobs.app.task
    async def work() -> None:
        started.set()
        await proceed.wait()

    await work.defer_async()
    async with jobs.working() as worker:
        await asyncio.wait_for(started.wait(), 30)
        worker.cancel()
        proceed.set()
        await asyncio.wait([worker], timeout=30)
    assert jobs.statuses() == ["succeeded"]
    assert jobs.fetch("SELECT * FROM procrastinate_workers") == []


async def test_it_aborts_what_outlasts_the_grace(jobs: Jobs) -> None:
    """A job that does not end within the time that the worker gives is aborted, or retried if its task says so."""
    started = asyncio.Event()

    @jobs.app.task
    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    await work.defer_async()
    async with jobs.working(shutdown_graceful_timeout=0.05) as worker:
        await asyncio.wait_for(started.wait(), 30)
        worker.cancel()
        await asyncio.wait([worker], timeout=30)
    assert jobs.statuses() == ["aborted"]


async def test_a_task_completes_its_job(jobs: Jobs, installed: None) -> None:
    """`complete_async()` on a connection of the same pool: the worker accepts what the task has committed."""

    @jobs.app.task(pass_context=True)
    async def work(context: procrastinate.JobContext) -> None:
        from procrastinate_extconn.plugins import plugins

        async with plugins().connect(jobs.pool) as conn:
            await extconn.complete_async(context, conn)
        raise ZeroDivisionError

    await work.defer_async()
    await jobs.run()
    assert jobs.statuses() == ["succeeded"]
    await work.defer_async()
    await jobs.run(delete_jobs="successful")
    assert jobs.statuses() == ["succeeded"]


async def test_it_gives_its_connection_back_as_it_was(
    jobs: Jobs, size: int, actions: Callable[[], list[str]]
) -> None:
    """After the worker, no connection of the pool listens, and each call is a transaction again."""

    @jobs.app.task
    async def work() -> None: ...

    async with jobs.working() as worker:
        await work.defer_async()
        await eventually(lambda: jobs.statuses() == ["succeeded"])
        worker.cancel()
        await asyncio.wait([worker], timeout=30)
    connector = jobs.app.connector
    query = "SELECT count(*) AS count, txid_current() AS one FROM pg_listening_channels()"
    [row] = await connector.execute_query_all_async(query)
    assert row["count"] == 0
    assert len(jobs.fetch(CONNECTIONS)) <= size
    assert "worker_repeats" not in actions()
    assert ("worker_polls" in actions()) is not jobs.kind.listens
