"""A real worker runs what was committed, once, and never what was rolled back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import Watch, hold
from procrastinate.exceptions import ConnectorException

from procrastinate_extconn import ExternalConnector
from procrastinate_extconn.kinds import Kind


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: no test leaves a job to do."""
    return new_database()


@pytest.fixture
def ran(app: procrastinate.App) -> list[int]:
    """The orders that the task was run for."""
    ran: list[int] = []

    @app.task(name="process_order")
    def process_order(order_id: int) -> None:
        ran.append(order_id)

    return ran


async def work(app: procrastinate.App, times: int = 1, **options: Any) -> None:
    """Run a worker in *app*, until nothing is left to do unless it is told otherwise."""
    options = {"wait": False, "listen_notify": False, **options}
    async with app.open_async():
        for _ in range(times):
            await app.run_worker_async(install_signal_handlers=False, **options)


def test_a_worker_runs_what_was_committed(
    kind: Kind, dsn: str, app: procrastinate.App, ran: list[int], watch: Watch
) -> None:
    """A committed job is run once, on every kind of connection, and one that was rolled back never is."""
    task = app.tasks["process_order"]
    with hold(kind, dsn) as external:
        job_id = external.defer(task, order_id=1)
        external.commit()
    with hold(kind, dsn) as external:
        external.defer(task, order_id=2)
        external.rollback()
    asyncio.run(work(app, times=2))
    assert ran == [1]
    assert watch.job(job_id)["status"] == "succeeded"


async def test_the_commit_wakes_a_worker(installed: None, new_database: Callable[[], str]) -> None:
    """A worker that waits for a notification gets it with the commit."""
    dsn = new_database()
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
    ran = asyncio.Event()

    @app.task(name="process_order")
    async def process_order() -> None:
        ran.set()

    waiting = work(app, wait=True, listen_notify=True, fetch_job_polling_interval=3600)
    worker = asyncio.create_task(waiting)
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        while not await listeners(conn):
            await conn.rollback()
            assert not worker.done(), worker.result()
        # Several, as Procrastinate's worker may miss one that comes while it looks for jobs.
        while not ran.is_set() and not worker.done():
            await process_order.configure(connection=conn).defer_async()
            await conn.commit()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ran.wait(), timeout=1)
    assert not worker.done(), worker.result()
    worker.cancel()
    await asyncio.wait([worker])


async def listeners(conn: psycopg.AsyncConnection[Any]) -> int:
    """How many others listen in this database, and have nothing else to do."""
    cursor = await conn.execute(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND state = 'idle' AND query LIKE 'LISTEN %'"
    )
    (count,) = await cursor.fetchone()
    return count


def test_a_task_defers_in_a_transaction_of_its_own(
    dsn: str, app: procrastinate.App, ran: list[int]
) -> None:
    """What a task defers on its own connection is run by the same worker after the commit."""

    @app.task(name="split_order")
    def split_order() -> None:
        with psycopg.connect(dsn) as conn:
            deferrer = app.tasks["process_order"].configure(connection=conn)
            deferrer.defer(order_id=3)
            conn.commit()
            deferrer.defer(order_id=4)
            conn.rollback()

    with psycopg.connect(dsn) as conn:
        split_order.configure(connection=conn).defer()
    asyncio.run(work(app))
    assert ran == [3]


async def test_a_worker_does_not_run_on_an_external_connection(dsn: str) -> None:
    """A worker needs connections of its own, and is told so before it takes a job."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        app = procrastinate.App(connector=ExternalConnector(conn))
        with pytest.raises(ConnectorException, match="a worker does not run on"):
            await app.run_worker_async(
                wait=False, listen_notify=False, install_signal_handlers=False
            )
