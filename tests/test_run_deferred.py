"""`run_deferred` does on an open transaction what a worker does after the commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import External, Watch, hold
from tasks_to_run import HOUR, NOW, add_tasks

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Kind
from procrastinate_extconn.testing import (
    assert_deferred,
    deferred_jobs,
    rolled_back,
    run_deferred,
)


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


# -- beside a worker --------------------------------------------------------------------------------------------------


JOBS: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("plain", {"priority": -1}),
    ("splits", {}),
    ("again", {"lock": "b"}),
    ("plain", {"lock": "b"}),
    ("plain", {"lock": "b", "priority": 7}),
    ("plain", {"schedule_at": NOW - HOUR, "queue": "other"}),
    ("plain", {"schedule_at": NOW + HOUR, "lock": "c"}),
    ("plain", {"lock": "c"}),
    ("moves", {"lock": "d", "priority": 2}),
    ("plain", {"lock": "moved", "priority": 1}),
    ("later", {"lock": "e", "priority": 8}),
    ("plain", {"lock": "e"}),
    ("gives_up", {}),
    ("fails", {"queueing_lock": "q"}),
    ("aborts", {}),
    ("unknown", {}),
]


def defer_all(external: External, app: procrastinate.App) -> None:
    """Defer each job on the connection."""
    for n, (name, options) in enumerate(JOBS):
        external.defer(app.configure_task(name, allow_unknown=True, **options), n=n)


# Without "scheduled": a worker that ends writes it again for each job that waits for a retry, since its id is removed.
STATE = """\
SELECT task_name, CAST(args AS text), queue_name, priority, lock, CAST(status AS text), attempts,
    scheduled_at > now() + interval '10 minutes',
    (SELECT string_agg(CAST(type AS text), ' ' ORDER BY events.id) FROM procrastinate_events AS events
     WHERE job_id = jobs.id AND type <> 'scheduled')
FROM procrastinate_jobs AS jobs ORDER BY id"""


def work(app: procrastinate.App, **options: Any) -> None:
    """Run a worker until nothing is due."""

    async def run() -> None:
        async with app.open_async():
            await app.run_worker_async(
                wait=False, listen_notify=False, install_signal_handlers=False, **options
            )

    asyncio.run(run())


def test_same_as_a_worker(kind: Kind, app: procrastinate.App, dsn: str) -> None:
    """The same jobs run in the same order, and end with the same status, attempts and events, on every connection."""
    log: list[Any] = []
    add_tasks(app, log, is_async=kind.is_async)
    with hold(kind, dsn) as external:
        defer_all(external, app)
        runs = external.run(lambda: run_deferred(external.conn, app, raise_errors=False))
        state = [tuple(row) for row in external.execute(STATE)]
        external.rollback()
    ours, log[:] = list(log), []

    with hold(kind, dsn) as external:
        defer_all(external, app)
        external.commit()
    work(app)
    assert ours == log
    with psycopg.connect(dsn) as conn:
        assert state == conn.execute(STATE).fetchall()
    assert {row[5] for row in state} == {"todo", "succeeded", "failed", "aborted"}
    ran = [run for run in runs if run.job.task_name != "unknown"]
    assert [(run.job.task_name, run.job.task_kwargs["n"]) for run in ran] == [
        line[:2] for line in log
    ]
    assert all(run.result == run.job.task_kwargs["n"] for run in ran if run.exception is None)


def test_leaves_nothing_after_the_rollback(
    external: External, app: procrastinate.App, watch: Watch
) -> None:
    """What ran was in the transaction: nobody else saw it, and a rollback leaves nothing."""
    add_tasks(app, [], is_async=external.kind.is_async)
    external.defer(app.tasks["splits"], n=1)
    runs = external.run(lambda: run_deferred(external.conn, app))
    assert [run.job.status for run in runs] == ["succeeded"] * 3
    assert watch.jobs() == []
    external.rollback()
    assert watch.jobs() == []


def test_a_failed_statement_does_not_cost_the_test_its_transaction(
    external: External, app: procrastinate.App
) -> None:
    """Where a task left the transaction failed, what the task did is undone and its outcome stored."""
    add_tasks(app, [], is_async=external.kind.is_async)

    def sync() -> None:
        app.tasks["plain"].defer(n=1)
        external._held.execute("SELECT 1 / 0")

    async def async_() -> None:
        await app.tasks["plain"].defer_async(n=1)
        await external._held.execute("SELECT 1 / 0")

    task = app.task(name="divides", retry=1)(async_ if external.kind.is_async else sync)
    external.defer(task)
    runs = external.run(lambda: run_deferred(external.conn, app, raise_errors=False))
    assert [(run.job.task_name, run.job.status, run.job.attempts) for run in runs] == [
        ("divides", "todo", 1),
        ("divides", "failed", 2),
    ]


# -- whose jobs -------------------------------------------------------------------------------------------------------


def test_others_jobs_do_not_run(conn: Any, dsn: str, app: procrastinate.App) -> None:
    """A committed job stays as it is, with each way to commit it, and its lock counts."""
    add_tasks(app, log := [], is_async=False)
    plain = app.tasks["plain"]
    plain.configure(connection=conn, lock="a").defer(n=1)
    conn.commit()
    plain.configure(connection=conn).defer(n=2)
    plain.configure(connection=conn, lock="a").defer(n=3)
    with psycopg.connect(dsn) as other:
        plain.configure(connection=other).defer(n=4)
        other.execute("SAVEPOINT one")
        plain.configure(connection=other).defer(n=5)
    assert len(deferred_jobs(conn)) == 5
    run_deferred(conn, app)
    assert [line[1] for line in log] == [2]
    assert [job.task_kwargs["n"] for job in deferred_jobs(conn)] == [1, 3, 4, 5]


def test_jobs_of_savepoints(conn: Any, app: procrastinate.App) -> None:
    """Jobs from before and inside savepoints, open or released, are the transaction's; rolled back ones are gone."""
    add_tasks(app, log := [], is_async=False)
    plain = app.tasks["plain"].configure(connection=conn)
    plain.defer(n=1)
    with rolled_back(conn):
        plain.defer(n=2)
        with conn.transaction():
            plain.defer(n=3)
        with conn.transaction(force_rollback=True):
            plain.defer(n=4)
        conn.execute("SAVEPOINT left_open")
        plain.defer(n=5)
        run_deferred(conn, app)
    assert [line[1] for line in log] == [1, 2, 3, 5]
    assert assert_deferred(conn, "plain", n=1).attempts == 0


def test_a_retried_job_is_the_transactions(conn: Any, app: procrastinate.App) -> None:
    """A committed job that this transaction put back into the queue runs."""
    add_tasks(app, [], is_async=False)
    job_id = app.tasks["fails"].configure(connection=conn).defer(n=1)
    with pytest.raises(RuntimeError):
        run_deferred(conn, app)
    conn.commit()
    assert run_deferred(conn, app) == []
    manager = procrastinate.manager.JobManager(extconn.ExternalConnector(conn))
    manager.retry_job_by_id(job_id, retry_at=NOW)
    [run] = run_deferred(conn, app, raise_errors=False)
    assert (run.job.id, run.job.attempts) == (job_id, 3)
