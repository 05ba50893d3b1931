"""psycopg 3: connections, of their own and from a pool."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

from ..kinds import Held, Kind, dbapi, tuples


@contextmanager
def _psycopg(dsn: str) -> Generator[Held]:
    import psycopg

    with closing(psycopg.connect(dsn)) as conn:
        yield dbapi(conn)


@contextmanager
def _psycopg_pool(dsn: str) -> Generator[Held]:
    from psycopg_pool import ConnectionPool

    with ConnectionPool(dsn, min_size=1, open=True) as pool, pool.connection() as conn:
        yield dbapi(conn)
        if not conn.closed:
            conn.rollback()  # The pool would commit what was left undecided.


def _psycopg_held(conn: Any) -> Held:
    async def execute(sql: str) -> list[tuple[Any, ...]]:
        async with conn.cursor() as cursor:
            await cursor.execute(sql)
            fetched: list[Any] = await cursor.fetchall() if cursor.description else []
            return tuples(cursor.description, lambda: fetched)

    return Held(conn, execute, conn.commit, conn.rollback)


@asynccontextmanager
async def _psycopg_async(dsn: str) -> AsyncGenerator[Held]:
    import psycopg

    conn = await psycopg.AsyncConnection.connect(dsn)
    try:
        yield _psycopg_held(conn)
    finally:
        await conn.close()


@asynccontextmanager
async def _psycopg_async_pool(dsn: str) -> AsyncGenerator[Held]:
    from psycopg_pool import AsyncConnectionPool

    async with (
        AsyncConnectionPool(dsn, min_size=1, open=False) as pool,
        pool.connection() as conn,
    ):
        yield _psycopg_held(conn)
        if not conn.closed:
            await conn.rollback()


KINDS = (
    Kind("psycopg", "psycopg", ("psycopg",), False, _psycopg),
    Kind("psycopg-pool", "psycopg", ("psycopg", "psycopg_pool"), False, _psycopg_pool),
    Kind("psycopg-async", "psycopg", ("psycopg",), True, _psycopg_async),
    Kind("psycopg-async-pool", "psycopg", ("psycopg", "psycopg_pool"), True, _psycopg_async_pool),
)
