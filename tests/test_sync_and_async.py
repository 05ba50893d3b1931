"""A sync call takes a sync connection, an async call an async one; otherwise it is refused and nothing is sent."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import procrastinate
import pytest
from asgiref.sync import sync_to_async
from holding import (
    AsyncFakeConnection,
    FakeConnection,
    FakeDriver,
    Watch,
    hold,
    opened,
    opened_async,
    unopened,
)

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Kind


@pytest.fixture(scope="module", autouse=True)
def nothing_unawaited() -> Iterator[None]:
    """A coroutine that nobody awaited warns when it is collected, and a warning is an error."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: each test looks at what it adds."""
    return new_database()


@pytest.fixture(params=[unopened, opened, opened_async], ids=lambda how: how.__name__)
def app(request: pytest.FixtureRequest, installed: None, dsn: str) -> Iterator[procrastinate.App]:
    """An app whose connector hands out another object for sync calls, or itself, as it is opened or not."""
    how: Callable[[procrastinate.App], AbstractContextManager[None]] = request.param
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
    with how(app):
        yield app


@pytest.fixture
def task(app: procrastinate.App) -> Any:
    """A task that takes any arguments."""
    return app.task(name="process_order")(lambda **arguments: None)


# -- an asynchronous connection in a synchronous call -----------------------------------------------------------------


@pytest.mark.parametrize("loop", ["stopped", "running"])
def test_a_sync_call_on_an_async_connection_sends_nothing(
    async_kind: Kind, loop: str, dsn: str, task: Any, watch: Watch
) -> None:
    """`defer()` on an asynchronous connection names `defer_async()`, sends nothing, and harms nothing."""
    before = watch.jobs()
    with hold(async_kind, dsn) as external:
        deferrer = task.configure(connection=external.conn)
        with pytest.raises(extconn.SyncAsyncMismatch, match=r"await \.\.\. \.defer_async\(\)"):
            deferrer.defer() if loop == "stopped" else external.run(deferrer.defer)
        with pytest.raises(extconn.SyncAsyncMismatch, match=r"defer_async\(\)"):
            deferrer.batch_defer({}, {}) if loop == "stopped" else external.run(
                lambda: deferrer.batch_defer({}, {})
            )
        assert external.execute("SELECT count(*) FROM procrastinate_jobs") == [(len(before),)]
        external.commit()
    assert watch.jobs() == before


def test_a_sync_call_in_the_loop_where_the_app_was_opened_sends_nothing(
    async_kind: Kind, installed: None, dsn: str, watch: Watch
) -> None:
    """The same where app and connection were opened in the loop that the call blocks."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
    before = watch.jobs()
    with hold(async_kind, dsn) as external:
        external.run(app.open_async)
        deferrer = app.configure_task("process_order", connection=external.conn)
        with pytest.raises(extconn.SyncAsyncMismatch, match=r"defer_async\(\)"):
            external.run(deferrer.defer)
        external.commit()
        external.run(app.close_async)
    assert watch.jobs() == before


# -- a synchronous connection in an asynchronous call -----------------------------------------------------------------


def test_an_async_call_on_a_sync_connection_sends_nothing(
    sync_kind: Kind, dsn: str, task: Any, watch: Watch
) -> None:
    """`defer_async()` on a synchronous connection names `defer()`, sends nothing, and harms nothing."""
    before = watch.jobs()
    with hold(sync_kind, dsn) as external:
        deferrer = task.configure(connection=external.conn)
        with pytest.raises(extconn.SyncAsyncMismatch, match=r"call defer\(\)"):
            asyncio.run(deferrer.defer_async())
        with pytest.raises(extconn.SyncAsyncMismatch, match=r"call defer\(\)"):
            asyncio.run(deferrer.batch_defer_async({}, {}))
        assert external.execute("SELECT count(*) FROM procrastinate_jobs") == [(len(before),)]
        external.commit()
    assert watch.jobs() == before


# -- a synchronous connection where a loop runs -----------------------------------------------------------------------


def test_a_sync_call_in_a_running_loop(
    sync_kind: Kind, dsn: str, task: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`defer()` on a synchronous connection works in a coroutine too, however the app was opened."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    async def main() -> int:
        with hold(sync_kind, dsn) as external:
            job_id = external.defer(task)
            external.commit()
            return job_id

    assert watch.job(asyncio.run(main()))


def test_a_sync_call_in_a_sync_to_async_thread(
    kind: Kind, installed: None, dsn: str, watch: Watch
) -> None:
    """`defer()` works in the thread that `sync_to_async` calls, while the app is open in the loop's thread."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))
    task = app.configure_task("process_order")

    def work() -> int:
        with hold(kind, dsn) as external:
            job_id = external.defer(task)
            external.commit()
            return job_id

    async def main() -> int:
        async with app.open_async():
            return await sync_to_async(work)()

    assert watch.job(asyncio.run(main()))


async def test_nothing_is_asked_of_the_plugin_in_the_other_kind_of_call(
    installed: None, driver: FakeDriver
) -> None:
    """The plugin is not asked to run what does not match, so that it creates no coroutine either."""
    with pytest.raises(extconn.SyncAsyncMismatch):
        extconn.ExternalConnector(AsyncFakeConnection()).execute_query("SELECT 1")
    with pytest.raises(extconn.SyncAsyncMismatch):
        await extconn.ExternalConnector(FakeConnection()).execute_query_async("SELECT 1")
    assert driver.asked == []
