"""The other drivers, each with its plugin: asyncpg, psycopg2, aiopg, pg8000, psqlpy."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from .kind import Held, address_of, dbapi, with_plugin


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


@contextmanager
def _psycopg2(dsn: str) -> Generator[Held]:
    import psycopg2

    with closing(psycopg2.connect(dsn)) as conn:
        yield dbapi(conn)


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


@contextmanager
def _pg8000(dsn: str) -> Generator[Held]:
    with closing(import_module("pg8000.dbapi").connect(**address_of(dsn))) as conn:
        yield dbapi(conn)


@contextmanager
def _pg8000_native(dsn: str) -> Generator[Held]:
    with closing(import_module("pg8000.native").Connection(**address_of(dsn))) as conn:

        def execute(sql: str) -> list[tuple[Any, ...]]:
            return list(map(tuple, conn.run(sql) or ()))

        execute("START TRANSACTION")
        yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))


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
    with_plugin("asyncpg", "asyncpg", True, _asyncpg, "asyncpg"),
    with_plugin("asyncpg-pool", "asyncpg", True, _asyncpg_pool, "asyncpg"),
    with_plugin("psycopg2", "psycopg2", False, _psycopg2, "psycopg2"),
    with_plugin("aiopg", "aiopg", True, _aiopg, "aiopg"),
    with_plugin("pg8000", "pg8000", False, _pg8000, "pg8000"),
    with_plugin("pg8000-native", "pg8000", False, _pg8000_native, "pg8000"),
    with_plugin("psqlpy", "psqlpy", True, _psqlpy, "psqlpy"),
    with_plugin("psqlpy-transaction", "psqlpy", True, _psqlpy_transaction, "psqlpy"),
)
