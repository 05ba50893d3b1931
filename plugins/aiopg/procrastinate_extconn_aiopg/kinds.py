"""The ways to hold a connection of aiopg."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from procrastinate_extconn.kinds import Held, Kind


@asynccontextmanager
async def _aiopg(dsn: str) -> AsyncGenerator[Held]:
    import aiopg

    conn: Any
    async with aiopg.connect(dsn) as conn:

        async def execute(sql: str) -> list[tuple[Any, ...]]:
            async with conn.cursor() as cursor:
                await cursor.execute(sql)
                return await cursor.fetchall() if cursor.description else []

        await execute("BEGIN")
        yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))


KINDS = (Kind("aiopg", "aiopg", ("aiopg",), True, _aiopg),)
