"""What a deferred job costs, without a clock: statements and round trips to the server, and calls in the client.

The numbers stand with some head-room above what was counted. A change that needs more should be worth it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import External, hold

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Kind
from procrastinate_extconn.testing.contract.wiretap import (
    Message,
    Wiretap,
    round_trips,
    statements,
    tapped,
)

ROUND_TRIPS = {"pg8000": 7}
"""How often one statement with parameters asks for an answer, in a driver that does so after each step."""
STANDS_ON_ANOTHER = ("sqlalchemy", "tortoise", "piccolo", "peewee")
"""The plugins that ask another driver's plugin about the connection inside."""


@pytest.fixture(scope="module")
def dsn(new_database: Callable[[], str]) -> str:
    """One database for the module: nothing is committed."""
    return new_database()


@pytest.fixture
def wiretap(dsn: str) -> Iterator[Wiretap]:
    """All that is sent to the database."""
    with tapped(dsn) as wiretap:
        yield wiretap


@pytest.fixture
def external(kind: Kind, wiretap: Wiretap) -> Iterator[External]:
    """A held connection of every kind, inside its transaction, that defers not for the first time."""
    with hold(kind, wiretap.dsn) as external:
        external.execute("SELECT 1")
        yield external
        external.rollback()


def defer_often(external: External, task: Any) -> None:
    """Defer until nothing is new to the driver any more."""
    for _ in range(7):  # psycopg prepares what it runs for the sixth time
        external.defer(task)


# -- what the server sees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 500])
def test_one_statement(external: External, task: Any, wiretap: Wiretap, count: int) -> None:
    """One job or many are one statement and one round trip."""
    defer_often(external, task)
    wiretap.take()
    external.batch_defer(task, *[{"number": number} for number in range(count)])
    sent = wiretap.take()
    assert len(statements(sent)) == 1
    assert round_trips(sent) == ROUND_TRIPS.get(extconn.describe(external.conn).driver, 1)


def test_savepoint_is_two_statements_more(external: External, task: Any, wiretap: Wiretap) -> None:
    """`savepoint=True` puts the call into a setting, runs it in a block, and reads the answer."""
    defer_often(external, task)
    wiretap.take()
    conn = extconn.external(external.conn, savepoint=True)
    external.call(task.configure(connection=conn), "defer")
    assert len(statements(wiretap.take())) == 3


def test_existing_looks_first(external: External, task: Any, wiretap: Wiretap) -> None:
    """`on_conflict="existing"` is one statement where the lock is taken, and three where it is not."""
    defer_often(external, task)
    conn = extconn.external(external.conn, on_conflict="existing")
    costs = []
    for lock in ("one", "one", "two"):
        wiretap.take()
        external.call(task.configure(connection=conn, queueing_lock=lock), "defer")
        costs.append(len(statements(wiretap.take())))
    assert costs == [3, 1, 3]


def test_first_job_is_one_statement(external: External, task: Any, wiretap: Wiretap) -> None:
    """The first job on a new connection asks the server for no types."""
    external.execute("SELECT 1")
    wiretap.take()
    external.defer(task)
    sent = wiretap.take()
    assert len(statements(sent)) == 1
    assert not [message for message in sent if b"pg_type" in message.body]


def names(sent: list[Message]) -> list[str]:
    """The name of each statement that was prepared; that of one for a single run is empty."""
    return [message.body.partition(b"\0")[0].decode() for message in sent if message.type == "P"]


@pytest.mark.parametrize(("threshold", "expected"), [(None, 0), (2, 1)])
def test_psycopg_prepares_at_its_threshold(
    task: Any, wiretap: Wiretap, threshold: int | None, expected: int
) -> None:
    """The statement is prepared after as many runs as the psycopg connection says, or never."""
    with psycopg.connect(wiretap.dsn) as conn:
        conn.prepare_threshold = threshold
        for _ in range(8):
            task.configure(connection=conn).defer()
        conn.rollback()
    assert len([name for name in names(wiretap.take()) if name]) == expected


def test_asyncpg_without_a_cache_prepares_nothing(task: Any, wiretap: Wiretap) -> None:
    """An asyncpg connection that is told to cache no statements, as for PgBouncer, names none for us."""
    asyncpg = pytest.importorskip("asyncpg")

    async def main() -> None:
        conn = await asyncpg.connect(wiretap.dsn, statement_cache_size=0)
        async with conn.transaction():
            wiretap.take()
            for _ in range(8):
                await task.configure(connection=conn).defer_async()
        await conn.close()

    asyncio.run(main())
    assert set(names(wiretap.take())) == {""}


def defer_many(external: External, task: Any, count: int) -> int:
    """Defer *count* jobs in chunks of a hundred."""
    name = "defer_many_async" if external.kind.is_async else "defer_many"
    stream = ({"number": number} for number in range(count))
    deferrer = task.configure(connection=external.conn, lock="L")
    return external.run(lambda: getattr(extconn, name)(deferrer, stream, chunk_size=100))


def test_defer_many_is_one_statement_a_chunk(
    external: External, task: Any, wiretap: Wiretap
) -> None:
    """A stream is one statement and one round trip for each chunk, and none besides."""
    defer_many(external, task, 700)
    wiretap.take()
    assert defer_many(external, task, 450) == 450
    sent = wiretap.take()
    assert len(statements(sent)) == 5
    assert round_trips(sent) == 5 * ROUND_TRIPS.get(extconn.describe(external.conn).driver, 1)


# -- what the client does -------------------------------------------------------------------------------------------


def calls(function: Callable[[], Any]) -> Counter[str]:
    """How many Python functions *function* calls, by the package that they belong to."""
    frames: set[FrameType] = set()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            frames.add(frame)  # once, however often a coroutine goes on

    function()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    counted = Counter(frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames)
    frames.clear()  # They hold one another, and what they saw: a socket, for instance.
    return counted


def ours(counted: Counter[str]) -> int:
    """How many of them are the layer's, its plugins' included."""
    return sum(count for name, count in counted.items() if name.startswith("procrastinate_extconn"))


def test_calls(external: External, task: Any) -> None:
    """A deferred job makes few calls in the layer."""
    defer_often(external, task)
    counted = ours(calls(lambda: external.defer(task)))
    assert counted <= (72 if external.kind.plugin in STANDS_ON_ANOTHER else 44)


def test_calls_for_each_job(external: External, task: Any) -> None:
    """A job more in a batch makes two calls more in the layer at the most: its arguments are written, its row read."""
    few, many = (
        ours(calls(lambda batch=[{}] * count: external.batch_defer(task, *batch)))  # type: ignore[misc]
        for count in (10, 110)
    )
    assert many - few <= 2 * 100


def test_defer_many_makes_no_calls_for_each_job(external: External, task: Any) -> None:
    """A row more in a chunk makes no call more in the layer or in Procrastinate: no Job and no record is made."""
    defer_often(external, task)
    few, many = (calls(partial(defer_many, external, task, count)) for count in (10, 90))
    assert ours(many) == ours(few)
    assert many["procrastinate"] == few["procrastinate"]


def test_no_job_becomes_a_dict(
    external: External, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody reads Procrastinate's log, no job is made into a dict for it, one by one or in a batch."""
    made: list[procrastinate.jobs.Job] = []
    monkeypatch.setattr(procrastinate.jobs.Job, "asdict", made.append)
    external.defer(task, number=1)
    external.batch_defer(task, {"number": 2}, {"number": 3})
    assert made == []


class Stranger:
    """A plugin for a driver that nobody uses here."""

    @extconn.hookimpl
    def describe_external(self, conn: object) -> None:
        return None

    @extconn.hookimpl
    def execute_on_external(self, conn: object) -> None:
        return None


def test_plugins_more_make_no_calls_more(external: External, task: Any) -> None:
    """What a job costs does not depend on how many plugins there are."""
    before = calls(lambda: external.defer(task))
    strangers = [Stranger() for _ in range(10)]
    for stranger in strangers:
        extconn.register(stranger)
    after = calls(lambda: external.defer(task))
    for stranger in strangers:
        extconn.unregister(stranger)
    assert ours(after) == ours(before)


def test_fewer_calls_than_native(dsn: str, task: Any) -> None:
    """Where Procrastinate takes the connection by itself, a job makes fewer calls with the layer than without."""
    with psycopg.connect(dsn) as conn:

        def counted() -> int:
            for _ in range(7):
                task.configure(connection=conn).defer(order_id=42)
            return calls(lambda: task.configure(connection=conn).defer(order_id=42)).total()

        with_the_layer = counted()
        extconn.uninstall()
        native = counted()
        conn.rollback()
    assert with_the_layer < 0.85 * native
