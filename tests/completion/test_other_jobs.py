"""A worker is as it was for all other jobs, and once a job has ended."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from completion.tasks import (
    Complete,
    actions,
    events,
    rolls_back_and_raises,
    rolls_back_and_returns,
    work_off,
    write_complete_and_commit,
)
from holding import Watch
from procrastinate.manager import JobManager
from procrastinate.worker import Worker

import procrastinate_extconn as extconn
from procrastinate_extconn.completion import settlement
from procrastinate_extconn.completion.decision import Message
from procrastinate_extconn.kinds import Held, Kind


@pytest.fixture
def attributes() -> Callable[[], dict[Any, Any]]:
    """The attributes of the classes that the layer reaches into."""
    return lambda: {cls: dict(vars(cls)) for cls in (Worker, JobManager)}


async def test_nothing_is_wrapped_without_complete_or_after_uninstall(
    attributes: Callable[[], dict[Any, Any]], dsn: str
) -> None:
    """Procrastinate's worker is touched from the first `complete` until `uninstall`, and then it is as it was."""
    # An app that another test patched, and nobody has collected yet, would keep the classes wrapped.
    gc.collect()
    extconn.uninstall()
    before = attributes()
    extconn.install()
    installed = attributes()
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn) as conn:
            extconn.complete(context, conn)

    async with app.open_async():
        await work.defer_async()
        assert attributes() == installed
        await work_off(app)
        assert attributes() != installed
    extconn.uninstall()
    assert attributes() == before


async def test_other_jobs_go_their_way(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    dsn: str,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A job whose task calls no `complete` succeeds, fails and is retried as usual, beside one whose task does."""

    @app.task
    def succeed() -> None: ...

    @app.task(retry=1)
    def fail() -> None:
        raise ZeroDivisionError

    await define(one_of_few, write_complete_and_commit).defer_async()
    succeeded = await succeed.defer_async()
    failed = await fail.defer_async()
    with caplog.at_level(logging.INFO):
        await work_off(app)
    assert events(dsn, succeeded) == ["deferred", "started", "succeeded"]
    assert [event for event in events(dsn, failed) if event != "scheduled"] == [
        "deferred",
        "started",
        "deferred_for_retry",
        "started",
        "failed",
    ]
    outcomes = [action for action in actions(caplog) if action.startswith("job_")]
    assert sorted(outcomes) == ["job_error", "job_error_retry", "job_success", "job_success"]


async def test_nothing_is_left_behind(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """A worker keeps nothing of a job that has ended, with each outcome."""
    bodies = [write_complete_and_commit, rolls_back_and_raises, rolls_back_and_returns]

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        assert context.job.id
        await bodies[context.job.id % 3](context, held, complete)

    task = define(one_of_few, body)
    await task.batch_defer_async(*[{}] * 9)
    await work_off(app)
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is settlement._Ending]


def test_no_argument_of_a_job_is_in_a_record_of_ours() -> None:
    """What we log names the task and the job, and nothing that the job carries."""
    job = procrastinate.jobs.Job(
        id=5,
        queue="default",
        lock=None,
        queueing_lock=None,
        task_name="work",
        task_kwargs={"password": "secret"},
    )
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    settlement.logger.addHandler(handler)
    settlement._Ending(job)._log(Message(logging.ERROR, "transaction_left_open", "was left"))
    settlement.logger.removeHandler(handler)
    assert "secret" not in str(vars(records[0]))
