"""The ways to hold a connection of psqlpy."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from procrastinate_extconn.kinds import Held, Kind, address_of


@asynccontextmanager
async def _psqlpy_connection(dsn: str) -> AsyncGenerator[Any]:
    import psqlpy

    address = address_of(dsn)
    conn = await psqlpy.connect(
        username=address.pop("user"), db_name=address.pop("database"), **address
    )
    try:
        yield conn
    finally:
        conn.close()


async def _psqlpy_execute(conn: Any, sql: str) -> list[tuple[Any, ...]]:
    result = await conn.execute(sql)
    return [tuple(row.values()) for row in result.result()]


@asynccontextmanager
async def _psqlpy(dsn: str) -> AsyncGenerator[Held]:
    async with _psqlpy_connection(dsn) as conn:
        execute = partial(_psqlpy_execute, conn)
        await execute("BEGIN")
        yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))


@asynccontextmanager
async def _psqlpy_transaction(dsn: str) -> AsyncGenerator[Held]:
    async with _psqlpy_connection(dsn) as conn:
        transaction = conn.transaction()
        await transaction.begin()
        execute = partial(_psqlpy_execute, transaction)
        yield Held(transaction, execute, transaction.commit, transaction.rollback)


KINDS = (
    Kind("psqlpy", "psqlpy", ("psqlpy",), True, _psqlpy),
    Kind("psqlpy-transaction", "psqlpy", ("psqlpy",), True, _psqlpy_transaction),
)
