"""A task that neither commits nor rolls back holds up nobody but its own job."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from completion.tasks import Complete, actions, events, until, work_off, working, write_and_complete
from holding import Watch

import procrastinate_extconn as extconn
from procrastinate_extconn.completion import settlement
from procrastinate_extconn.kinds import Held, Kind, done


class LeftOpen:
    """Connections that tasks leave open, for the test to decide upon."""

    def __init__(self) -> None:
        self.sync_stack = contextlib.ExitStack()
        self.async_stack = contextlib.AsyncExitStack()
        self.held: Held

    def define(self, app: procrastinate.App, kind: Kind, dsn: str, **options: Any) -> Any:
        """Define a task that completes its first run, but neither commits nor rolls back; then it may fail."""

        async def body(context: procrastinate.JobContext, complete: Complete) -> None:
            if context.job.attempts == 0:
                await write_and_complete(context, self.held, complete)
                if context.job.task_kwargs["fail"]:
                    raise ZeroDivisionError

        if kind.is_async:

            @app.task(pass_context=True, **options)
            async def work_async(context: procrastinate.JobContext, fail: bool) -> None:
                self.held = await self.async_stack.enter_async_context(kind.open(dsn))
                await body(context, extconn.complete_async)

            return work_async

        @app.task(pass_context=True, **options)
        def work(context: procrastinate.JobContext, fail: bool) -> None:
            self.held = self.sync_stack.enter_context(kind.open(dsn))
            with contextlib.suppress(StopIteration):
                body(context, extconn.complete).__await__().send(None)

        return work


@pytest.fixture
async def left_open() -> AsyncIterator[LeftOpen]:
    """Close what tasks leave open."""
    left_open = LeftOpen()
    with left_open.sync_stack:
        async with left_open.async_stack:
            yield left_open


@pytest.mark.parametrize("fail", [False, True])
async def test_a_transaction_left_open_stops_nobody(
    app: procrastinate.App,
    one_of_few: Kind,
    dsn: str,
    left_open: LeftOpen,
    watch: Watch,
    record: Callable[[str], logging.LogRecord],
    fail: bool,
) -> None:
    """The worker does not wait for the row of such a job, not even to shut down, and says what it has found."""
    job_id = await left_open.define(app, one_of_few, dsn).defer_async(fail=fail)
    await work_off(app)

    found = record("transaction_left_open")
    assert found.levelno == logging.ERROR
    assert f"[{job_id}] has ended with the transaction open" in found.getMessage()
    assert record("worker_left_registered")
    assert watch.job(job_id)["status"] == "doing"

    await done(left_open.held.commit())
    assert watch.job(job_id)["status"] == "succeeded"
    assert watch.orders() == [job_id * 100]
    assert events(dsn, job_id) == ["deferred", "started", "succeeded"]


async def test_a_transaction_left_open_and_rolled_back_leaves_a_stalled_job(
    app: procrastinate.App, one_of_few: Kind, dsn: str, left_open: LeftOpen, watch: Watch
) -> None:
    """Once its worker has gone, the job is found by Procrastinate's own search for stalled jobs and runs again."""
    job_id = await left_open.define(app, one_of_few, dsn).defer_async(fail=False)
    await work_off(app)
    await done(left_open.held.rollback())

    [stalled] = await app.job_manager.get_stalled_jobs(seconds_since_heartbeat=0)
    assert stalled.id == job_id
    await app.job_manager.retry_job(stalled)
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"


@pytest.mark.parametrize("fail", [False, True])
async def test_a_late_commit_is_accepted(
    app: procrastinate.App,
    one_of_few: Kind,
    dsn: str,
    left_open: LeftOpen,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    fail: bool,
) -> None:
    """A worker that goes on running settles the job once its transaction is committed."""
    job_id = await left_open.define(app, one_of_few, dsn, retry=1).defer_async(fail=fail)
    async with working(app, delete_jobs="successful"):
        await until(lambda: "transaction_left_open" in actions(caplog))
        await done(left_open.held.commit())
        await until(lambda: not watch.jobs())
    assert watch.orders() == [job_id * 100]
    assert not settlement._open[app.job_manager]


@pytest.mark.parametrize("fail", [False, True])
async def test_a_late_rollback_is_a_failure(
    app: procrastinate.App,
    one_of_few: Kind,
    dsn: str,
    left_open: LeftOpen,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    fail: bool,
) -> None:
    """A worker that goes on running retries the job once its transaction is rolled back."""
    job_id = await left_open.define(app, one_of_few, dsn, retry=1).defer_async(fail=fail)
    async with working(app):
        await until(lambda: "transaction_left_open" in actions(caplog))
        await done(left_open.held.rollback())
        await until(lambda: watch.job(job_id)["status"] == "succeeded")
    assert watch.orders() == []
    assert "deferred_for_retry" in events(dsn, job_id)


@pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")
async def test_a_connection_that_an_exception_keeps_alive_is_let_go(
    app: procrastinate.App, dsn: str, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that forgets its connection and raises fails once the connection is collected as garbage."""

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        conn = psycopg.connect(dsn)
        extconn.complete(context, conn)
        raise ZeroDivisionError

    def is_failed() -> bool:
        gc.collect()
        job = watch.job(job_id)
        return job is not None and job["status"] == "failed"

    found: list[str] = []
    # pytest keeps the records that it gets, and with them the exception.
    monkeypatch.setattr(settlement.logger, "handle", lambda record: found.append(record.action))
    job_id = await work.defer_async()
    async with working(app):
        await until(lambda: found == ["transaction_left_open"])
        await until(is_failed)
