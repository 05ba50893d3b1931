"""Tasks and threads that share a connection."""

from __future__ import annotations

import asyncio
import os
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import procrastinate
import psycopg
import pytest
from holding import Watch
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds


async def test_psycopg_queues(dsn: str) -> None:
    """In psycopg's transaction block, on autocommit or not, jobs wait for each other and are in the transaction."""
    app = extconn.patch(
        procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn)),
        outside_transaction="error",
    )
    conn: psycopg.AsyncConnection[Any]
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        conn.transaction(force_rollback=True),
    ):
        task = app.configure_task("ship", connection=conn)
        ids = await asyncio.gather(*(task.defer_async() for _ in range(5)))
        assert extconn.describe(conn).state == "in_transaction"
    assert len(set(ids)) == 5
    with psycopg.connect(dsn) as witness:
        assert witness.execute("SELECT count(*) FROM procrastinate_jobs").fetchall() == [(0,)]


ROUNDS = 10_000 if os.environ.get("EXTCONN_FAULTS") == "long" else 10
TOGETHER = 6
"""Calls at a time on one connection."""

QUEUING = [
    kind
    for kind in all_kinds()
    if kind.id
    in (
        "psycopg-async",
        "sqlalchemy-async-connection-psycopg",
        "sqlalchemy-async-connection-asyncpg",
        "psqlpy-transaction",
        "tortoise-asyncpg",
        "tortoise-psycopg",
    )
]
"""The kinds on which the statements of several tasks wait for each other. The others refuse a second one at a time."""


@pytest.fixture
def rng() -> random.Random:
    """Chance, whose seed is printed with a failure."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    return random.Random(seed)


@pytest.mark.timeout(36_000 if ROUNDS > 10 else 120)
@pytest.mark.parametrize("kind", QUEUING, ids=lambda kind: kind.id)
def test_tasks_lose_no_acknowledged_write(
    kind: Kind, dsn: str, task: Any, watch: Watch, rng: random.Random
) -> None:
    """Rows that tasks write on one connection are there after the commit, even if one task finds a lock taken."""
    if kind.missing():
        pytest.skip(f"not installed: {', '.join(kind.missing())}")
    with psycopg.connect(dsn) as conn:
        waiting = task.configure(connection=conn, queueing_lock="r").defer()

    async def one_round(held: Held, number: int) -> tuple[set[int], set[int]]:
        jobs: set[int] = set()
        orders: set[int] = set()

        async def call(index: int) -> None:
            conn: Any = held.conn
            order = number * TOGETHER + index
            match rng.randrange(5):
                case 0:
                    await held.execute(f"INSERT INTO orders (id) VALUES ({order})")
                    orders.add(order)
                case 1:
                    jobs.add(await task.configure(connection=conn).defer_async(n=order))
                case 2:
                    found = extconn.external(conn, on_conflict="existing")
                    deferrer = task.configure(connection=found, queueing_lock="r")
                    assert await deferrer.defer_async() == waiting
                case 3:
                    isolated = extconn.external(conn, savepoint=True)
                    with pytest.raises(AlreadyEnqueued):
                        await task.configure(connection=isolated, queueing_lock="r").defer_async()
                case _:
                    isolated = extconn.external(conn, savepoint=True)
                    with pytest.raises(ConnectorException):
                        await task.configure(connection=isolated).defer_async(nul="\0")

        await asyncio.gather(*map(call, range(TOGETHER)))
        await held.commit()
        return jobs, orders

    async def main() -> None:
        for number in range(ROUNDS):
            async with kind.open(dsn) as held:
                jobs, orders = await one_round(held, number)
            assert jobs <= {*watch.jobs()}
            assert orders <= {*watch.orders()}

    asyncio.run(main())


@pytest.mark.timeout(36_000 if ROUNDS > 10 else 120)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_threads_lose_no_acknowledged_write(
    driver: str, dsn: str, task: Any, watch: Watch, rng: random.Random
) -> None:
    """So is what threads write on one connection, where the driver has them wait for each other."""
    [kind] = [kind for kind in all_kinds() if kind.id == driver] or [None]
    if kind is None or kind.missing():
        pytest.skip(f"not installed: {driver}")
    with psycopg.connect(dsn) as conn:
        task.configure(connection=conn, queueing_lock="r").defer()

    def call(held: Held, order: int, choice: int) -> tuple[int | None, int | None]:
        if choice == 0:
            held.execute(f"INSERT INTO orders (id) VALUES ({order})")
            return None, order
        if choice == 1:
            return task.configure(connection=held.conn).defer(n=order), None
        isolated = extconn.external(held.conn, savepoint=True)
        with pytest.raises(AlreadyEnqueued):
            task.configure(connection=isolated, queueing_lock="r").defer()
        return None, None

    with ThreadPoolExecutor(TOGETHER) as threads:
        for number in range(ROUNDS):
            with kind.open(dsn) as held:
                held.execute("SELECT 1")
                results = [
                    threads.submit(call, held, number * TOGETHER + index, rng.randrange(3))
                    for index in range(TOGETHER)
                ]
                written = [result.result() for result in results]
                held.commit()
            assert {job for job, _ in written if job} <= {*watch.jobs()}
            assert {order for _, order in written if order is not None} <= {*watch.orders()}
