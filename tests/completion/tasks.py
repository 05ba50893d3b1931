"""Tasks that complete themselves, and workers that run them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import procrastinate
import psycopg
import pytest

from procrastinate_extconn.kinds import Held, all_kinds, done

Complete = Callable[[procrastinate.JobContext, object], Any]
Body = Callable[[procrastinate.JobContext, Held, Complete], Awaitable[object]]

FEW = [
    kind
    for kind in all_kinds()
    if kind.id
    in (
        "psycopg",
        "psycopg-async",
        "sqlalchemy-session-psycopg",
        "sqlalchemy-async-session-asyncpg",
    )
]
"""Sync and async, on a driver and through SQLAlchemy."""

FEW_ASYNC = [kind for kind in FEW if kind.is_async]


async def work_off(app: procrastinate.App, **options: Any) -> None:
    """Run a worker until there is nothing left to do."""
    worker = app.run_worker_async(
        wait=False, install_signal_handlers=False, listen_notify=False, **options
    )
    await asyncio.wait_for(worker, 60)


async def write(context: procrastinate.JobContext, held: Held) -> None:
    """Leave a trace of this run, which nobody sees before it is committed."""
    assert context.job.id
    order_id = context.job.id * 100 + context.job.attempts
    await done(held.execute(f"INSERT INTO orders (id) VALUES ({order_id})"))


async def write_and_complete(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Do what a task does, but for the commit."""
    await write(context, held)
    await done(complete(context, held.conn))


async def write_complete_and_commit(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Do all that a task does."""
    await write_and_complete(context, held, complete)
    await done(held.commit())


async def rolls_back_and_raises(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Fail after `complete`, as a task does whose commit fails."""
    await write_and_complete(context, held, complete)
    await done(held.rollback())
    raise ZeroDivisionError


async def rolls_back_and_returns(
    context: procrastinate.JobContext, held: Held, complete: Complete
) -> None:
    """Forget to commit."""
    await write_and_complete(context, held, complete)
    await done(held.rollback())


def events(dsn: str, job_id: int) -> list[str]:
    """What has happened to a job."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT type FROM procrastinate_events WHERE job_id = %s ORDER BY id", [job_id]
        )
        return [row[0] for row in rows]


def actions(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What was logged, by the word that both Procrastinate and we add to a record."""
    return [
        record.__dict__["action"]
        for record in caplog.records
        if record.levelno >= level and "action" in record.__dict__
    ]


@contextlib.asynccontextmanager
async def working(app: procrastinate.App, **options: Any) -> AsyncIterator[None]:
    """Run a worker beside the test."""
    worker = asyncio.create_task(
        app.run_worker_async(
            install_signal_handlers=False,
            listen_notify=False,
            fetch_job_polling_interval=0.05,
            **options,
        )
    )
    yield
    worker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(worker, 60)


async def until(condition: Callable[[], object]) -> None:
    """Look again and again, until the test's own time-out."""
    while not condition():  # noqa: ASYNC110 - the database sets no event
        await asyncio.sleep(0.02)
