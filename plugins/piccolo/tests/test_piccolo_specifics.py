"""What only Piccolo has: an ambient transaction that nested ones join, savepoints, a pool, and other engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from piccolo.engine.postgres import PostgresEngine
from piccolo.engine.sqlite import SQLiteEngine
from procrastinate.exceptions import AlreadyEnqueued

import procrastinate_extconn as extconn
from procrastinate_extconn.testing.contract.database import Database


@pytest.fixture
def engine(dsn: str) -> Any:
    """Make an engine."""
    return PostgresEngine({"dsn": dsn}, extensions=())


async def test_pool(engine: Any, database: Database, ship: Any) -> None:
    """A transaction on a connection of the engine's pool takes a job, and is refused after its end."""
    await engine.start_connection_pool(min_size=1, max_size=1)
    async with engine.transaction() as ended:
        await ship.configure(connection=ended).defer_async()
    async with engine.transaction():
        with pytest.raises(extconn.UnusableConnection, match="is closed"):
            await ship.configure(connection=ended).defer_async()
    await engine.close_connection_pool()
    assert len(database.jobs()) == 1


async def test_nested_transaction(engine: Any, database: Database, ship: Any) -> None:
    """A nested transaction is the outer one, and its jobs go with that."""

    async def place() -> None:
        async with engine.transaction() as outer:
            async with engine.transaction() as inner:
                await ship.configure(connection=inner).defer_async()
            assert inner is outer
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await place()
    assert not database.jobs()


async def test_savepoint(engine: Any, database: Database, ship: Any) -> None:
    """A savepoint of Piccolo's takes a failed defer back."""
    async with engine.transaction() as transaction:
        await ship.configure(connection=transaction, queueing_lock="bay").defer_async(order=1)
        savepoint = await transaction.savepoint()
        with pytest.raises(AlreadyEnqueued):
            await ship.configure(connection=transaction, queueing_lock="bay").defer_async()
        await savepoint.rollback_to()
        await ship.configure(connection=transaction).defer_async(order=2)
    assert [json.loads(job["args"])["order"] for job in database.jobs()] == [1, 2]


async def test_after_own_commit(engine: Any, database: Database, ship: Any) -> None:
    """After the person's own commit, each statement commits by itself."""
    async with engine.transaction() as transaction:
        await ship.configure(connection=transaction).defer_async()
        await transaction.commit()
        external = extconn.external(transaction, outside_transaction="error")
        with pytest.raises(
            extconn.OutsideTransaction, match=r"`async with engine\.transaction\(\)"
        ):
            await ship.configure(connection=external).defer_async()
    assert len(database.jobs()) == 1


async def test_refusals(engine: Any, tmp_path: Path, ship: Any) -> None:
    """An engine, a list of queries, a transaction that nobody entered, and SQLite are refused."""
    for wrong in (engine, engine.atomic()):
        with pytest.raises(extconn.UnsupportedConnection, match=r"`async with engine\.transaction"):
            await ship.configure(connection=wrong).defer_async()
    with pytest.raises(extconn.UnusableConnection, match="closed"):
        await ship.configure(connection=engine.transaction()).defer_async()
    sqlite = SQLiteEngine(str(tmp_path / "small.sqlite"))
    async with sqlite.transaction() as transaction:
        with pytest.raises(extconn.UnsupportedConnection, match="connections to sqlite"):
            await ship.configure(connection=transaction).defer_async()
