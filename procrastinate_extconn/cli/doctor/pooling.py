"""The doctor on what stands between us and the server, PgBouncer above all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg

from .findings import Finding

_TIMEOUT = 5  # seconds; a pool that has no connection left lets its client wait


def pooler(conn: psycopg.Connection[Any], dsn: str) -> Iterator[Finding]:
    """Whether a pooler answers for the server, and how long it lends server connections for.

    :param conn: a connection that commits each statement.
    :param dsn: where it leads.
    """
    # A pooler makes up the process number that its clients get, to cancel queries with.
    if conn.info.backend_pid == _backend_pid(conn):
        return
    if _refuses_transactions(dsn):
        yield Finding(
            "pooler",
            "problem",
            "PgBouncer, or its like, pools statements: it allows no transactions",
            "set pool_mode to transaction or session",
        )
    elif asyncio.run(_shares_backends(dsn)):
        yield Finding(
            "pooler",
            "hint",
            "PgBouncer, or its like, lends a server connection for one transaction at a time. A job in your "
            "transaction works; prepared statements and LISTEN may not",
            "connect with prepare_threshold=None (psycopg) or statement_cache_size=0 (asyncpg), unless PgBouncer's "
            "max_prepared_statements is set; let workers connect past the pooler, or run them with "
            "listen_notify=False",
        )
    else:
        yield Finding(
            "pooler",
            "ok",
            "PgBouncer, or its like, seems to lend a server connection for a whole session, as if it were not there",
        )


def _backend_pid(conn: psycopg.Connection[Any]) -> int:
    [pid] = conn.execute("SELECT pg_backend_pid()").fetchone() or [0]
    return int(pid)


def _refuses_transactions(dsn: str) -> bool:
    with psycopg.connect(dsn, autocommit=True) as conn:
        try:
            conn.execute("BEGIN")
        except psycopg.Error:
            return True
    return False


async def _shares_backends(dsn: str) -> bool:
    """Whether two clients, both connected and neither in a transaction, talk to the same server process."""
    connect = psycopg.AsyncConnection[Any].connect

    async def pids() -> list[int]:
        async with (
            await connect(dsn, autocommit=True) as one,
            await connect(dsn, autocommit=True) as other,
        ):
            return [
                (await (await conn.execute("SELECT pg_backend_pid()")).fetchall())[0][0]
                for conn in (one, other)
            ]

    try:
        one, other = await asyncio.wait_for(pids(), _TIMEOUT)
    except (TimeoutError, asyncio.TimeoutError, psycopg.Error):
        return False
    return one == other
