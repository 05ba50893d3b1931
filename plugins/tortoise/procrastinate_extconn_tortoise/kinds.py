"""The ways to hold a connection of Tortoise ORM."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from procrastinate_extconn.kinds import Held, Kind, address_of


@asynccontextmanager
async def _tortoise(dsn: str, driver: str) -> AsyncGenerator[Held]:
    from tortoise import Tortoise
    from tortoise.transactions import in_transaction

    database = {"engine": f"tortoise.backends.{driver}", "credentials": address_of(dsn)}
    # It wants a module with models, and warns of one without. Others may do the same meanwhile, so this is for good.
    warnings.filterwarnings("ignore", 'Module ".*" has no models', RuntimeWarning)
    await Tortoise.init(
        config={"connections": {"default": database}, "apps": {"none": {"models": [__name__]}}}
    )
    conn: Any
    try:
        async with in_transaction("default") as conn:

            async def execute(sql: str) -> list[tuple[Any, ...]]:
                return [tuple(row.values()) for row in await conn.execute_query_dict(sql)]

            yield Held(conn, execute, conn.commit, conn.rollback)
            if not conn._finalized:
                await conn.rollback()
    finally:
        await Tortoise.close_connections()


KINDS = (
    Kind(
        "tortoise-asyncpg",
        "tortoise",
        ("tortoise", "asyncpg", "procrastinate_extconn_asyncpg"),
        True,
        partial(_tortoise, driver="asyncpg"),
    ),
    Kind(
        "tortoise-psycopg",
        "tortoise",
        ("tortoise", "psycopg"),
        True,
        partial(_tortoise, driver="psycopg"),
    ),
)
