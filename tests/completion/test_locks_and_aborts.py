"""Locks, queueing locks and abort requests work as they do without `complete`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from completion.tasks import (
    FEW_ASYNC,
    Complete,
    events,
    until,
    work_off,
    working,
    write_and_complete,
    write_complete_and_commit,
)
from holding import Watch
from procrastinate.exceptions import JobAborted
from procrastinate.worker import Worker

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done


async def test_the_lock_is_free_once_the_transaction_is_committed(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """Jobs that share a lock still run one after the other, and each runs."""
    running: list[int] = []
    most: list[int] = []

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        running.append(1)
        await write_and_complete(context, held, complete)
        most.append(len(running))
        running.pop()
        await done(held.commit())

    task = define(one_of_few, body)
    job_ids = [await task.configure(lock="till").defer_async() for _ in range(5)]
    async with working(app, concurrency=5):
        await until(lambda: len(watch.orders()) == 5)
    assert watch.orders() == [job_id * 100 for job_id in job_ids]
    assert set(most) == {1}


async def test_the_queueing_lock_is_free_while_the_job_runs(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """A job with the queueing lock of the one that runs is deferred in the same transaction, and runs."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        if context.job.id == 1:
            next_one = task.configure(queueing_lock="till", connection=held.conn)
            is_async = complete is extconn.complete_async
            await done(next_one.defer_async() if is_async else next_one.defer())
        await write_complete_and_commit(context, held, complete)

    task = define(one_of_few, body)
    await task.configure(queueing_lock="till").defer_async()
    await work_off(app)
    assert watch.orders() == [100, 200]


async def test_an_abort_request_that_the_task_ignores(
    app: procrastinate.App, define: Callable[..., Any], dsn: str, watch: Watch
) -> None:
    """The job succeeds, and the request is taken back, as `finish_job` would."""
    [kind] = [kind for kind in all_kinds() if kind.id == "psycopg"]

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        with psycopg.connect(dsn) as conn:
            conn.execute("UPDATE procrastinate_jobs SET abort_requested = true")
        await write_complete_and_commit(context, held, complete)

    job_id = await define(kind, body).defer_async()
    await work_off(app)
    job = watch.job(job_id)
    assert job
    assert (job["status"], job["abort_requested"]) == ("succeeded", False)
    assert events(dsn, job_id) == ["deferred", "started", "abort_requested", "succeeded"]


async def test_a_task_that_aborts_itself(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """A task that rolls back and raises JobAborted is aborted, whether or not it had completed."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        await done(held.rollback())
        raise JobAborted

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "aborted"
    assert watch.orders() == []


@pytest.mark.parametrize("kind", FEW_ASYNC, ids=lambda kind: kind.id)
@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_task_that_is_cancelled_after_completing(
    app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    dsn: str,
    watch: Watch,
    is_committed: bool,
) -> None:
    """An abort request that cancels the task aborts the job if it comes before the commit, and not after it."""
    ready = asyncio.Event()

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        if is_committed:
            await done(held.commit())
        ready.set()
        await asyncio.Event().wait()

    job_id = await define(kind, body).defer_async()
    worker = Worker(app, wait=False, install_signal_handlers=False, listen_notify=False)
    running = asyncio.create_task(worker.run())
    await ready.wait()
    worker._handle_abort_jobs_requested([job_id])
    await asyncio.wait_for(running, 60)

    assert watch.job(job_id)["status"] == ("succeeded" if is_committed else "aborted")
    assert watch.orders() == ([job_id * 100] if is_committed else [])
    assert worker._job_ids_to_abort == {}
