"""Tasks or threads share one connection: what was acknowledged is there after the commit."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import procrastinate
import psycopg
import pytest
from faults.chance import LONG
from procrastinate.exceptions import AlreadyEnqueued

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run
from procrastinate_extconn.sync_async import finish

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

TASKS = (
    "psycopg-async",
    "sqlalchemy-async-connection-psycopg",
    "sqlalchemy-async-connection-asyncpg",
    "psqlpy",
    "psqlpy-transaction",
    "tortoise-asyncpg",
    "tortoise-psycopg",
)
THREADS = ("psycopg", "psycopg2")
"""The kinds of connection that let others queue. The others are for one task or thread at a time."""

IN_A_TRANSACTION = 20
TRANSACTIONS = int(os.environ.get("EXTCONN_SHARED", "10000" if LONG else "100")) // IN_A_TRANSACTION


def kinds(ids: tuple[str, ...]) -> Any:
    """The kinds of these ids, as the parameter of a test."""
    chosen = [kind for kind in all_kinds() if kind.id in ids]
    return pytest.mark.parametrize("kind", chosen, ids=lambda kind: kind.id, indirect=True)


class Shared:
    """One connection that several share, and what each of them was told."""

    def __init__(self, dsn: str, rng: random.Random) -> None:
        self.dsn = dsn
        self._rng = rng
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn))
        self._task: Any = app.task(name="process_order")(_process_order)
        self._numbers = itertools.count(1)
        self.orders: set[int] = set()
        self.rounds = self.taken = 0
        with psycopg.connect(self.dsn) as conn:
            self.existing = self._task.configure(connection=conn, queueing_lock="taken").defer()
        self.jobs: set[int] = {self.existing}

    def round(self, held: Held, *, is_async: bool) -> list[Coroutine[Any, Any, None]]:
        """What is done at the same time, in a random order: jobs, the caller's own rows, and locks that are taken."""
        self.rounds += 1
        works = [
            self._defer(held, is_async=is_async, on_conflict="existing"),
            self._defer(held, is_async=is_async, savepoint=True),
            self._new(held, is_async=is_async),
            self._new(held, is_async=is_async),
            self._row(held),
            self._row(held),
        ]
        self._rng.shuffle(works)
        return works

    async def _call(self, held: Held, is_async: bool, lock: str | None, **options: Any) -> int:
        deferrer = self._task.configure(
            connection=extconn.external(held.conn, **options), queueing_lock=lock
        )
        return await done(deferrer.defer_async() if is_async else deferrer.defer())

    async def _defer(self, held: Held, *, is_async: bool, **options: Any) -> None:
        try:
            assert await self._call(held, is_async, "taken", **options) == self.existing
        except AlreadyEnqueued:
            assert "savepoint" in options
        self.taken += 1

    async def _new(self, held: Held, *, is_async: bool) -> None:
        self.jobs.add(await self._call(held, is_async, None))

    async def _row(self, held: Held) -> None:
        number = next(self._numbers)
        await done(held.execute(f"INSERT INTO orders (id) VALUES ({number})"))
        self.orders.add(number)

    def lost(self) -> int:
        """How much was acknowledged and is not there."""
        with psycopg.connect(self.dsn) as conn:
            jobs = {row[0] for row in conn.execute("SELECT id FROM procrastinate_jobs")}
            orders = {row[0] for row in conn.execute("SELECT id FROM orders")}
        return len(self.jobs ^ jobs) + len(self.orders ^ orders)


def _process_order() -> None:
    pass


@pytest.fixture
def shared(dsn: str, rng: random.Random) -> Shared:
    """A lock that is taken, and a connection to share."""
    return Shared(dsn, rng)


@kinds(TASKS)
@pytest.mark.filterwarnings("ignore:the plugin 'psqlpy' does not tell")
def test_tasks(
    kind: Kind, dsn: str, shared: Shared, record_property: Callable[[str, object], None]
) -> None:
    """Tasks that share a connection lose no acknowledged job, and no row of their own, to a taken lock."""

    async def body(held: Held) -> None:
        for _ in range(IN_A_TRANSACTION):
            await asyncio.gather(*shared.round(held, is_async=True))
        await done(held.commit())

    for _ in range(TRANSACTIONS):
        run(kind, dsn, body)
    audit(kind, shared, record_property)


@kinds(THREADS)
def test_threads(
    kind: Kind, dsn: str, shared: Shared, record_property: Callable[[str, object], None]
) -> None:
    """Threads that share a connection lose nothing either."""
    with ThreadPoolExecutor(6) as pool:
        for _ in range(TRANSACTIONS):
            with kind.open(dsn) as held:
                for _ in range(IN_A_TRANSACTION):
                    works = shared.round(held, is_async=False)
                    for work in [pool.submit(finish, work) for work in works]:
                        work.result()
                held.commit()
    audit(kind, shared, record_property)


def audit(kind: Kind, shared: Shared, record_property: Callable[[str, object], None]) -> None:
    """Put the figures into the table of the fault tests, and fail if anything was lost."""
    lost = shared.lost()
    figures = (shared.rounds, shared.taken, len(shared.orders), lost)
    record_property("audit", ("shared", kind.id, figures))
    assert shared.taken == 2 * shared.rounds
    assert not lost
