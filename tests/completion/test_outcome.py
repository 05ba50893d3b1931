"""The job succeeds with its task's transaction or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from completion.tasks import (
    Body,
    Complete,
    actions,
    events,
    rolls_back_and_raises,
    rolls_back_and_returns,
    work_off,
    write,
    write_and_complete,
    write_complete_and_commit,
)
from holding import Watch
from procrastinate.exceptions import ConnectorException

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, done


async def test_the_job_succeeds_with_the_transaction(
    app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once the task's transaction is committed, its rows are there and its job is as its worker would have left it."""
    seen_within: list[Any] = []

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_and_complete(context, held, complete)
        seen_within.append((watch.job(context.job.id or 0), watch.orders()))
        await done(held.commit())

    @app.task
    def plain() -> None: ...

    plain_id = await plain.defer_async()
    job_id = await define(kind, body).defer_async()
    with caplog.at_level(logging.INFO):
        await work_off(app)

    assert seen_within[0][0]["status"] == "doing"
    assert seen_within[0][1] == []
    assert watch.orders() == [job_id * 100]
    expected, job = watch.job(plain_id), watch.job(job_id)
    assert expected
    assert job == {**expected, "id": job_id, "task_name": "work"}
    assert job["status"] == "succeeded"
    assert events(dsn, job_id) == events(dsn, plain_id) == ["deferred", "started", "succeeded"]
    assert actions(caplog).count("job_success") == 2
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(
    ("delete_jobs", "is_kept"), [("never", True), ("successful", False), ("always", False)]
)
async def test_the_worker_deletes_the_job_if_it_is_told_to(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    watch: Watch,
    delete_jobs: str,
    is_kept: bool,
) -> None:
    """A completed job is deleted by the worker's own setting, like any other that succeeds."""
    job_id = await define(one_of_few, write_complete_and_commit).defer_async()
    await work_off(app, delete_jobs=delete_jobs)
    assert watch.orders() == [job_id * 100]
    assert watch.jobs() == ([job_id] if is_kept else [])


async def test_an_exception_after_the_commit_changes_nothing(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """The job stays succeeded, is not retried, and the log says when the exception came."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_complete_and_commit(context, held, complete)
        raise ZeroDivisionError

    job_id = await define(one_of_few, body, retry=5).defer_async()
    await work_off(app)

    job = watch.job(job_id)
    assert job
    assert (job["status"], job["attempts"]) == ("succeeded", 1)
    assert watch.orders() == [job_id * 100]
    assert events(dsn, job_id) == ["deferred", "started", "succeeded"]
    error = record("error_after_completion")
    assert error.exc_info
    assert error.exc_info[0] is ZeroDivisionError
    assert "stays succeeded" in error.getMessage()
    assert not {"job_error", "job_error_retry"} & set(actions(caplog))


async def test_a_job_that_fails_after_its_commit_counts_as_successful(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """A worker that deletes successful jobs deletes a completed one whose task would be retried otherwise."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write_complete_and_commit(context, held, complete)
        raise ZeroDivisionError

    job_id = await define(one_of_few, body, retry=5).defer_async()
    await work_off(app, delete_jobs="successful")
    assert watch.jobs() == []
    assert watch.orders() == [job_id * 100]


async def test_a_foreign_key_to_the_job_is_no_open_transaction(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody's uncommitted row that refers to the job does not keep its worker from accepting it."""
    with psycopg.connect(dsn) as conn:

        async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
            conn.execute("INSERT INTO procrastinate_events (job_id) VALUES (%s)", [context.job.id])
            await write_complete_and_commit(context, held, complete)

        job_id = await define(one_of_few, body).defer_async()
        await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"
    assert actions(caplog, logging.WARNING) == []


async def rolls_back_to_a_savepoint(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Undo `complete` alone."""
    await done(held.execute("SAVEPOINT here"))
    await write_and_complete(context, held, complete)
    await done(held.execute("ROLLBACK TO SAVEPOINT here"))
    await done(held.commit())


@pytest.mark.parametrize(
    "body", [rolls_back_and_raises, rolls_back_and_returns, rolls_back_to_a_savepoint]
)
async def test_the_job_fails_if_its_transaction_is_rolled_back(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    body: Body,
    dsn: str,
    watch: Watch,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """Nothing of the run is left, and the job has failed, even where the task returned as if all were well."""
    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)

    job = watch.job(job_id)
    assert job
    assert (job["status"], job["attempts"]) == ("failed", 1)
    assert watch.orders() == []
    assert events(dsn, job_id) == ["deferred", "started", "failed"]
    exc_info = record("job_error").exc_info
    assert exc_info
    if body is rolls_back_and_raises:
        assert exc_info[0] is ZeroDivisionError
    else:
        assert exc_info[0] is extconn.ExternalConnectionError
        assert "or never committed" in str(exc_info[1])


@pytest.mark.parametrize("body", [rolls_back_and_raises, rolls_back_and_returns])
async def test_the_job_is_retried_if_its_transaction_is_rolled_back(
    app: procrastinate.App,
    define: Callable[..., Any],
    kind: Kind,
    body: Body,
    dsn: str,
    watch: Watch,
) -> None:
    """The task's own retry strategy applies, and the run that commits is the one whose effect is there."""

    async def fails_once(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await (body if context.job.attempts == 0 else write_complete_and_commit)(
            context, held, complete
        )

    job_id = await define(kind, fails_once, retry=1).defer_async()
    await work_off(app)

    job = watch.job(job_id)
    assert job
    assert (job["status"], job["attempts"]) == ("succeeded", 2)
    assert watch.orders() == [job_id * 100 + 1]
    assert [event for event in events(dsn, job_id) if event != "scheduled"] == [
        "deferred",
        "started",
        "deferred_for_retry",
        "started",
        "succeeded",
    ]


async def test_a_failed_job_is_deleted_if_the_worker_is_told_to(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """Where the transaction is rolled back, the worker treats the job as it treats any that fails."""
    await define(one_of_few, rolls_back_and_raises).defer_async()
    await work_off(app, delete_jobs="always")
    assert watch.jobs() == []


async def test_the_outcome_is_logged_although_the_row_cannot_be_read(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    monkeypatch: pytest.MonkeyPatch,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """A worker that has lost its database says how the task ended, as it would have before."""
    execute = app.connector.execute_query_all_async

    async def lose(query: str, **arguments: Any) -> Any:
        if "SKIP LOCKED" in query:
            raise ConnectorException
        return await execute(query, **arguments)

    monkeypatch.setattr(app.connector, "execute_query_all_async", lose)
    await define(one_of_few, rolls_back_and_raises).defer_async()
    await work_off(app)
    assert record("job_error").exc_info


async def test_a_rollback_to_a_savepoint_undoes_the_end_of_the_job_alone(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    watch: Watch,
    record: Callable[[str], logging.LogRecord],
) -> None:
    """The job fails, and the error does not deny what the task has committed outside the savepoint."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write(context, held)
        await done(held.execute("SAVEPOINT mine"))
        await done(complete(context, held.conn))
        await done(held.execute("ROLLBACK TO SAVEPOINT mine"))
        await done(held.commit())

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert watch.orders() == [job_id * 100]
    job = watch.job(job_id)
    assert job
    assert (job["status"], job["attempts"]) == ("failed", 1)
    exc_info = record("job_error").exc_info
    assert exc_info
    assert "savepoint" in str(exc_info[1])
    assert "is not there" not in str(exc_info[1])
