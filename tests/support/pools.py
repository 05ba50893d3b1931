"""The asynchronous pools on which a worker runs."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

from procrastinate_extconn.builtin.sqlalchemy_kinds import url
from procrastinate_extconn.kinds import address_of


class Pool(NamedTuple):
    """A kind of pool."""

    id: str
    requires: str
    open: Callable[[str, int], AbstractAsyncContextManager[Any]]
    """Opens one with as many connections at most."""
    listens: bool = True


@contextlib.asynccontextmanager
async def _psycopg(dsn: str, size: int) -> AsyncIterator[Any]:
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=size,
        open=False,
        check=AsyncConnectionPool.check_connection,
        # After each attempt that fails the pool waits twice as long, unless it gives up first.
        timeout=5,
        reconnect_timeout=1,
    ) as pool:
        yield pool


@contextlib.asynccontextmanager
async def _asyncpg(dsn: str, size: int) -> AsyncIterator[Any]:
    import asyncpg

    async with asyncpg.create_pool(**address_of(dsn), min_size=1, max_size=size) as pool:
        yield pool


@contextlib.asynccontextmanager
async def _aiopg(dsn: str, size: int) -> AsyncIterator[Any]:
    import aiopg

    async with aiopg.create_pool(dsn, minsize=1, maxsize=size) as pool:
        yield pool


@contextlib.asynccontextmanager
async def _psqlpy(dsn: str, size: int) -> AsyncIterator[Any]:
    import psqlpy

    with psqlpy.ConnectionPool(dsn, max_db_pool_size=size) as pool:
        yield pool


def _engine(driver: str) -> Callable[[str, int], AbstractAsyncContextManager[Any]]:
    @contextlib.asynccontextmanager
    async def open_engine(dsn: str, size: int) -> AsyncIterator[Any]:
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(url(dsn, driver), pool_size=size, max_overflow=0)
        try:
            yield engine
        finally:
            await engine.dispose()

    return open_engine


POOLS = [
    Pool("psycopg", "psycopg_pool", _psycopg),
    Pool("asyncpg", "procrastinate_extconn_asyncpg", _asyncpg),
    Pool("sqlalchemy-asyncpg", "asyncpg", _engine("asyncpg")),
    Pool("sqlalchemy-psycopg", "sqlalchemy", _engine("psycopg")),
    Pool("aiopg", "procrastinate_extconn_aiopg", _aiopg),
    Pool("psqlpy", "procrastinate_extconn_psqlpy", _psqlpy, listens=False),
]
