"""The ways to hold a connection of Piccolo."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from procrastinate_extconn.kinds import Held, Kind, address_of


@asynccontextmanager
async def _piccolo(dsn: str) -> AsyncGenerator[Held]:
    # Older versions create one, unless told otherwise.
    engine = import_module("piccolo.engine.postgres").PostgresEngine(address_of(dsn), extensions=())
    async with engine.transaction() as transaction:

        async def execute(sql: str) -> list[tuple[Any, ...]]:
            return list(map(tuple, await transaction.connection.fetch(sql)))

        yield Held(transaction, execute, transaction.commit, transaction.rollback)
        if transaction.connection.is_in_transaction():
            await transaction.rollback()


KINDS = (
    Kind(
        "piccolo",
        "piccolo",
        ("piccolo", "asyncpg", "procrastinate_extconn_asyncpg"),
        True,
        _piccolo,
    ),
)
