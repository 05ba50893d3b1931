"""What an outbox refuses, with which reason; the helpers for tests, connectors in memory, and other plugins."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import procrastinate
import pytest
from procrastinate.manager import JobManager
from procrastinate.testing import InMemoryConnector
from procrastinate_extconn_outbox import Outbox
from sqlalchemy import URL, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import procrastinate_extconn as extconn
from procrastinate_extconn.testing import (
    StrictInMemoryConnector,
    assert_deferred,
    assert_not_deferred,
    deferred_jobs,
    rolled_back,
    run_deferred,
)


@pytest.fixture
def conn(rows_url: URL) -> Iterator[Any]:
    """Open a connection to the rows, in a transaction."""
    engine = create_engine(rows_url)
    with engine.begin() as conn:
        yield conn
    engine.dispose()


CALLS: dict[str, Callable[[Any, JobManager], object]] = {
    "cancel": lambda _, jobs: jobs.cancel_job_by_id(1),
    "abort": lambda _, jobs: jobs.cancel_job_by_id(1, abort=True),
    "status": lambda _, jobs: jobs.get_job_status(1),
    "retry": lambda _, jobs: jobs.retry_job_by_id(1, retry_at=None),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("savepoint", [False, True])
def test_only_deferring_works(conn: Any, ship: Any, name: str, savepoint: bool) -> None:
    """Every other call is refused with the reason, sends nothing, and leaves the transaction usable."""
    outbox = Outbox(conn)
    jobs = JobManager(extconn.ExternalConnector(extconn.external(outbox, savepoint=savepoint)))
    call = CALLS[name]
    try:
        refused = pytest.raises(extconn.ExternalConnectionError, match="an Outbox only takes jobs")
        with refused:
            call(conn, jobs)
    except (AttributeError, NotImplementedError, RuntimeError):
        pytest.skip("this version of Procrastinate has no synchronous call for it")
    assert ship.configure(connection=outbox).defer() == -1


async def test_no_listing(sqlite_url: URL) -> None:
    """An application does not see the jobs of an outbox, which are not all jobs."""
    engine = create_async_engine(sqlite_url.set(drivername="sqlite+aiosqlite"))
    async with engine.begin() as conn:
        jobs = JobManager(extconn.ExternalConnector(Outbox(conn)))
        with pytest.raises(extconn.ExternalConnectionError, match="an Outbox only takes jobs"):
            await jobs.list_jobs_async(status="todo")
    await engine.dispose()


def test_no_existing(conn: Any, ship: Any) -> None:
    """``on_conflict="existing"`` is refused: who holds the lock is not known here."""
    outbox = extconn.external(Outbox(conn), on_conflict="existing")
    with pytest.raises(extconn.ExternalConnectionError, match='on_conflict="existing"'):
        ship.configure(connection=outbox, queueing_lock="q").defer()
    assert ship.configure(connection=Outbox(conn), queueing_lock="q").defer() == -1


def test_no_complete(conn: Any, ship: Any) -> None:
    """``complete(context, Outbox(conn))`` is refused, and names `once`."""
    job = procrastinate.jobs.Job(
        id=1,
        queue="q",
        lock=None,
        queueing_lock=None,
        task_name="ship",
        worker_id=1,
    )
    context = procrastinate.JobContext(
        app=ship.blueprint, job=job, start_timestamp=0, abort_reason=lambda: None
    )
    with pytest.raises(extconn.ExternalConnectionError, match=r"outbox\.once\(\)"):
        extconn.complete(context, Outbox(conn))


def test_options_stand_outside(conn: Any) -> None:
    """`Outbox` takes a connection, not one with options and not an outbox."""
    for wrong in (extconn.external(conn), Outbox(conn)):
        with pytest.raises(TypeError, match=r"external\(Outbox\(conn\), savepoint=True\)"):
            Outbox(wrong)


def test_what_is_inside_is_judged(conn: Any, ship: Any) -> None:
    """A pool, a stand-in and a closed connection inside are refused in the words of their own plugins."""
    for wrong, reason in (
        (conn.engine, r"engine\.begin\(\)"),
        (object(), "type object"),
        (None, "NoneType"),
    ):
        with pytest.raises(extconn.UnsupportedConnection, match=reason):
            ship.configure(connection=Outbox(wrong)).defer()
        with (
            pytest.raises(extconn.UnsupportedConnection, match=reason),
            extconn.using(Outbox(wrong)),
        ):
            pytest.fail("the block was entered")
    closed = conn.engine.connect()
    closed.close()
    with pytest.raises(extconn.UnusableConnection, match="closed"):
        ship.configure(connection=Outbox(closed)).defer()


def test_never_by_itself(sqlite_url: URL, ship: Any) -> None:
    """A connection to another database is refused, and the refusal names the outbox and its page."""
    with create_engine(sqlite_url).begin() as conn:
        with pytest.raises(extconn.UnsupportedConnection) as caught:
            ship.configure(connection=conn).defer()
        assert "pass Outbox(connection) of procrastinate-extconn-outbox" in str(caught.value)
        assert '"Rows in another database"' in str(caught.value)
        assert conn.execute(text("SELECT count(*) FROM procrastinate_outbox")).scalar_one() == 0


def test_looking(conn: Any, ship: Any) -> None:
    """The helpers for tests see the jobs of an outbox with all that they have."""
    outbox = Outbox(conn)
    ship.configure(connection=outbox, lock="l").defer(n=1)
    ship.configure(connection=outbox, schedule_in={"days": 1}).batch_defer({"n": 2}, {"n": 3})
    assert assert_deferred(outbox, ship, n=1).lock == "l"
    assert assert_deferred(outbox, "ship", n=2).scheduled_at is not None
    assert [job.task_kwargs["n"] for job in deferred_jobs(outbox)] == [1, 2, 3]
    assert_not_deferred(outbox, ship, n=4)
    with pytest.raises(AssertionError, match="no job of ship waits with these"):
        assert_deferred(outbox, ship, n=4)
    with pytest.raises(AssertionError, match="which should not"):
        assert_not_deferred(outbox, ship)
    for helper in (
        lambda: run_deferred(outbox, ship.blueprint),
        lambda: rolled_back(outbox).__enter__(),
    ):
        with pytest.raises(extconn.ExternalConnectionError, match="the jobs of an outbox are not"):
            helper()


@pytest.mark.parametrize("make", [InMemoryConnector, StrictInMemoryConnector])
def test_in_memory(conn: Any, ship: Any, make: type[InMemoryConnector]) -> None:
    """A connector in memory keeps the job in memory, and writes no row."""
    memory = make()
    with ship.blueprint.replace_connector(memory):
        ship.configure(connection=Outbox(conn)).defer(n=1)
    assert [job["args"] for job in memory.jobs.values()] == [{"n": 1}]
    assert conn.execute(text("SELECT count(*) FROM procrastinate_outbox")).scalar_one() == 0


def test_strict_in_memory_judges(conn: Any, ship: Any) -> None:
    """The strict connector in memory refuses what is no connection, and an async call on a sync one."""
    with ship.blueprint.replace_connector(StrictInMemoryConnector()):
        with pytest.raises(extconn.UnsupportedConnection):
            ship.configure(connection=Outbox(object())).defer()
        with pytest.raises(extconn.SyncAsyncMismatch):
            asyncio.run(ship.configure(connection=Outbox(conn)).defer_async())


def test_scoped_session(rows_url: URL, ship: Any) -> None:
    """A scoped session inside is asked for its session at each call."""
    engine = create_engine(rows_url)
    sessions = scoped_session(sessionmaker(engine))
    outbox = Outbox(sessions)
    for n in range(2):
        ship.configure(connection=outbox).defer(n=n)
        sessions.commit()
        sessions.remove()
    with Session(engine) as session:
        assert len(deferred_jobs(Outbox(session))) == 2
    engine.dispose()


class TheirConnection:
    """A connection of a driver that only a stranger's plugin knows."""

    def __init__(self, conn: Any) -> None:
        self.sent: list[Any] = []
        self.conn = conn


class TheirPlugin:
    """A stranger's plugin without a word on states and dialects."""

    @staticmethod
    @extconn.hookimpl
    def execute_on_external(conn: Any, query: str, args: dict[str, Any]) -> Any:
        """Run the query."""
        if not isinstance(conn, TheirConnection):
            return None
        conn.sent.append(query)
        found = conn.conn.execute(
            text(query.replace("%(id)s", ":id").replace("%(jobs)s", ":jobs")), args
        )
        return [dict(row) for row in found.mappings()] if found.returns_rows else []


def test_strangers_plugin(sqlite_url: URL, ship: Any) -> None:
    """A plugin that tells nothing gets the plain INSERT, with its own placeholders to bind."""
    plugin = TheirPlugin()
    extconn.register(plugin)
    try:
        with create_engine(sqlite_url).begin() as conn:
            theirs = TheirConnection(conn)
            ship.configure(
                connection=extconn.external(Outbox(theirs), outside_transaction="allow")
            ).defer(n=1)
            assert theirs.sent == [
                "INSERT INTO procrastinate_outbox (id, jobs) VALUES (%(id)s, %(jobs)s)"
            ]
    finally:
        extconn.unregister(plugin)


def test_peewee(sqlite_url: URL, ship: Any) -> None:
    """Peewee's connection to SQLite is one of those that a plugin takes."""
    pytest.importorskip("procrastinate_extconn_peewee")
    peewee = import_module("peewee")
    database = peewee.SqliteDatabase(str(sqlite_url.database))
    with database.atomic():
        ship.configure(connection=Outbox(database)).defer(n=1)
        assert_deferred(Outbox(database), ship, n=1)
    with pytest.raises(extconn.OutsideTransaction, match="atomic"):
        ship.configure(connection=Outbox(database)).defer(n=2)
    database.close()


async def test_piccolo(sqlite_url: URL, ship: Any) -> None:
    """So is Piccolo's, which hands it on to the driver's plugin."""
    pytest.importorskip("procrastinate_extconn_piccolo")
    engine = import_module("piccolo.engine.sqlite").SQLiteEngine(str(sqlite_url.database))
    async with engine.transaction() as transaction:
        await ship.configure(connection=Outbox(transaction)).defer_async(n=1)
        await assert_deferred(Outbox(transaction), ship, n=1)


async def test_tortoise(sqlite_url: URL, ship: Any) -> None:
    """So is Tortoise's."""
    pytest.importorskip("procrastinate_extconn_tortoise")
    tortoise = import_module("tortoise")
    transactions = import_module("tortoise.transactions")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that there are no models
        await tortoise.Tortoise.init(
            db_url=f"sqlite://{sqlite_url.database}", modules={"none": [__name__]}
        )
    async with transactions.in_transaction() as conn:
        await ship.configure(connection=Outbox(conn)).defer_async(n=1)
        await assert_deferred(Outbox(conn), ship, n=1)
    await tortoise.Tortoise.close_connections()
