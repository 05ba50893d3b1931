"""The built-in plugins keep the contract that every plugin keeps."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import psycopg
from holding import ALL_DRIVERS

from procrastinate_extconn.builtin.sqlalchemy_kinds import url
from procrastinate_extconn.kinds import kinds_of
from procrastinate_extconn.testing import Kind, PluginContract, variant

PSYCOPG, *_ = kinds_of("psycopg")
OPTIONAL = (
    ()
    if ALL_DRIVERS in os.environ
    else ("sqlalchemy", "sqlmodel", "greenlet", "asyncpg", "psycopg2", "pg8000")
)


def set_factories(conn: psycopg.Connection[Any]) -> None:
    """Set factories that change what a cursor takes and gives."""
    conn.cursor_factory = psycopg.ClientCursor
    conn.row_factory = psycopg.rows.dict_row


@contextmanager
def engine(dsn: str) -> Generator[Any]:
    """Make an engine of SQLAlchemy's."""
    from sqlalchemy import create_engine

    engine = create_engine(url(dsn, "psycopg"), pool_size=3, max_overflow=0)
    yield engine
    engine.dispose()


@asynccontextmanager
async def async_engine(dsn: str, driver: str) -> AsyncGenerator[Any]:
    """Make an async engine of SQLAlchemy's."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url(dsn, driver), pool_size=3, max_overflow=0)
    yield engine
    await engine.dispose()


@contextmanager
def pool(dsn: str) -> Generator[Any]:
    """Open a pool of psycopg's."""
    from psycopg_pool import ConnectionPool

    with ConnectionPool(dsn, min_size=1, max_size=3, open=True) as pool:
        yield pool


@asynccontextmanager
async def async_pool(dsn: str) -> AsyncGenerator[Any]:
    """Open an async pool of psycopg's."""
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(dsn, min_size=1, max_size=3, open=False) as pool:
        yield pool


def _engine(driver: str, *, is_async: bool) -> Kind:
    opened = partial(async_engine, driver=driver) if is_async else engine
    name = f"{'async-' if is_async else ''}engine-{driver}"
    return Kind(name, "sqlalchemy", ("sqlalchemy", driver), is_async, opened)


class TestPsycopg(PluginContract):
    """The built-in plugin for psycopg keeps the contract."""

    kinds = (*kinds_of("psycopg"), variant(PSYCOPG, "factories", set_factories))
    pools = (
        Kind("psycopg-pool-itself", "psycopg", ("psycopg_pool",), False, pool),
        Kind("psycopg-async-pool-itself", "psycopg", ("psycopg_pool",), True, async_pool),
    )
    optional = () if ALL_DRIVERS in os.environ else ("psycopg_pool",)


class TestSQLAlchemy(PluginContract):
    """The built-in plugin for SQLAlchemy keeps it."""

    kinds = tuple(
        kind for kind in kinds_of("sqlalchemy") if not {"asyncpg", "pg8000"} & {*kind.requires}
    )
    pools = (_engine("psycopg", is_async=False), _engine("psycopg", is_async=True))
    optional = OPTIONAL


class TestSQLAlchemyOnAsyncpg(PluginContract):
    """So it does on asyncpg, which does not show that a transaction has failed."""

    kinds = tuple(kind for kind in kinds_of("sqlalchemy") if "asyncpg" in kind.requires)
    pools = (_engine("asyncpg", is_async=True),)
    optional = OPTIONAL
    exempt = {"state_after_an_error": "asyncpg does not show that a transaction has failed"}


class TestSQLAlchemyOnPg8000(PluginContract):
    """And on pg8000, but for percent signs."""

    kinds = tuple(kind for kind in kinds_of("sqlalchemy") if "pg8000" in kind.requires)
    pools = TestSQLAlchemy.pools
    optional = OPTIONAL
    exempt = {"percent_signs": "SQLAlchemy passes a percent sign outside of a text on as it is"}
