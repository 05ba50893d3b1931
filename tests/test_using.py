"""In a `using` block the connection need not be handed down, and cannot be used by anybody else."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import External, Watch, opened, opened_async, run_python, unopened
from procrastinate.testing import InMemoryConnector

import procrastinate_extconn as extconn

Task = Any


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A plain psycopg connection."""
    with contextlib.closing(psycopg.connect(dsn)) as conn:
        yield conn


def in_block(external: External, conn: Any, call: Callable[[], Any]) -> Any:
    """Make *call* inside a block, where the connection is at home."""
    if not external.kind.is_async:

        def inside() -> Any:
            with extconn.using(conn):
                return call()

        return external.run(inside)

    async def inside_async() -> Any:
        with extconn.using(conn):
            return await call()

    return external.run(inside_async)


@pytest.fixture(
    params=[
        (procrastinate.PsycopgConnector, unopened),
        (procrastinate.PsycopgConnector, opened),
        (procrastinate.PsycopgConnector, opened_async),
        (procrastinate.SyncPsycopgConnector, opened),
    ],
    ids=lambda param: f"{param[0].__name__}-{param[1].__name__}",
)
def any_app(
    request: pytest.FixtureRequest, installed: None, dsn: str
) -> Iterator[procrastinate.App]:
    """A sync or async app, opened in each way."""
    connector, state = request.param
    app = procrastinate.App(connector=connector(conninfo=dsn, min_size=1))
    with state(app):
        yield app


def test_every_call_of_the_manager_runs_on_the_connection(
    external: External, any_app: procrastinate.App, watch: Watch
) -> None:
    """Defer, batch, status, list and cancel see and change the open transaction, which then decides."""
    task = any_app.task(name="process_order")(lambda **arguments: None)
    manager = any_app.job_manager
    suffix = "_async" if external.kind.is_async else ""

    def ask(target: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        call = getattr(target, method + suffix)
        return in_block(external, external.conn, lambda: call(*args, **kwargs))

    first = ask(task, "defer", order_id=1)
    batch = ask(task, "batch_defer", {"order_id": 2}, {"order_id": 3})
    assert ask(manager, "get_job_status", first).value == "todo"
    assert [job.id for job in ask(manager, "list_jobs")] == [first, *batch]
    assert ask(manager, "cancel_job_by_id", first)
    assert watch.jobs() == []
    external.commit()
    assert [watch.job(job_id)["status"] for job_id in (first, *batch)] == [
        "cancelled",
        "todo",
        "todo",
    ]


def test_an_explicit_connection_wins(dsn: str, conn: Any, task: Task, watch: Watch) -> None:
    """`configure(connection=other)` inside a block defers on the other one."""
    with psycopg.connect(dsn) as other, extconn.using(conn):
        job_id = task.configure(connection=other).defer()
        other.commit()
    conn.rollback()
    assert watch.jobs() == [job_id]


def test_blocks_nest(dsn: str, conn: Any, task: Task, watch: Watch) -> None:
    """The innermost block decides, and the outer one is there again after it."""
    with psycopg.connect(dsn) as inner, extconn.using(conn):
        with extconn.using(inner):
            inside = task.defer()
        task.defer()
        inner.commit()
    conn.rollback()
    assert watch.jobs() == [inside]


def test_options_apply(conn: Any, task: Task) -> None:
    """The options of `external` hold for every call in the block."""
    with extconn.using(extconn.external(conn, on_conflict="existing")):
        first = task.configure(queueing_lock="one").defer()
        assert task.configure(queueing_lock="one").defer() == first


def test_after_the_block_the_app_is_as_before(conn: Any, task: Task, watch: Watch) -> None:
    """Outside the block, also after an exception, a job goes through the app's own connector."""
    with pytest.raises(LookupError), extconn.using(conn):
        raise LookupError
    task.blueprint.open()
    job_id = task.defer()
    task.blueprint.close()
    assert watch.jobs() == [job_id]


def test_nothing_is_kept_of_the_connection(dsn: str, task: Task) -> None:
    """A context that was copied inside the block does not keep the connection alive."""
    conn = psycopg.connect(dsn)
    with extconn.using(conn):
        context = contextvars.copy_context()
    conn.close()
    reference = weakref.ref(conn)
    del conn
    gc.collect()
    assert reference() is None
    del context


@pytest.mark.parametrize("ended", [False, True], ids=["during the block", "after the block"])
def test_a_thread_that_inherits_the_context_is_refused(conn: Any, task: Task, ended: bool) -> None:
    """A thread gets an error that explains it, and nothing is sent."""
    with extconn.using(conn):
        context = contextvars.copy_context()
        if not ended:
            error = _in_thread(context, task)
    if ended:
        error = _in_thread(context, task)
    assert "belongs to" in str(error)
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_that_was_forked_is_refused(dsn: str) -> None:
    """A process that is forked inside a block gets the same error, and the block goes on."""
    printed = run_python(
        """
        import os, procrastinate, psycopg
        import procrastinate_extconn as extconn

        extconn.install()
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
        task = app.configure_task("work")
        with psycopg.connect(dsn) as conn, extconn.using(conn):
            if os.fork() == 0:
                try:
                    task.defer()
                except extconn.ExternalConnectionError as exc:
                    print(exc, flush=True)
                os._exit(0)
            os.wait()
            print(task.defer())
        """,
        dsn=dsn,
    )
    refusal, job_id = printed.splitlines()
    assert "inherited a using() block" in refusal
    assert job_id == "1"


def _in_thread(context: contextvars.Context, task: Task) -> extconn.ExternalConnectionError:
    caught: list[Any] = []

    def defer() -> None:
        try:
            context.run(task.defer)
        except extconn.ExternalConnectionError as exc:
            caught.append(exc)

    thread = threading.Thread(target=defer)
    thread.start()
    thread.join()
    return caught[0]


def test_a_block_left_in_another_context_says_so(installed: None, conn: Any) -> None:
    """A block that two calls to a thread pool enter and leave, and nobody between them saw, does not end in silence."""
    block = extconn.using(conn)
    contextvars.copy_context().run(block.__enter__)
    with pytest.raises(extconn.ExternalConnectionError, match="entered in one context and left"):
        contextvars.copy_context().run(block.__exit__, None, None, None)


async def test_a_child_task_is_refused(dsn: str, task: Task) -> None:
    """A task that is started in the block gets an error; the one that entered it goes on."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        with extconn.using(conn):
            with pytest.raises(extconn.ExternalConnectionError, match="belongs to"):
                await asyncio.create_task(task.defer_async())
            assert await task.defer_async()
        await conn.rollback()


async def test_what_starts_a_task_is_named(dsn: str, task: Task) -> None:
    """`wait_for` defers like any other call, or, on a Python where it starts a task, is named by the error."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        with extconn.using(conn):
            if sys.version_info >= (3, 12):
                assert await asyncio.wait_for(task.defer_async(), 60)
            else:
                with pytest.raises(extconn.ExternalConnectionError, match="wait_for"):
                    await asyncio.wait_for(task.defer_async(), 60)
        await conn.rollback()


async def test_two_tasks_have_blocks_of_their_own(dsn: str, task: Task, watch: Watch) -> None:
    """Each of two tasks that run at once defers on its own connection."""

    async def order(commit: bool) -> int:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            with extconn.using(conn):
                job_id: int = await task.defer_async()
            await (conn.commit() if commit else conn.rollback())
        return job_id

    kept, _ = await asyncio.gather(order(True), order(False))
    assert watch.jobs() == [kept]


def test_without_a_patched_connector_the_block_is_refused(dsn: str) -> None:
    """A block that would do nothing says so."""
    # In a process of its own: here, an app of another test's may not have been collected yet.
    refusal = run_python(
        """
        import psycopg, procrastinate_extconn as extconn

        with psycopg.connect(dsn) as conn:
            try:
                with extconn.using(conn):
                    pass
            except extconn.ExternalConnectionError as exc:
                print(exc)
        """,
        dsn=dsn,
    )
    assert "install()" in refusal


def test_a_wrong_object_is_refused_at_once(installed: None) -> None:
    """What is no connection is refused when the block is entered, not at the first job."""
    with pytest.raises(extconn.UnsupportedConnection), extconn.using(object()):
        pass


def test_a_closed_connection_is_refused(conn: Any, task: Task) -> None:
    """A job deferred on a connection that was closed in the block goes nowhere, with an error."""
    with extconn.using(conn):
        conn.close()
        with pytest.raises(extconn.UnusableConnection):
            task.defer()


async def test_the_other_kind_of_call_is_refused(conn: Any, task: Task) -> None:
    """An asynchronous call in a block with a synchronous connection does not fall through to the app."""
    with extconn.using(conn), pytest.raises(extconn.SyncAsyncMismatch):
        await task.defer_async()


async def test_a_decorated_coroutine_runs_in_the_block(dsn: str, task: Task, watch: Watch) -> None:
    """`@using(conn)` holds for the whole of an async function, and a generator is refused."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:

        @extconn.using(conn)
        async def order() -> None:
            await task.defer_async()

        await order()
        await conn.rollback()
        with pytest.raises(TypeError, match="generator"):

            @extconn.using(conn)
            def orders() -> Iterator[int]:
                yield 1

    assert watch.jobs() == []


def test_blocks_that_end_in_another_order(dsn: str, conn: Any, task: Task, watch: Watch) -> None:
    """A block that is left does not take another one along, which was entered after it and is open."""
    with psycopg.connect(dsn) as other:
        first, second = extconn.using(conn), extconn.using(other)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        task.defer()
        second.__exit__(None, None, None)
        other.rollback()
    assert watch.jobs() == []
    with extconn.using(conn):
        kept = task.defer()
    conn.commit()
    assert watch.jobs() == [kept]


async def test_a_task_that_leaves_a_block_open(
    dsn: str, app: procrastinate.App, task: Task, watch: Watch
) -> None:
    """A worker ends a job whose task has left a generator unfinished that holds a block."""
    generators: list[Any] = []

    async def transaction() -> AsyncIterator[None]:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            with extconn.using(conn):
                yield

    @app.task(name="leaves")
    async def leaves() -> None:
        generators.append(transaction())
        await anext(generators[0])

    async with app.open_async():
        job_id = await leaves.defer_async()
        await app.run_worker_async(wait=False, listen_notify=False, install_signal_handlers=False)
    assert watch.job(job_id)["status"] == "succeeded"
    with contextlib.suppress(extconn.ExternalConnectionError):
        await generators[0].aclose()


class Commenting(procrastinate.SyncPsycopgConnector):
    """A connector of somebody's that writes where a query comes from."""

    def execute_query_one(self, query: Any, **arguments: Any) -> dict[str, Any]:
        return super().execute_query_one(f"/* web */ {query}", **arguments)

    def execute_query_all(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:
        return super().execute_query_all(f"/* web */ {query}", **arguments)


def test_a_query_with_a_comment(dsn: str, conn: Any, installed: None, watch: Watch) -> None:
    """A connector that adds a comment to each query is in the block, and a call without one is judged."""
    with procrastinate.App(connector=Commenting(conninfo=dsn)).open() as app:
        task = app.configure_task("work")
        with extconn.using(conn):
            task.defer()
        conn.rollback()
        assert watch.jobs() == []
        extconn.patch(app, without_connection="error")
        with pytest.raises(extconn.OutsideTransaction):
            task.defer()
        extconn.unpatch(app)


async def test_a_worker_does_not_start_in_a_block(dsn: str, app: procrastinate.App) -> None:
    """A worker that is started in a block is refused with the reason."""
    async with app.open_async(), await psycopg.AsyncConnection.connect(dsn) as conn:
        with extconn.using(conn), pytest.raises(extconn.ExternalConnectionError, match="worker"):
            await app.run_worker_async(
                wait=False, listen_notify=False, install_signal_handlers=False
            )


async def test_a_worker_outside_is_not_affected(
    dsn: str, app: procrastinate.App, task: Task, watch: Watch
) -> None:
    """A job that opens a block itself is run and finished as any other."""

    @app.task(name="nested")
    async def nested() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            with extconn.using(conn):
                await task.defer_async()

    async with app.open_async():
        job_id = await nested.defer_async()
        await app.run_worker_async(wait=False, listen_notify=False, install_signal_handlers=False)
    assert [watch.job(one)["status"] for one in (job_id, job_id + 1)] == ["succeeded"] * 2


def test_in_memory_stays_in_memory(conn: Any, task: Task) -> None:
    """An in-memory app keeps its jobs to itself, block or not."""
    connector = InMemoryConnector()
    with task.blueprint.replace_connector(connector), extconn.using(conn):
        task.defer(order_id=1)
    assert [job["args"] for job in connector.jobs.values()] == [{"order_id": 1}]


def test_an_external_connector_keeps_to_its_own(dsn: str, conn: Any, task: Task) -> None:
    """An explicit `ExternalConnector` ignores the block."""
    with psycopg.connect(dsn) as other, extconn.using(conn):
        task.defer()
        manager = procrastinate.manager.JobManager(extconn.ExternalConnector(other))
        assert manager.list_jobs() == []


def test_the_schema_is_never_ambient(dsn: str, conn: Any, app: procrastinate.App) -> None:
    """Applying the schema inside a block goes to the app's own connection."""
    with app.open(), extconn.using(conn):
        conn.execute("SELECT 1")
        app.connector.get_sync_connector().execute_query("CREATE TABLE outside (id int)")
    conn.rollback()
    conn.execute("SELECT * FROM outside")
