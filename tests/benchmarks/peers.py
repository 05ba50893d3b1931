"""Peers: `riverqueue` and `pgqueuer`, each as its own documentation says, and their schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import asyncpg
import psycopg
import riverqueue
from drivers import Holder
from pgqueuer.db import AsyncpgDriver, SyncPsycopgDriver
from pgqueuer.queries import Queries, SyncQueries
from procrastinate_side import TASK, arguments
from riverqueue.driver import riversqlalchemy

# The Python client carries the table that it is written for. These are the indexes of River's migrations 2 to 5, whose
# trigger was dropped on the way.
_RIVER_INDEXES = """
CREATE INDEX ON river_job (kind);
CREATE INDEX ON river_job (state, finalized_at) WHERE finalized_at IS NOT NULL;
CREATE INDEX ON river_job (state, queue, priority, scheduled_at, id);
CREATE INDEX ON river_job USING gin (args);
CREATE INDEX ON river_job USING gin (metadata);
CREATE UNIQUE INDEX ON river_job (kind, unique_key) WHERE unique_key IS NOT NULL;
"""


async def create_schemas(dsn: str) -> None:
    """Create each peer's tables, as it declares them."""
    river = files(riversqlalchemy).joinpath("dbsqlc/river_job.sql").read_text(encoding="utf-8")
    conn = await asyncpg.connect(dsn)
    await conn.execute(river.partition("-- name:")[0] + _RIVER_INDEXES)
    await Queries.from_asyncpg_connection(conn).install()
    await conn.close()


def clear(dsn: str) -> None:
    """Empty everybody's tables."""
    with psycopg.connect(dsn) as conn:
        conn.execute("TRUNCATE procrastinate_jobs, river_job, pgqueuer CASCADE")


class Peer(NamedTuple):
    """A peer's calls on a connection."""

    one: Callable[[], Any]
    many: Callable[[list[dict[str, Any]]], Any]
    """Takes the arguments of each job."""


class _Order:
    kind = TASK

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments

    def to_json(self) -> str:
        return json.dumps(self.arguments)


def river(holder: Holder) -> Peer:
    """``insert_tx`` and ``insert_many_tx`` on a SQLAlchemy connection."""
    conn = holder.conn
    client: Any
    if holder.loop is None:
        client = riverqueue.Client(riversqlalchemy.Driver(conn))
    else:
        client = riverqueue.AsyncClient(riversqlalchemy.AsyncDriver(conn))
    return Peer(
        lambda: client.insert_tx(conn, _Order(arguments(1))),
        lambda orders: client.insert_many_tx(conn, [_Order(order) for order in orders]),
    )


def pgqueuer(holder: Holder) -> Peer:
    """``enqueue`` on a psycopg or an asyncpg connection."""
    queries: Any = (
        SyncQueries(SyncPsycopgDriver(holder.conn))
        if holder.loop is None
        else Queries(AsyncpgDriver(holder.conn))
    )

    def many(orders: list[dict[str, Any]]) -> Any:
        payloads = [json.dumps(order).encode() for order in orders]
        return queries.enqueue([TASK] * len(orders), payloads, [0] * len(orders))

    return Peer(lambda: queries.enqueue(TASK, json.dumps(arguments(1)).encode(), 0), many)
