"""`defer_many` and `defer_many_async`: a stream of jobs, chunk by chunk, wherever a single job can go."""

from __future__ import annotations

import datetime
import importlib
import json
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from typing import Any

import procrastinate
import psycopg
import psycopg_pool
import pytest
from holding import AsyncFakeConnection, External, FakeConnection, FakeDriver, Watch, opened
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.testing import InMemoryConnector

import procrastinate_extconn as extconn
from procrastinate_extconn.testing import StrictInMemoryConnector

LATER = datetime.datetime(2040, 1, 2, 3, 4, 5, 678, tzinfo=datetime.timezone.utc)
DATA = "queue_name, task_name, priority, lock, queueing_lock, args, scheduled_at, status, attempts"


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Arguments for *count* jobs, one by one."""
    for number in range(count):
        yield {"number": number, "text": "\N{SNOWMAN}'\"\\\n%s :x $1", "nested": {"a": [None, 1.5]}}


def defer_many(external: External, deferrer: Any, count: int, chunk_size: int = 2) -> int:
    """Defer *count* jobs on *external*, sync or async as it is."""
    return external.run(
        lambda: getattr(extconn, "defer_many_async" if external.kind.is_async else "defer_many")(
            deferrer, rows(count), chunk_size=chunk_size
        )
    )


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection."""
    with psycopg.connect(dsn) as conn:
        yield conn


# -- where the jobs go ----------------------------------------------------------------------------------------------


def test_jobs_are_as_batch_defer_makes_them(external: External, task: Any, watch: Watch) -> None:
    """Each row becomes the job that batch_defer() would make of it, in order, with what configure() was told."""
    options: dict[str, Any] = {
        "connection": external.conn,
        "lock": 'a "lock"',
        "priority": -7,
        "queue": "other",
        "schedule_at": LATER,
        "task_kwargs": {"number": 99, "common": "x"},
    }
    external.call(task.configure(**options), "batch_defer", *rows(5))
    assert defer_many(external, task.configure(**options), 5) == 5
    external.commit()
    jobs = watch._conn.execute(f"SELECT {DATA} FROM procrastinate_jobs ORDER BY id").fetchall()
    assert len(jobs) == 10
    assert jobs[5:] == jobs[:5]


def test_rollback_takes_all_chunks_with_it(external: External, task: Any, watch: Watch) -> None:
    """All chunks are in the caller's transaction: a rollback leaves no job."""
    assert defer_many(external, task.configure(connection=external.conn), 5) == 5
    external.rollback()
    assert watch.jobs() == []


def test_in_a_using_block(external: External, task: Any, watch: Watch) -> None:
    """Inside using(), jobs go onto the block's connection without being told."""

    def plain() -> int:
        with extconn.using(external.conn):
            return extconn.defer_many(task, rows(5), chunk_size=2)

    async def asynchronous() -> int:
        with extconn.using(external.conn):
            return await extconn.defer_many_async(task, rows(5), chunk_size=2)

    assert external.run(asynchronous if external.kind.is_async else plain) == 5
    assert watch.jobs() == []
    external.commit()
    assert len(watch.jobs()) == 5


def test_found_jobs_count(external: External, task: Any, watch: Watch) -> None:
    """With on_conflict="existing" the jobs that wait already are counted, within a chunk and across chunks."""
    existing = extconn.external(external.conn, on_conflict="existing")
    count = defer_many(external, task.configure(connection=existing, queueing_lock="Q"), 5)
    external.commit()
    assert count == 5
    assert len(watch.jobs()) == 1


async def _only_async(count: int) -> AsyncIterator[dict[str, Any]]:
    for row in rows(count):
        yield row


async def test_asynchronous_rows(dsn: str, task: Any, watch: Watch) -> None:
    """An asynchronous iterable is taken row by row."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        deferrer = task.configure(connection=conn)
        assert await extconn.defer_many_async(deferrer, _only_async(5), chunk_size=2) == 5
    assert len(watch.jobs()) == 5


async def test_asynchronous_rows_fill_chunks(driver: FakeDriver, task: Any) -> None:
    """A chunk of an asynchronous iterable is no larger than was asked for."""
    driver.rows = [{"id": 1, "count": 2}]
    deferrer = task.configure(connection=AsyncFakeConnection())
    await extconn.defer_many_async(deferrer, _only_async(4), chunk_size=2)
    assert len(driver.asked) == 2


class Progress:
    """An iterable that shows how far it is, like tqdm's."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self.rows = rows
        self.taken = 0

    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            yield row
            self.taken += 1


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_every_row_is_taken_once(conn: Any, task: Any, count: int) -> None:
    """No row is lost at the end of a chunk, and none is taken twice."""
    progress = Progress(rows(count))
    deferrer = task.configure(connection=conn)
    assert extconn.defer_many(deferrer, progress, chunk_size=2) == progress.taken == count
    numbers = conn.execute("SELECT args->'number' FROM procrastinate_jobs ORDER BY id").fetchall()
    assert [number for (number,) in numbers] == list(range(count))


def test_a_generator_is_taken_chunk_by_chunk(driver: FakeDriver, task: Any) -> None:
    """No more rows are taken than the next statement needs."""
    driver.rows = [{"id": 1, "count": 2}]
    statements_before: list[int] = []

    def watched() -> Iterator[dict[str, int]]:
        for number in range(6):
            statements_before.append(len(driver.asked))
            yield {"number": number}

    extconn.defer_many(task.configure(connection=FakeConnection()), watched(), chunk_size=2)
    assert statements_before == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("turned_on", [extconn.install, lambda: None], ids=["patched", "native"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_on_the_apps_own_connector(
    dsn: str, watch: Watch, turned_on: Any, is_async: bool
) -> None:
    """Without a connection the app's own connector has the jobs, patched or not; each chunk is committed."""
    turned_on()
    try:
        if is_async:
            connector: Any = procrastinate.PsycopgConnector(conninfo=dsn, min_size=1)
            async with procrastinate.App(connector=connector).open_async() as app:
                task = app.configure_task("process_order", lock="L")
                assert await extconn.defer_many_async(task, rows(5), chunk_size=2) == 5
        else:
            connector = procrastinate.SyncPsycopgConnector(conninfo=dsn, min_size=1)
            with procrastinate.App(connector=connector).open() as app:
                task = app.configure_task("process_order", lock="L")
                assert extconn.defer_many(task, rows(5), chunk_size=2) == 5
    finally:
        extconn.uninstall()
    assert len(watch.jobs()) == 5


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("sqlalchemy", "SQLAlchemyPsycopg2Connector"),
        ("psycopg2", "Psycopg2Connector"),
        ("aiopg", "AiopgConnector"),
    ],
)
async def test_on_procrastinates_other_connectors(
    dsn: str, watch: Watch, package: str, name: str
) -> None:
    """An app on a connector for another driver defers too, also where nothing is patched."""
    pytest.importorskip("psycopg2")
    pytest.importorskip(package)
    connector = getattr(importlib.import_module(f"procrastinate.contrib.{package}"), name)
    if package == "sqlalchemy":
        dsn = dsn.replace("postgresql://", "postgresql+psycopg2://")
    app = procrastinate.App(connector=connector(dsn=dsn))
    task = app.configure_task("process_order", lock="L")
    if package == "aiopg":
        async with app.open_async():
            assert await extconn.defer_many_async(task, rows(5), chunk_size=2) == 5
    else:
        with app.open():
            assert extconn.defer_many(task, rows(5), chunk_size=2) == 5
    assert len(watch.jobs()) == 5


def test_on_a_native_connection_without_the_layer(conn: Any, dsn: str) -> None:
    """A connection that Procrastinate takes by itself needs no install()."""
    app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=dsn))
    deferrer = app.configure_task("process_order", connection=conn)
    assert extconn.defer_many(deferrer, rows(5), chunk_size=2) == 5
    conn.rollback()
    assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() == (0,)


def test_on_a_pool_connector(dsn: str, watch: Watch) -> None:
    """An app on the application's pool defers from it."""
    with psycopg_pool.ConnectionPool(dsn, min_size=1, open=True) as pool:
        app = procrastinate.App(connector=extconn.PoolConnector(pool))
        assert extconn.defer_many(app.configure_task("process_order"), rows(5), chunk_size=2) == 5
    assert len(watch.jobs()) == 5


@pytest.mark.parametrize("connector", [InMemoryConnector, StrictInMemoryConnector])
async def test_in_memory(connector: Any, installed: None, dsn: str) -> None:
    """A unit test's connector has the jobs in its memory."""
    memory = connector()
    app = procrastinate.App(connector=memory)
    async with await psycopg.AsyncConnection.connect(dsn) as external:
        deferrer = app.configure_task("process_order", connection=external, task_kwargs={"c": 1})
        assert await extconn.defer_many_async(deferrer, rows(3), chunk_size=2) == 3
    assert [job["args"]["number"] for job in memory.jobs.values()] == [0, 1, 2]
    assert [job["args"]["c"] for job in memory.jobs.values()] == [1, 1, 1]


class Recording(procrastinate.SyncPsycopgConnector):
    """A person's own connector, which knows Procrastinate's queries and no other."""

    asked: list[str] = []

    def execute_query_all(self, query: str, **arguments: Any) -> list[dict[str, Any]]:
        name = {text: name for name, text in procrastinate.sql.queries.items()}[query]
        self.asked.append(name)
        return [{"id": number} for number, _ in enumerate(arguments["jobs"], 1)]


def test_a_connector_of_ones_own_gets_procrastinates_query(installed: None) -> None:
    """A person's override of a connector's method sees the query that it knows."""
    app = procrastinate.App(connector=Recording())
    assert extconn.defer_many(app.configure_task("process_order"), rows(3), chunk_size=2) == 3
    assert Recording.asked == ["defer_jobs", "defer_jobs"]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_json_dumps_of_the_connector(dsn: str, conn: Any, installed: None, as_bytes: bool) -> None:
    """The connector's json_dumps writes each job's arguments, as text or bytes."""

    def dumps(document: dict[str, Any]) -> str | bytes:
        text = json.dumps({**document, "by": "dumps"}, default=str)
        return text.encode() if as_bytes else text

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(json_dumps=dumps))
    deferrer = app.configure_task("process_order", connection=conn)
    extconn.defer_many(deferrer, [{"price": Decimal("1.5")}, {"price": Decimal(2)}])
    found = conn.execute("SELECT args FROM procrastinate_jobs ORDER BY id").fetchall()
    assert found == [({"price": "1.5", "by": "dumps"},), ({"price": "2", "by": "dumps"},)]


def test_memory_does_not_grow(conn: Any, task: Any) -> None:
    """Ten times as many rows take no more memory at the peak."""

    def peak(count: int) -> int:
        tracemalloc.start()
        extconn.defer_many(task.configure(connection=conn), rows(count), chunk_size=50)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak(500)
    assert peak(5000) < 1.2 * peak(500)


def test_a_forgotten_connection_is_refused(app: Any, task: Any, watch: Watch) -> None:
    """A stream without a connection is refused where a single job is."""
    extconn.install(without_connection="error")
    with opened(app):
        with pytest.raises(extconn.OutsideTransaction, match=r"has no connection.* chunk 1 failed"):
            extconn.defer_many(task, rows(2))
        with extconn.standalone():
            assert extconn.defer_many(task, rows(2)) == 2
    assert len(watch.jobs()) == 2


# -- what goes wrong ------------------------------------------------------------------------------------------------


def failing(at: int, error: Exception) -> Iterator[dict[str, Any]]:
    """Rows, and an error in place of row *at*."""
    for number in range(at):
        yield {"number": number}
    raise error


def nul(at: int) -> Iterator[dict[str, Any]]:
    """Rows, of which one has what PostgreSQL cannot store."""
    for number in range(at + 3):
        yield {"secret": "a\0b" if number == at else "harmless"}


def test_error_says_chunk_and_transaction(conn: Any, task: Any) -> None:
    """A failed statement names its chunk and row, and says that earlier chunks are in the failed transaction."""
    with pytest.raises(ConnectorException) as caught:
        extconn.defer_many(task.configure(connection=conn), nul(2500))
    text = str(caught.value)
    assert "Your transaction has failed: roll it back" in text
    assert "chunk 3 failed, which begins with row 2,001." in text
    assert "The 2,000 jobs of the chunks before it belong to your transaction" in text
    assert "secret" not in text
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR


def test_with_a_savepoint_earlier_chunks_stay(conn: Any, task: Any, watch: Watch) -> None:
    """With savepoint=True the failed chunk alone is undone, and the error says so."""
    saved = extconn.external(conn, savepoint=True)
    with pytest.raises(ConnectorException, match=r"as it was before\. defer_many: chunk 2 failed"):
        extconn.defer_many(task.configure(connection=saved), nul(3), chunk_size=2)
    conn.commit()
    assert len(watch.jobs()) == 2


def test_first_chunk(conn: Any, task: Any) -> None:
    """Where the first chunk fails, there is nothing before it."""
    with pytest.raises(
        ConnectorException, match=r"chunk 1 failed.* No chunk was deferred before it\.$"
    ):
        extconn.defer_many(task.configure(connection=conn), nul(1))


@pytest.mark.parametrize("where", ["autocommit", "own connector"])
def test_committed_chunks_are_said_to_be(
    dsn: str, app: Any, task: Any, watch: Watch, where: str
) -> None:
    """On a connection or connector that commits each statement, earlier chunks are there, and the error says so."""
    with psycopg.connect(dsn, autocommit=True) as conn, opened(app):
        connection = extconn.external(conn, outside_transaction="allow")
        deferrer = task.configure(connection=connection if where == "autocommit" else None)
        with pytest.raises(ConnectorException, match=r"The 2 jobs .* before it are committed"):
            extconn.defer_many(deferrer, nul(3), chunk_size=2)
    assert len(watch.jobs()) == 2


def test_taken_lock(conn: Any, task: Any) -> None:
    """A queueing lock, which all rows share, is taken by the first: the second chunk says so."""
    deferrer = task.configure(connection=conn, queueing_lock="Q")
    with pytest.raises(AlreadyEnqueued, match=r"lock Q\. defer_many: chunk 2 failed"):
        extconn.defer_many(deferrer, rows(2), chunk_size=1)


def test_errors_of_the_rows_come_out_unchanged(conn: Any, task: Any) -> None:
    """An error of the iterable is the caller's own; a note says how far things had got."""
    error = LookupError("line 4 of the file")
    with pytest.raises(LookupError) as caught:
        extconn.defer_many(task.configure(connection=conn), failing(3, error), chunk_size=2)
    assert caught.value is error
    assert error.args == ("line 4 of the file",)
    if sys.version_info >= (3, 11):
        [note] = error.__notes__
        assert "chunk 2 failed" in note
        assert "The 2 jobs of the chunks before it belong to your transaction" in note


def test_arguments_that_are_no_json(conn: Any, task: Any, watch: Watch) -> None:
    """What json.dumps refuses is refused before anything of its chunk is sent; the transaction stays usable."""
    with pytest.raises(TypeError, match="Decimal is not JSON serializable"):
        extconn.defer_many(
            task.configure(connection=conn), [{"a": 1}, {"a": Decimal(1)}], chunk_size=1
        )
    conn.commit()
    assert len(watch.jobs()) == 1


@pytest.mark.parametrize("row", [5, "order", [("a", 1)], {1: "a"}, None])
def test_a_row_that_is_no_dict_of_arguments(conn: Any, task: Any, row: Any) -> None:
    """A row that cannot be a task's arguments is refused."""
    with pytest.raises(TypeError, match="a row should be a dict of task arguments"):
        extconn.defer_many(task.configure(connection=conn), [row])


def test_wrong_arguments(task: Any) -> None:
    """What is no task, no iterable and no size is named."""
    with pytest.raises(
        TypeError, match=r"expected a task, or what its configure\(\) returned, got App"
    ):
        extconn.defer_many(task.blueprint, [])
    with pytest.raises(TypeError, match=r"got async_generator: defer_many_async\(\) takes"):
        extconn.defer_many(task, _only_async(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_size should be 1 or more, got 0"):
        extconn.defer_many(task, [], chunk_size=0)


async def test_sync_and_async_are_not_mixed_up(driver: FakeDriver, task: Any) -> None:
    """The other sort of connection is refused before anything is sent, and the error names the right call."""
    with pytest.raises(extconn.SyncAsyncMismatch, match="ends in _async"):
        extconn.defer_many(task.configure(connection=AsyncFakeConnection()), rows(1))
    with pytest.raises(extconn.SyncAsyncMismatch, match="the sync method of the same name"):
        await extconn.defer_many_async(task.configure(connection=FakeConnection()), rows(1))
    assert driver.asked == []
