"""What tests of people's own code stand on."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import psycopg_pool
import pytest
from holding import External, Watch
from procrastinate.manager import JobManager

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, done, run
from procrastinate_extconn.testing import (
    StrictInMemoryConnector,
    assert_deferred,
    assert_not_deferred,
    deferred_jobs,
)

# -- assert_deferred and deferred_jobs --------------------------------------------------------------------------------


def test_looks_inside_the_transaction(kind: Kind, dsn: str, task: Any, watch: Watch) -> None:
    """A job is found on the connection that deferred it, before it is committed, and nowhere else."""

    async def body(held: Held) -> None:
        on_conn = task.configure(connection=held.conn, queue="letters")
        if kind.is_async:
            job_id = await on_conn.defer_async(order_id=42, tags=["a", "b"])
        else:
            job_id = on_conn.defer(order_id=42, tags=["a", "b"])
        job = await done(assert_deferred(held.conn, task, order_id=42, tags=("a", "b")))
        assert (job.id, job.queue) == (job_id, "letters")
        assert [job.id for job in await done(deferred_jobs(held.conn))] == [job_id]
        assert watch.jobs() == []
        with pytest.raises(AssertionError, match="order_id=41"):
            await done(assert_deferred(held.conn, task, order_id=41))

    run(kind, dsn, body)


@pytest.fixture
def conn(dsn: str) -> Any:
    """A psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


def test_difference(conn: Any, task: Any) -> None:
    """A failure shows the jobs that come closest, and of each only what differs beside what does not."""
    for order_id, customer in (1, "ada"), (2, "eve"), (3, "bob"), (4, "bob"):
        task.configure(connection=conn).defer(order_id=order_id, customer=customer, late=True)
    with pytest.raises(AssertionError) as caught:
        assert_deferred(conn, task, order_id=2, customer="ada", late=True)
    assert str(caught.value).splitlines() == [
        "no job of process_order waits with these arguments (- expected, + deferred):",
        "job 1:",
        "    customer='ada'",
        "    late=True",
        "  - order_id=2",
        "  + order_id=1",
        "job 2:",
        "  - customer='ada'",
        "  + customer='eve'",
        "    late=True",
        "    order_id=2",
        "job 3:",
        "  - customer='ada'",
        "  + customer='bob'",
        "    late=True",
        "  - order_id=2",
        "  + order_id=3",
        "and 1 more",
    ]


def test_difference_of_an_argument_that_is_missing(conn: Any, task: Any) -> None:
    """An argument too many, or too few, is a difference as well."""
    task.configure(connection=conn).defer()
    with pytest.raises(AssertionError) as caught:
        assert_deferred(conn, task, order_id=1)
    assert str(caught.value).splitlines()[2:] == ["  - order_id=1", "  + (no arguments)"]


def test_no_job_of_that_task(conn: Any, app: procrastinate.App) -> None:
    """Where no job of the task waits, the failure says which jobs do."""
    with pytest.raises(
        AssertionError,
        match="no job of process_order waits on this connection; the jobs that do: none",
    ):
        assert_deferred(conn, "process_order")
    app.configure_task("other", connection=conn).batch_defer({}, {})
    with pytest.raises(AssertionError, match=r"the jobs that do: other \(2\)"):
        assert_deferred(conn, "process_order")


def test_failure_points_at_the_test(conn: Any) -> None:
    """What pytest shows of a failure ends with the line of the test, not with a line of the helper."""
    with pytest.raises(AssertionError) as caught:
        assert_deferred(conn, "process_order")
    shown = caught.traceback.filter(caught)
    assert [entry.path for entry in shown] == [Path(__file__)]


def test_not_deferred(kind: Kind, dsn: str, task: Any) -> None:
    """Without arguments each job of the task counts, with arguments only a job with just these."""

    async def body(held: Held) -> None:
        await done(assert_not_deferred(held.conn, task))
        on_conn = task.configure(connection=held.conn)
        await done(on_conn.defer_async(n=1, m=2) if kind.is_async else on_conn.defer(n=1, m=2))
        await done(assert_not_deferred(held.conn, "other"))
        await done(assert_not_deferred(held.conn, task, n=1))
        with pytest.raises(AssertionError, match="process_order wait"):
            await done(assert_not_deferred(held.conn, task))
        with pytest.raises(AssertionError, match="n=1"):
            await done(assert_not_deferred(held.conn, task, m=2, n=1))

    run(kind, dsn, body)


def test_unwanted_jobs_are_shown(conn: Any, task: Any) -> None:
    """The failure shows the first jobs with their arguments, and how many there are."""
    for n in range(4):
        task.configure(connection=conn).defer(n=n)
    with pytest.raises(AssertionError) as caught:
        assert_not_deferred(conn, task)
    assert str(caught.value).splitlines() == [
        "jobs of process_order wait, which should not (4):",
        *("job 1:", "    n=0", "job 2:", "    n=1", "job 3:", "    n=2"),
        "and 1 more",
    ]


def test_cancelled_job_does_not_wait(conn: Any, task: Any) -> None:
    """A job that was cancelled is deferred no more."""
    job_id = task.configure(connection=conn).defer()
    JobManager(extconn.ExternalConnector(conn)).cancel_job_by_id(job_id)
    assert deferred_jobs(conn) == []


def test_arguments_as_the_app_writes_them(conn: Any, dsn: str) -> None:
    """Arguments are compared as the app's own json_dumps and json_loads have them."""

    def dumps(value: Any) -> str:
        return json.dumps(value, default=lambda date: {"date": date.isoformat()})

    def loads(text: str) -> Any:
        return json.loads(text, object_hook=lambda it: _date(it["date"]) if "date" in it else it)

    connector = procrastinate.SyncPsycopgConnector(conninfo=dsn, json_dumps=dumps, json_loads=loads)
    app = extconn.patch(procrastinate.App(connector=connector))
    task = app.task(name="bill")(lambda **arguments: None)
    task.configure(connection=conn).defer(due=_date("2030-01-02"))
    job = assert_deferred(conn, task, due=_date("2030-01-02"))
    assert job.task_kwargs == {"due": _date("2030-01-02")}
    with pytest.raises(AssertionError, match=r"- due=datetime.date\(2030, 1, 3\)"):
        assert_deferred(conn, task, due=_date("2030-01-03"))


def _date(text: str) -> datetime.date:
    return datetime.date.fromisoformat(text)


# -- StrictInMemoryConnector ------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> StrictInMemoryConnector:
    """A connector in memory."""
    return StrictInMemoryConnector()


@pytest.fixture
def unit(memory: StrictInMemoryConnector) -> Any:
    """A task of an app in memory."""
    return procrastinate.App(connector=memory).task(name="unit")(lambda **arguments: None)


def test_job_stays_in_memory(memory: Any, unit: Any, conn: Any, watch: Watch) -> None:
    """A job that is deferred on a connection is in memory, and nothing is sent."""
    job_id = unit.configure(connection=conn).defer(order_id=42)
    assert memory.jobs[job_id]["args"] == {"order_id": 42}
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_options_in_memory(memory: Any, unit: Any, conn: Any) -> None:
    """A connection with options is one as well."""
    unit.configure(connection=extconn.external(conn, on_conflict="existing")).defer()
    assert len(memory.jobs) == 1


async def test_job_stays_in_memory_async(memory: Any, unit: Any, dsn: str) -> None:
    """So it is with an async one."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await unit.configure(connection=conn).defer_async(order_id=42)
    assert len(memory.jobs) == 1


def test_every_kind_in_memory(external: External, memory: Any, unit: Any) -> None:
    """Everything that a real connector takes is taken."""
    if external.kind.in_greenlet:
        pytest.skip("Procrastinate's connector in memory takes no sync call where a loop runs")
    external.defer(unit)
    assert len(memory.jobs) == 1


def test_memory_refuses_a_pool(memory: Any, unit: Any, dsn: str) -> None:
    """A pool is refused, as by a real connector."""
    pool = psycopg_pool.ConnectionPool(dsn, open=False)
    with pytest.raises(extconn.UnsupportedConnection, match=r"pool\.connection\(\)"):
        unit.configure(connection=pool).defer()
    assert memory.jobs == {}


def test_memory_refuses_a_stand_in(memory: Any, unit: Any) -> None:
    """An object that is no connection at all is refused."""
    with pytest.raises(extconn.UnsupportedConnection, match="no plugin takes it"):
        unit.configure(connection=object()).defer()
    assert memory.jobs == {}


def test_memory_refuses_a_closed_connection(memory: Any, unit: Any, conn: Any) -> None:
    """A closed connection is refused."""
    conn.close()
    with pytest.raises(extconn.UnusableConnection, match="closed"):
        unit.configure(connection=conn).defer()
    assert memory.jobs == {}


async def test_memory_refuses_the_other_kind_of_call(
    memory: Any, unit: Any, dsn: str, conn: Any
) -> None:
    """A sync call on an async connection is refused, and the reverse."""
    with pytest.raises(extconn.SyncAsyncMismatch):
        await unit.configure(connection=conn).defer_async()
    async with await psycopg.AsyncConnection.connect(dsn) as async_conn:
        with pytest.raises(extconn.SyncAsyncMismatch):
            unit.configure(connection=async_conn).defer()
    assert memory.jobs == {}


def test_memory_in_a_block(
    installed: None, memory: Any, unit: Any, conn: Any, watch: Watch
) -> None:
    """A job that is deferred in a `using` block stays in memory as well, and nothing is sent."""
    with extconn.using(conn):
        job_id = unit.defer(order_id=42)
        assert unit.blueprint.job_manager.get_job_status(job_id).value == "todo"
    assert memory.jobs[job_id]["args"] == {"order_id": 42}
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert watch.jobs() == []


async def test_memory_refuses_in_a_block(
    installed: None, memory: Any, unit: Any, dsn: str, conn: Any
) -> None:
    """In a `using` block too, a sync/async mismatch, another task and a closed connection are refused."""
    with extconn.using(conn), pytest.raises(extconn.SyncAsyncMismatch):
        await unit.defer_async()
    async with await psycopg.AsyncConnection.connect(dsn) as async_conn:
        with extconn.using(async_conn):
            with pytest.raises(extconn.SyncAsyncMismatch):
                unit.defer()
            with pytest.raises(extconn.ExternalConnectionError, match="belongs to"):
                await asyncio.create_task(unit.defer_async())
            await async_conn.close()
            with pytest.raises(extconn.UnusableConnection):
                await unit.batch_defer_async({}, {})
    assert memory.jobs == {}


def test_memory_refuses_a_worker_in_a_block(
    installed: None, memory: Any, unit: Any, conn: Any
) -> None:
    """A worker is refused in a block, and runs the jobs after it."""
    run_worker = functools.partial(
        unit.blueprint.run_worker, wait=False, install_signal_handlers=False, listen_notify=False
    )
    with extconn.using(conn):
        unit.defer()
        with pytest.raises(extconn.ExternalConnectionError, match="worker"):
            run_worker()
    run_worker()
    assert [job["status"] for job in memory.jobs.values()] == ["succeeded"]


def test_memory_warns_outside_a_transaction(unit: Any, dsn: str) -> None:
    """The transaction guard is on."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        with pytest.warns(extconn.OutsideTransactionWarning):
            unit.configure(connection=conn).defer()
        strict = extconn.external(conn, outside_transaction="error")
        with pytest.raises(extconn.OutsideTransaction):
            unit.configure(connection=strict).defer()


def test_memory_refuses_what_is_not_json(memory: Any, unit: Any, conn: Any) -> None:
    """Arguments that are not JSON are refused."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        unit.configure(connection=conn).defer(when=datetime.date(2030, 1, 1))
    assert memory.jobs == {}


@pytest.mark.skipif(
    not hasattr(procrastinate.connector.BaseConnector, "execute_query_one_with_connection"),
    reason="this Procrastinate cancels on its own connections alone",
)
def test_memory_cancels(memory: Any, unit: Any, conn: Any, dsn: str) -> None:
    """Cancel and status take the same connections."""
    job_id = unit.configure(connection=conn).defer()
    manager = unit.blueprint.job_manager
    assert manager.cancel_job_by_id(job_id, connection=conn)
    assert manager.get_job_status(job_id, connection=conn).value == "cancelled"
    with pytest.raises(extconn.UnsupportedConnection):
        manager.get_job_status(job_id, connection=object())


# -- the module -------------------------------------------------------------------------------------------------------


def test_needs_no_pytest() -> None:
    """An application's tests need neither pytest nor hypothesis."""
    program = (
        "import sys; from procrastinate_extconn.testing import assert_deferred, deferred_jobs, rolled_back, "
        "StrictInMemoryConnector; sys.exit(bool({'pytest', 'hypothesis'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
