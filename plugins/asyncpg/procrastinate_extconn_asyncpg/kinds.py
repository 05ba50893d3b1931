"""The ways to hold a connection of asyncpg."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from procrastinate_extconn.kinds import Held, Kind, address_of


@asynccontextmanager
async def _asyncpg_transaction(conn: Any) -> AsyncGenerator[Held]:
    async def execute(sql: str) -> list[tuple[Any, ...]]:
        return list(map(tuple, await conn.fetch(sql)))

    transaction = conn.transaction()
    await transaction.start()
    try:
        yield Held(conn, execute, transaction.commit, transaction.rollback)
    finally:
        if not conn.is_closed() and conn.is_in_transaction():
            await transaction.rollback()


@asynccontextmanager
async def _asyncpg(dsn: str) -> AsyncGenerator[Held]:
    asyncpg = import_module("asyncpg")
    conn = await asyncpg.connect(**address_of(dsn))
    try:
        async with _asyncpg_transaction(conn) as held:
            yield held
    finally:
        await conn.close()


@asynccontextmanager
async def _asyncpg_pool(dsn: str) -> AsyncGenerator[Held]:
    asyncpg = import_module("asyncpg")
    pool = asyncpg.create_pool(**address_of(dsn), min_size=1)
    async with pool, pool.acquire() as conn, _asyncpg_transaction(conn) as held:
        yield held


KINDS = (
    Kind("asyncpg", "asyncpg", ("asyncpg",), True, _asyncpg),
    Kind("asyncpg-pool", "asyncpg", ("asyncpg",), True, _asyncpg_pool),
)
