"""Tasks that share a connection."""

from __future__ import annotations

import asyncio
from typing import Any

import procrastinate
import psycopg

import procrastinate_extconn as extconn


async def test_psycopg_queues(dsn: str) -> None:
    """In psycopg's transaction block, on autocommit or not, jobs wait for each other and are in the transaction."""
    app = extconn.patch(
        procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn)),
        outside_transaction="error",
    )
    conn: psycopg.AsyncConnection[Any]
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
        conn.transaction(force_rollback=True),
    ):
        task = app.configure_task("ship", connection=conn)
        ids = await asyncio.gather(*(task.defer_async() for _ in range(5)))
        assert extconn.describe(conn).state == "in_transaction"
    assert len(set(ids)) == 5
    with psycopg.connect(dsn) as witness:
        assert witness.execute("SELECT count(*) FROM procrastinate_jobs").fetchall() == [(0,)]
