"""One fixture for every way to hold a transaction, so that a test is one plain function for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import procrastinate
import psycopg
import pytest

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done

T = TypeVar("T")

ALL_DRIVERS = "EXTCONN_TEST_ALL_DRIVERS"
"""The environment variable that says that no driver may be missing."""


class External:
    """A connection of some kind, held open. Its methods are called from a plain function, sync and async alike.

    Where the kind is synchronous there is no event loop. Where it is asynchronous there is one, which runs while a
    call does. The connection and all calls live in one task, as in an application.
    """

    def __init__(self, kind: Kind, held: Held, run: Callable[[Callable[[], Any]], Any]) -> None:
        self.kind = kind
        self.conn = held.conn
        self._held = held
        self.run = run
        """Calls a function where the connection is at home, in its task or greenlet, and awaits what it returns."""

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run *sql* the driver's own way."""
        return self.run(lambda: self._held.execute(sql))

    def commit(self) -> None:
        """Commit the driver's own way."""
        self.run(self._held.commit)

    def rollback(self) -> None:
        """Roll back the driver's own way."""
        self.run(self._held.rollback)

    def call(self, target: object, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call *method* of *target*, or the one that ends in ``_async`` if the connection is asynchronous."""
        name = f"{method}_async" if self.kind.is_async else method
        return self.run(lambda: getattr(target, name)(*args, **kwargs))

    def defer(self, task: Any, /, **arguments: Any) -> int:
        """Defer a job on the connection.

        :param task: a task, or what its ``configure()`` returned.
        """
        return self.call(self._on_connection(task), "defer", **arguments)

    def batch_defer(self, task: Any, /, *arguments: dict[str, Any]) -> list[int]:
        """Defer jobs on the connection."""
        return self.call(self._on_connection(task), "batch_defer", *arguments)

    def _on_connection(self, task: Any) -> Any:
        if isinstance(task, procrastinate.jobs.JobDeferrer):
            task.connection = self.conn
            return task
        return task.configure(connection=self.conn)


@contextlib.contextmanager
def hold(kind: Kind, dsn: str) -> Iterator[External]:
    """Hold a connection of this kind."""
    if kind.is_async or kind.in_greenlet:
        with _hold_in_loop(kind, dsn) as external:
            yield external
    else:
        with kind.open(dsn) as held:
            yield External(kind, held, lambda call: call())


@contextlib.contextmanager
def _hold_in_loop(kind: Kind, dsn: str) -> Iterator[External]:
    loop = asyncio.new_event_loop()
    calls: asyncio.Queue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = asyncio.Queue()
    opened: asyncio.Future[Held] = loop.create_future()

    async def serve() -> None:
        async with kind.open(dsn) as held:
            opened.set_result(held)
            while item := await calls.get():
                call, answer = item
                try:
                    result = await (_in_greenlet(call) if kind.in_greenlet else done(call()))
                except Exception as exc:  # noqa: BLE001 - the test has it
                    answer.set_exception(exc)
                else:
                    answer.set_result(result)

    def run(call: Callable[[], Any]) -> Any:
        answer = loop.create_future()
        calls.put_nowait((call, answer))
        return loop.run_until_complete(answer)

    server = loop.create_task(serve())
    try:
        loop.run_until_complete(asyncio.wait({server, opened}, return_when=asyncio.FIRST_COMPLETED))
        if server.done():
            server.result()
        try:
            yield External(kind, opened.result(), run)
        finally:
            calls.put_nowait(None)
            loop.run_until_complete(server)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _in_greenlet(call: Callable[[], T]) -> T:
    from sqlalchemy.util import greenlet_spawn

    return await greenlet_spawn(call)


class FakeConnection:
    """A synchronous connection of a driver that does not exist."""


class AsyncFakeConnection:
    """An asynchronous one."""


class FakeDriver:
    """The plugin of that driver: keeps what it is asked, and answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.rows: list[dict[str, Any]] = [{"id": 42}]
        self.state: Any = "in_transaction"

    @extconn.hookimpl
    def describe_external(self, conn: object) -> extconn.Description | None:
        if isinstance(conn, (FakeConnection, AsyncFakeConnection)):
            is_async = isinstance(conn, AsyncFakeConnection)
            return extconn.Description("fake", "fake", is_async, self.state)
        return None

    @extconn.hookimpl
    def execute_on_external(self, conn: object, query: str, args: dict[str, Any]) -> Any:
        if isinstance(conn, FakeConnection):
            return self._answer(query, args)
        if isinstance(conn, AsyncFakeConnection):
            return self._answer_async(query, args)
        return None

    def _answer(self, query: str, args: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append((query, args))
        return [dict(row) for row in self.rows]

    async def _answer_async(self, query: str, args: dict[str, Any]) -> list[dict[str, Any]]:
        return self._answer(query, args)


def run_python(program: str, before: str = "", **constants: str) -> str:
    """What an indented *program* prints, in a process of its own where warnings are errors.

    :param before: a program that runs before it.
    :param constants: the value of each name.
    """
    given = "".join(f"{name} = {value!r}\n" for name, value in constants.items())
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", given + before + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


class Watch:
    """What everybody else sees of the database: what was committed."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn

    def job(self, job_id: int) -> dict[str, Any] | None:
        """The job of that id."""
        with self._conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            cursor.execute("SELECT * FROM procrastinate_jobs WHERE id = %s", [job_id])
            return cursor.fetchone()

    def jobs(self) -> list[int]:
        """The ids of all jobs, in their order."""
        return [
            row[0] for row in self._conn.execute("SELECT id FROM procrastinate_jobs ORDER BY id")
        ]

    def orders(self) -> list[int]:
        """The ids of all orders, in their order."""
        return [row[0] for row in self._conn.execute("SELECT id FROM orders ORDER BY id")]


def wait_until_blocked(dsn: str, conn: Any) -> None:
    """Wait until *conn* waits for a lock."""
    with psycopg.connect(dsn, autocommit=True) as observer:
        query = "SELECT cardinality(pg_blocking_pids(%s))"
        while observer.execute(query, [conn.info.backend_pid]).fetchone() == (0,):
            pass


@contextlib.contextmanager
def unopened(app: procrastinate.App) -> Iterator[None]:
    """Leave *app* as it is."""
    yield


@contextlib.contextmanager
def opened(app: procrastinate.App) -> Iterator[None]:
    """Open *app* synchronously."""
    with app.open():
        yield


@contextlib.contextmanager
def opened_async(app: procrastinate.App) -> Iterator[None]:
    """Open *app* in the event loop of a thread, which goes on running."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(_open(app), loop).result()
        yield
        asyncio.run_coroutine_threadsafe(app.close_async(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _open(app: procrastinate.App) -> None:
    await app.open_async()


# psqlpy's connection says whether it is in a transaction only when it is awaited, so that nobody asks it.
_MARKS = {"psqlpy": [pytest.mark.filterwarnings("ignore:the plugin 'psqlpy' does not tell")]}


def _params(kinds: Iterable[Kind]) -> Any:
    return [pytest.param(kind, id=kind.id, marks=_MARKS.get(kind.id, ())) for kind in kinds]


def _installed(kind: Kind) -> Kind:
    if missing := kind.missing():
        refuse = pytest.fail if ALL_DRIVERS in os.environ else pytest.skip
        refuse(f"not installed: {', '.join(missing)}")
    return kind


@pytest.fixture(params=_params(all_kinds()))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every way to hold a transaction that this project supports."""
    return _installed(request.param)


@pytest.fixture(params=_params(kind for kind in all_kinds() if kind.is_async))
def async_kind(request: pytest.FixtureRequest) -> Kind:
    """Every way to hold an asynchronous connection."""
    return _installed(request.param)


@pytest.fixture(
    params=_params(kind for kind in all_kinds() if not (kind.is_async or kind.in_greenlet))
)
def sync_kind(request: pytest.FixtureRequest) -> Kind:
    """Every way to hold a synchronous connection, outside `run_sync`."""
    return _installed(request.param)


@pytest.fixture
def external(kind: Kind, dsn: str) -> Iterator[External]:
    """A held connection of every kind."""
    with hold(kind, dsn) as external:
        yield external


@pytest.fixture
def watch(dsn: str) -> Iterator[Watch]:
    """Somebody else's view of the database."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield Watch(conn)


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    """A driver that keeps what it is asked, for tests of what happens before a real one is."""
    driver = FakeDriver()
    extconn.register(driver, "fake")
    yield driver
    extconn.unregister(driver)


@pytest.fixture
def installed() -> Iterator[None]:
    """The layer is on."""
    extconn.install()
    yield
    extconn.uninstall()


@pytest.fixture
def app(installed: None, dsn: str) -> procrastinate.App:
    """An app that takes sync and async calls, and opens no connection of its own until it has to."""
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=1))


@pytest.fixture
def task(app: procrastinate.App) -> procrastinate.tasks.Task[..., Any, Any]:
    """A task that takes any arguments."""

    @app.task(name="process_order")
    def process_order(**arguments: Any) -> None:
        pass

    return process_order
