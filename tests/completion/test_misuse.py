"""Options of the connection, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg
import pytest
from completion.tasks import Complete, work_off, write
from holding import Watch
from procrastinate.testing import InMemoryConnector
from procrastinate.worker import Worker

import procrastinate_extconn as extconn
from procrastinate_extconn.completion import settlement
from procrastinate_extconn.kinds import Held, Kind, done


async def test_options_of_the_connection_apply(
    app: procrastinate.App, define: Callable[..., Any], one_of_few: Kind, watch: Watch
) -> None:
    """What `external` made of a connection is taken as the connection is."""

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write(context, held)
        await done(complete(context, extconn.external(held.conn, savepoint=True)))
        await done(held.commit())

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"


async def test_a_connection_that_commits_by_itself_can_be_refused(
    app: procrastinate.App, dsn: str, watch: Watch
) -> None:
    """The mode of the transaction guard holds for `complete` too, and nothing is sent."""
    extconn.patch(app, outside_transaction="error")

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            with pytest.raises(extconn.OutsideTransaction):
                extconn.complete(context, conn)
            assert watch.job(context.job.id or 0)["status"] == "doing"
            with conn.transaction():
                extconn.complete(context, conn)

    with extconn.standalone():
        job_id = await work.defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"


async def test_the_other_kind_of_call_is_refused(
    app: procrastinate.App, dsn: str, watch: Watch
) -> None:
    """A sync connection in `complete_async`, and the reverse, are refused by name."""

    @app.task(pass_context=True)
    async def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn) as conn, pytest.raises(extconn.SyncAsyncMismatch):
            await extconn.complete_async(context, conn)
        async with await psycopg.AsyncConnection.connect(dsn) as async_conn:
            with pytest.raises(extconn.SyncAsyncMismatch):
                extconn.complete(context, async_conn)
            await extconn.complete_async(context, async_conn)

    job_id = await work.defer_async()
    await work_off(app)
    assert watch.job(job_id)["status"] == "succeeded"


async def test_a_worker_without_the_layer_is_refused(dsn: str, watch: Watch) -> None:
    """Where nothing is installed `complete` says so, for the worker would not understand."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        with psycopg.connect(dsn) as conn:
            extconn.complete(context, conn)

    async with app.open_async():
        job_id = await work.defer_async()
        await work_off(app)
        assert watch.job(job_id)["status"] == "failed"
        extconn.patch(app)
        job_id = await work.defer_async()
        await work_off(app)
        assert watch.job(job_id)["status"] == "succeeded"
        extconn.unpatch(app)


async def test_another_worker_than_the_known_one_is_refused(
    app: procrastinate.App,
    define: Callable[..., Any],
    one_of_few: Kind,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Procrastinate whose worker ends jobs in some other way fails the task, not the guarantee."""
    refused: list[str] = []
    monkeypatch.setitem(settlement._HANDLERS, (Worker, "_renamed"), lambda call: call())

    async def body(context: procrastinate.JobContext, held: Held, complete: Complete) -> None:
        await write(context, held)
        with pytest.raises(extconn.ExternalConnectionError) as refusal:
            await done(complete(context, held.conn))
        refused.append(str(refusal.value))
        raise refusal.value

    job_id = await define(one_of_few, body).defer_async()
    await work_off(app)
    assert "has no Worker._renamed" in refused[0]
    assert watch.job(job_id)["status"] == "failed"
    assert watch.orders() == []


def test_a_job_in_memory_is_left_to_its_worker(installed: None) -> None:
    """A unit test on an InMemoryConnector needs no database for a task that completes itself."""
    app = procrastinate.App(connector=InMemoryConnector())

    @app.task(pass_context=True)
    def work(context: procrastinate.JobContext) -> None:
        extconn.complete(context, object())

    work.defer()
    app.run_worker(wait=False, install_signal_handlers=False, listen_notify=False)
    [job] = app.connector.jobs.values()
    assert job["status"] == "succeeded"
