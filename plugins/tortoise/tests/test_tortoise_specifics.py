"""What only Tortoise ORM has: contexts, nested transactions, `atomic`, and a wrapper that outlives its transaction."""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from procrastinate.exceptions import AlreadyEnqueued
from tortoise import Tortoise, connections
from tortoise.transactions import atomic, in_transaction

import procrastinate_extconn as extconn
from procrastinate_extconn.testing.contract.database import Database


@pytest.fixture(params=["asyncpg", "psycopg"])
async def driver(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[str]:
    """Open Tortoise on each of its drivers, with SQLite beside it."""
    address = dsn.replace("postgresql://", f"{request.param}://")
    with warnings.catch_warnings():
        # It wants a module with models, and warns of one without.
        warnings.simplefilter("ignore", RuntimeWarning)
        await Tortoise.init(
            {
                "connections": {"default": address, "small": "sqlite://:memory:"},
                "apps": {"none": {"models": [__name__], "default_connection": "default"}},
            }
        )
    yield request.param
    await Tortoise.close_connections()


async def test_savepoint(driver: str, database: Database, ship: Any) -> None:
    """A nested transaction that fails takes its jobs, and no others."""

    async def place(order: int) -> None:
        async with in_transaction("default") as nested:
            await ship.configure(connection=nested).defer_async(order=order)
            assert order != 2

    async with in_transaction("default") as connection:
        await ship.configure(connection=connection).defer_async(order=1)
        with pytest.raises(AssertionError):
            await place(2)
        await place(3)
    assert [json.loads(job["args"])["order"] for job in database.jobs()] == [1, 3]


async def test_taken_lock_in_nested_transaction(driver: str, database: Database, ship: Any) -> None:
    """A taken lock costs the nested transaction alone."""
    async with in_transaction("default") as connection:
        await ship.configure(connection=connection, queueing_lock="bay").defer_async()
        with pytest.raises(AlreadyEnqueued):
            async with in_transaction("default") as nested:
                await ship.configure(connection=nested, queueing_lock="bay").defer_async()
        await ship.configure(connection=connection).defer_async()
    assert len(database.jobs()) == 2


async def test_atomic(driver: str, database: Database, ship: Any) -> None:
    """Under ``@atomic()`` the connection of that name is the one to pass."""

    @atomic("default")
    async def place(order: int) -> None:
        connection = connections.get("default")
        await connection.execute_query(f"INSERT INTO orders VALUES ({order})")
        await ship.configure(connection=connection).defer_async(order=order)
        assert order != 2

    await place(1)
    with pytest.raises(AssertionError):
        await place(2)
    assert [json.loads(job["args"])["order"] for job in database.jobs()] == [1]


async def test_tasks_take_turns(driver: str, database: Database, ship: Any) -> None:
    """Jobs and Tortoise's own queries of several tasks wait for each other on one connection."""
    async with in_transaction("default") as connection:
        await asyncio.gather(
            *(ship.configure(connection=connection).defer_async(n=n) for n in range(5)),
            *(connection.execute_query("SELECT 1") for _ in range(5)),
        )
    assert len(database.jobs()) == 5


async def test_after_the_block(driver: str, database: Database, ship: Any) -> None:
    """After its transaction the wrapper is refused, though its connection may be in another one by now."""
    async with in_transaction("default") as ended:
        pass
    async with in_transaction("default"):
        assert extconn.describe(ended)[:4] == (driver, "tortoise", True, "closed")
        with pytest.raises(extconn.UnusableConnection, match="is closed"):
            await ship.configure(connection=ended).defer_async()
    assert not database.jobs()


async def test_after_own_rollback(driver: str, database: Database, ship: Any) -> None:
    """So it is after the person's own rollback."""
    async with in_transaction("default") as connection:
        await ship.configure(connection=connection).defer_async()
        await connection.rollback()
        with pytest.raises(extconn.UnusableConnection, match="is closed"):
            await ship.configure(connection=connection).defer_async()
    assert not database.jobs()


async def test_refusals(driver: str, ship: Any) -> None:
    """A pool, a context that nobody entered, and SQLite are refused, each with what to do."""
    line = r"`async with in_transaction\(\) as connection: \.\.\.`"
    for wrong in (connections.get("default"), in_transaction("default")):
        with pytest.raises(extconn.UnsupportedConnection, match=line):
            await ship.configure(connection=wrong).defer_async()
    async with in_transaction("small") as connection:
        with pytest.raises(extconn.UnsupportedConnection, match="connections to sqlite"):
            await ship.configure(connection=connection).defer_async()
