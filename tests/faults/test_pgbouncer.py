"""PgBouncer hands each transaction to whichever server connection is free.

The settings are those of the documentation's page "Defer a job behind PgBouncer".
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
from faults.ledger import Ledger
from pooler import pgbouncer
from procrastinate.exceptions import ConnectorException

from procrastinate_extconn import describe
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("installed")]

CLIENTS = 8
SERVER_CONNECTIONS = 3

UNPREPARED = {"prepare_threshold": None}
UNNAMED = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: "",
}
NO_SETTINGS = ("psycopg2", "aiopg", "pg8000", "pg8000-native")


@contextmanager
def _psycopg(dsn: str) -> Iterator[Held]:
    with closing(psycopg.connect(dsn, **UNPREPARED)) as conn:
        yield Held(conn, conn.execute, conn.commit, conn.rollback)


@asynccontextmanager
async def _psycopg_async(dsn: str) -> AsyncIterator[Held]:
    async with await psycopg.AsyncConnection.connect(dsn, **UNPREPARED) as conn:
        yield Held(conn, conn.execute, conn.commit, conn.rollback)


@asynccontextmanager
async def _asyncpg(dsn: str) -> AsyncIterator[Held]:
    import asyncpg

    conn = await asyncpg.connect(dsn, statement_cache_size=0)
    execute = conn.execute
    await execute("BEGIN")
    yield Held(conn, execute, partial(execute, "COMMIT"), partial(execute, "ROLLBACK"))
    await conn.close()


@contextmanager
def _sqlalchemy(dsn: str, driver: str, connect_args: Any) -> Iterator[Held]:
    from sqlalchemy import create_engine, text

    engine = create_engine(_url(dsn, driver), connect_args=connect_args)
    with engine.connect() as conn:
        yield Held(conn, lambda sql: conn.execute(text(sql)), conn.commit, conn.rollback)
    engine.dispose()


@asynccontextmanager
async def _sqlalchemy_async(dsn: str, driver: str, connect_args: Any) -> AsyncIterator[Held]:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(_url(dsn, driver), connect_args=connect_args)
    async with engine.connect() as conn:
        yield Held(conn, lambda sql: conn.execute(text(sql)), conn.commit, conn.rollback)
    await engine.dispose()


def _url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql:", f"postgresql+{driver}:")


def _on_sqlalchemy(name: str, driver: str, connect_args: Any) -> Kind:
    is_async = "-async-" in name
    opened: Any = _sqlalchemy_async if is_async else _sqlalchemy
    opened = partial(opened, driver=driver, connect_args=connect_args)
    return Kind(name, "sqlalchemy", ("sqlalchemy", "greenlet", driver), is_async, opened)


POOLED = [
    Kind("psycopg", "psycopg", ("psycopg",), False, _psycopg),
    Kind("psycopg-async", "psycopg", ("psycopg",), True, _psycopg_async),
    Kind("asyncpg", "asyncpg", ("asyncpg", "procrastinate_extconn_asyncpg"), True, _asyncpg),
    _on_sqlalchemy("sqlalchemy-connection-psycopg", "psycopg", UNPREPARED),
    _on_sqlalchemy("sqlalchemy-connection-psycopg2", "psycopg2", {}),
    _on_sqlalchemy("sqlalchemy-async-connection-psycopg", "psycopg", UNPREPARED),
    _on_sqlalchemy("sqlalchemy-async-connection-asyncpg", "asyncpg", UNNAMED),
    *(kind for kind in all_kinds() if kind.id in NO_SETTINGS),
]


@pytest.mark.parametrize("kind", POOLED, ids=lambda kind: kind.id, indirect=True)
def test_pgbouncer(
    kind: Kind, own_dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """Clients that share fewer server connections keep their transactions apart, and leave no prepared statement."""
    ledger = Ledger(kind, own_dsn, rng)

    async def body(held: Held) -> None:
        for _ in range(sized(10, 100)):
            await ledger.transact(held)
            if describe(held.conn).state == "autocommit":
                await done(held.execute("BEGIN"))

    settings = {"pool_mode": "transaction", "default_pool_size": SERVER_CONNECTIONS}
    with pgbouncer(own_dsn, **settings) as address, ThreadPoolExecutor(CLIENTS) as clients:
        for ended in [clients.submit(run, kind, address, body) for _ in range(CLIENTS)]:
            ended.result()
        assert not prepared_statements(address)
    assert audit("PgBouncer", ledger).hit == 0


def prepared_statements(address: str) -> list[Any]:
    """Those on the server connections that are in the pool."""
    found = []
    with ExitStack() as stack:
        for _ in range(SERVER_CONNECTIONS):  # Each keeps its server connection until the end.
            conn = stack.enter_context(psycopg.connect(address))
            found += conn.execute("SELECT * FROM pg_prepared_statements").fetchall()
    return found


def test_prepared_statements_are_told_of(own_dsn: str, rng: random.Random) -> None:
    """Where the driver prepares statements all the same, the error says what to turn off."""
    ledger = Ledger(all_kinds()[0], own_dsn, rng)
    settings = {"pool_mode": "transaction", "default_pool_size": 1}

    async def body(held: Held) -> None:
        for _ in range(held.conn.prepare_threshold + 1):
            await ledger.defer(held.conn, ledger.begin())
            held.commit()

    with pgbouncer(own_dsn, **settings) as address:
        run(ledger.kind, address, body)
        with pytest.raises(ConnectorException, match=r"42P05.*PgBouncer.*Defer a job behind"):
            run(ledger.kind, address, body)
