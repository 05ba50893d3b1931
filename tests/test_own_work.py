"""Procrastinate's own work is never refused, and what a worker runs is an application like any other."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import run_python
from procrastinate import builtin_tasks, cli
from procrastinate.shell import ProcrastinateShell
from procrastinate.utils import sync_to_async

import procrastinate_extconn as extconn
from procrastinate_extconn import own_work
from procrastinate_extconn.testing import StrictInMemoryConnector

has_middlewares = importlib.util.find_spec("procrastinate.middleware") is not None
needs_middlewares = pytest.mark.skipif(not has_middlewares, reason="middlewares came with 3.9")


@pytest.fixture(params=["psycopg", "memory"])
def app(request: pytest.FixtureRequest, dsn: str) -> Iterator[procrastinate.App]:
    """An app whose forgotten connections are errors, and so are connections that commit by themselves."""
    extconn.install(outside_transaction="error", without_connection="error")
    if request.param == "psycopg":
        connector: Any = procrastinate.PsycopgConnector(conninfo=dsn, min_size=1)
    else:
        connector = StrictInMemoryConnector()
    yield procrastinate.App(connector=connector)
    extconn.uninstall()


class Outcome:
    """What came of deferring without a connection, by who tried."""

    def __init__(self, app: procrastinate.App) -> None:
        self._app = app
        self.refused: list[str] = []

    def defer(self, who: str) -> None:
        """Defer by a sync call."""
        try:
            self._app.configure_task("never").defer()
        except extconn.OutsideTransaction:
            self.refused.append(who)

    async def defer_async(self, who: str) -> None:
        """Defer by an async call."""
        try:
            await self._app.configure_task("never").defer_async()
        except extconn.OutsideTransaction:
            self.refused.append(who)


@contextlib.asynccontextmanager
async def working(app: procrastinate.App, **options: Any) -> AsyncIterator[None]:
    """Run a worker during the block."""
    worker = asyncio.create_task(
        app.run_worker_async(
            install_signal_handlers=False, listen_notify=False, **{"wait": True, **options}
        )
    )
    try:
        yield
    finally:
        if options.get("wait", True):
            worker.cancel()
        await asyncio.wait([worker])
        if not worker.cancelled():
            worker.result()


async def work_off(app: procrastinate.App, **options: Any) -> None:
    """Run a worker until nothing is left to do."""
    async with working(app, wait=False, **options):
        pass


async def statuses(app: procrastinate.App) -> dict[str, str]:
    """The status of each task's job."""
    return {job.task_name: str(job.status) for job in await app.job_manager.list_jobs_async()}


async def test_a_worker_is_not_hindered(app: procrastinate.App) -> None:
    """Jobs end, fail, are retried, aborted, and deleted where the worker was told so; none is refused."""
    attempts = []

    @app.task(name="flaky", retry=1)
    def flaky() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise LookupError

    app.task(name="fine")(lambda: None)
    app.task(name="failing")(lambda: 1 / 0)
    async with app.open_async():
        with extconn.standalone():
            for name in "flaky", "fine", "failing", "unknown":
                await app.configure_task(name).defer_async()
        await work_off(app)
        assert await statuses(app) == {
            "flaky": "succeeded",
            "fine": "succeeded",
            "failing": "failed",
            "unknown": "failed",
        }
        with extconn.standalone():
            await app.configure_task("fine").defer_async()
        await work_off(app, delete_jobs="always")
        assert (await statuses(app))["fine"] == "succeeded"
    assert len(attempts) == 2


async def test_periodic_tasks_are_deferred(app: procrastinate.App) -> None:
    """A worker defers what is due by itself."""
    ticked = asyncio.Event()

    @app.periodic(cron="* * * * *")
    @app.task(name="tick")
    async def tick(timestamp: int) -> None:
        ticked.set()

    async with app.open_async(), working(app, fetch_job_polling_interval=0.05):
        await asyncio.wait_for(ticked.wait(), 60)


async def test_built_in_tasks_run(app: procrastinate.App) -> None:
    """The task that removes old jobs does so, deferred by itself or called from a task."""

    @app.task(name="clean", pass_context=True)
    async def clean(context: procrastinate.JobContext) -> None:
        await builtin_tasks.remove_old_jobs(context, max_hours=0)

    app.task(name="fine")(lambda: None)
    name = "procrastinate.builtin_tasks.remove_old_jobs"
    app.tasks[name].name = name  # each app of a process has put "builtin:" before it
    async with app.open_async():
        for cleaner, arguments in (name, {"max_hours": 0}), ("clean", {}):
            with extconn.standalone():
                await app.configure_task("fine").defer_async()
                await work_off(app)
                await app.configure_task(cleaner).defer_async(**arguments)
            await work_off(app)
            found = await statuses(app)
            assert found.pop(cleaner) == "succeeded"
            assert "fine" not in found


@pytest.mark.parametrize("in_standalone", [False, True])
async def test_what_a_worker_runs_is_an_application(
    app: procrastinate.App, in_standalone: bool
) -> None:
    """A task that forgets a connection is refused, sync and async, also if its worker was started in `standalone`."""
    outcome = Outcome(app)

    @app.task(name="a sync task")
    def sync_task() -> None:
        outcome.defer("a sync task")
        with extconn.standalone():
            app.configure_task("meant").defer()
        outcome.defer("a sync task, after standalone")

    @app.task(name="an async task")
    async def async_task() -> None:
        await outcome.defer_async("an async task")
        await asyncio.to_thread(outcome.defer, "a thread of an async task")
        await asyncio.create_task(outcome.defer_async("a child of an async task"))
        with extconn.standalone():
            await app.configure_task("meant").defer_async()

    class Retry(procrastinate.BaseRetryStrategy):
        """A strategy that defers."""

        def get_retry_decision(self, **kwargs: Any) -> None:
            outcome.defer("a retry strategy")

    @app.task(name="a task that fails", retry=Retry())
    def failing() -> None:
        raise LookupError

    async with app.open_async():
        with extconn.standalone():
            for name in "a sync task", "an async task":
                await app.configure_task(name).defer_async()
        with extconn.standalone() if in_standalone else contextlib.nullcontext():
            await work_off(app)
        found = await statuses(app)
    assert found.pop("meant")
    assert set(found.values()) == {"succeeded"}
    assert sorted(outcome.refused) == [
        "a child of an async task",
        "a sync task",
        "a sync task, after standalone",
        "a thread of an async task",
        "an async task",
    ]


@needs_middlewares
async def test_middlewares_are_an_application(app: procrastinate.App) -> None:
    """A middleware that forgets a connection is refused, around a task and around a job, sync and async."""
    outcome = Outcome(app)

    def around_sync(call_next: Any, context: Any, worker: Any) -> Any:
        outcome.defer("around a sync task")
        return call_next()

    async def around_async(call_next: Any, context: Any, worker: Any) -> Any:
        await outcome.defer_async("around an async task")
        return await call_next()

    async def around_job(call_next: Any, context: Any, worker: Any) -> Any:
        await outcome.defer_async("before a job")
        try:
            return await call_next()
        finally:
            await outcome.defer_async("after a job")

    @app.task(name="async")
    async def async_task() -> None: ...

    app.task(name="sync")(lambda: None)
    async with app.open_async():
        for name, who in ("sync", "around a sync task"), ("async", "around an async task"):
            with extconn.standalone():
                await app.configure_task(name).defer_async()
            options: dict[str, Any] = {"task_middleware": [around_sync, around_async]}
            if "worker_middleware" in procrastinate.app.WorkerOptions.__annotations__:
                options["worker_middleware"] = [around_job]
                expected = ["before a job", who, "after a job"]
            else:
                expected = [who]
            await work_off(app, **options)
            assert outcome.refused == expected
            outcome.refused.clear()
        assert set((await statuses(app)).values()) == {"succeeded"}


async def test_a_person_is_not_a_worker(app: procrastinate.App) -> None:
    """The same calls that a worker makes are refused where an application makes them."""
    manager = app.job_manager
    async with app.open_async():
        with extconn.standalone():
            job_id = await app.configure_task("fine").defer_async()
        (job,) = await manager.list_jobs_async()
        status = procrastinate.jobs.Status.SUCCEEDED
        for call in (
            lambda: manager.finish_job(job, status, delete_job=False),
            lambda: manager.retry_job(job),
            lambda: manager.delete_old_jobs(nb_hours=1),
            lambda: manager.cancel_job_by_id_async(job_id),
        ):
            with pytest.raises(extconn.OutsideTransaction):
                await call()
        assert await statuses(app) == {"fine": "todo"}


async def test_the_shell(app: procrastinate.App, capsys: pytest.CaptureFixture[str]) -> None:
    """Procrastinate's shell cancels and retries, wherever it is started."""
    async with app.open_async():
        with extconn.standalone():
            job_id = await app.configure_task("fine").defer_async()
        shell = ProcrastinateShell(job_manager=app.job_manager)
        await sync_to_async(shell.onecmd, f"cancel {job_id}")
    assert f"#{job_id} fine on default - [cancelled]" in capsys.readouterr().out


SHOP = """
import procrastinate
import procrastinate_extconn as extconn

extconn.install(outside_transaction="error")

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DSN))


@app.task(name="process_order")
async def process_order(forget: bool = False) -> None:
    if forget:
        await process_order.defer_async()


@app.task(name="process_order_in_a_thread")
def process_order_in_a_thread() -> None:
    process_order.defer()
"""


def test_the_command_line(tmp_path: Path, empty_dsn: str) -> None:
    """Its commands change what they are told to, by a program of their own; its worker's tasks are refused."""
    (tmp_path / "shop.py").write_text(f"DSN = {empty_dsn!r}\n{SHOP}")

    def run(*command: str) -> str:
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-m", "procrastinate", "--app=shop.app", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout + finished.stderr

    run("schema", "--apply")
    assert "procrastinate_jobs table: OK" in run("healthchecks")
    for command in (
        ["process_order"],
        ["process_order", '{"forget": true}'],
        ["process_order_in_a_thread"],
        ["process_order"],
    ):
        run("defer", *command)
    assert "[cancelled]" in run("shell", "cancel", "4")
    work = run("worker", "--one-shot")
    assert (
        work.count("OutsideTransaction: this call has no connection, so PsycopgConnector would")
        == 2
    )
    with psycopg.connect(empty_dsn) as conn:
        rows = conn.execute("SELECT id, status::text FROM procrastinate_jobs ORDER BY id")
        assert rows.fetchall() == [(1, "succeeded"), (2, "failed"), (3, "failed"), (4, "cancelled")]
    assert "[todo]" in run("shell", "retry", "3")


async def test_django_calls_the_same_function(app: procrastinate.App) -> None:
    """Django's command and Procrastinate's own run their commands by one function, which is found by its name."""

    async def command(app: procrastinate.App) -> None:
        await app.configure_task("fine").defer_async()

    await cli.execute_command({"command": "defer", "app": app, "func": command})
    async with app.open_async():
        assert await statuses(app) == {"fine": "todo"}


# -- another Procrastinate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["_process_job", "_persist_job_status"])
def test_a_worker_is_not_hindered_where_its_methods_have_other_names(dsn: str, name: str) -> None:
    """Where a job's run cannot be told from the worker's own work, neither is refused, and `doctor` says so."""
    pytest.importorskip("click")
    program = """
        from procrastinate import worker
        source = inspect.getsource(worker).replace(NAME, "_renamed")
        exec(compile(source, worker.__file__, "exec"), vars(worker))

        import procrastinate_extconn as extconn
        from procrastinate_extconn.cli.doctor.installation import interface
        extconn.install(without_connection="error")
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DSN))
        app.task(name="fine")(lambda: None)
        with extconn.standalone(), app.open():
            job_id = app.configure_task("fine").defer()
        app.run_worker(wait=False, install_signal_handlers=False, listen_notify=False)
        with app.open():
            print(app.job_manager.get_job_status(job_id).value, NAME in str(list(interface())))
    """
    before = "import inspect, procrastinate, procrastinate.testing\n"
    assert run_python(program, before, DSN=dsn, NAME=name) == "succeeded True\n"


def test_nothing_is_marked_after_uninstall(app: procrastinate.App) -> None:
    """`uninstall` restores what marks Procrastinate's own work, unless a connector in memory still needs it."""
    gc.collect()  # an app of an earlier test, with such a connector
    extconn.uninstall()
    marked = [
        name
        for owner, name, _ in own_work._entries()
        if hasattr(getattr(owner, name), "__wrapped__")
    ]
    assert marked == []
    memory = StrictInMemoryConnector(without_connection="error")
    extconn.install()
    extconn.uninstall()
    assert hasattr(cli.execute_command, "__wrapped__")
    del memory
