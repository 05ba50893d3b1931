"""The outbox, as the relay sees it: rows are claimed, deleted, or set aside with a reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    bindparam,
    create_engine,
    delete,
    inspect,
    make_url,
    select,
    update,
)
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from procrastinate_extconn.exceptions import ExternalConnectionError

from .names import OUTBOX
from .tables import Tables

T = TypeVar("T")

ROWS = 200
"""How many rows are forwarded in one transaction."""

_CLAIMING = {"postgresql": (), "mysql": (8,), "mariadb": (10, 6)}
"""Dialects that skip rows which another relay has claimed, and since which version."""


class Row(NamedTuple):
    """One row of an outbox: the jobs of one call."""

    id: str
    jobs: str


def engine_of(source: str | URL) -> Engine | AsyncEngine:
    """An engine for *source*, asynchronous where its driver is, and on PostgreSQL."""
    url = make_url(source)
    dialect = url.get_dialect()
    if dialect.name == "postgresql" and not dialect.is_async:
        # psycopg is there, as Procrastinate needs it, and it listens.
        return create_async_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
    create: Any = create_async_engine if dialect.is_async else create_engine
    engine: Engine | AsyncEngine = create(url, pool_pre_ping=True)
    return engine


def reading_afresh(engine: Engine | AsyncEngine) -> Engine | AsyncEngine:
    """*engine* with transactions that see what is committed, and lock no gaps between rows."""
    if engine.dialect.name in _CLAIMING:
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine


class Source:
    """An outbox. Its methods run in a transaction on *conn*.

    :param table: its name, maybe with a schema.
    """

    def __init__(self, table: str = OUTBOX) -> None:
        self._name = table
        self._table = Tables(table=table).outbox
        self._waiting = self._table.c.set_aside.is_(None)

    def check(self, conn: Connection) -> None:
        """Refuse a database without the table."""
        if not inspect(conn).has_table(self._table.name, self._table.schema):
            raise ExternalConnectionError(
                f"there is no table {self._name} in this {conn.dialect.name} database: create it with what "
                f"`procrastinate-extconn-outbox tables --dialect {conn.dialect.name}` prints"
            )

    def holds_claims(self, conn: Connection) -> bool:
        """Whether rows are claimed until the transaction ends. Without claims, relays do the same work twice."""
        dialect: Any = conn.dialect
        name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
        return name in _CLAIMING and (dialect.server_version_info or ()) >= _CLAIMING[name]

    def claim(self, conn: Connection) -> list[Row]:
        """Rows that wait and that no other relay has claimed, the oldest first, as far as that is known."""
        columns = self._table.c
        query = select(columns.id, columns.jobs).where(self._waiting).order_by(columns.id)
        if self.holds_claims(conn):
            query = query.with_for_update(skip_locked=True)
        found = conn.execute(query.limit(ROWS))
        return [Row(row_id.rstrip(), jobs) for row_id, jobs in found]

    def has_rows(self, conn: Connection) -> bool:
        """Whether any row waits, claimed or not."""
        query = select(self._table.c.id).where(self._waiting).limit(1)
        return conn.execute(query).first() is not None

    def still_there(self, conn: Connection, ids: Collection[str]) -> set[str]:
        """Those of *ids* whose rows are not deleted."""
        column, rest, found = self._table.c.id, list(ids), set[str]()
        while rest:  # Databases have limits for the length of a list.
            part, rest = rest[:500], rest[500:]
            found.update(
                row_id.rstrip() for row_id in conn.scalars(select(column).where(column.in_(part)))
            )
        return found

    def settle(self, conn: Connection, gone: Sequence[str], aside: Mapping[str, str]) -> None:
        """Delete rows, and set others aside.

        :param aside: the reason, by the id of the row.
        """
        column = self._table.c.id
        if gone:
            conn.execute(delete(self._table).where(column.in_(gone)))
        if aside:
            statement = update(self._table).where(column == bindparam("row"))
            reasons = [{"row": row, "set_aside": reason} for row, reason in aside.items()]
            conn.execute(statement.values(set_aside=bindparam("set_aside")), reasons)


def delete_marks(source: str, before: datetime) -> int:
    """Delete the marks of `once` that are older than *before*, in UTC. Returns how many."""

    def work(conn: Connection) -> int:
        marks = Tables().marks
        return conn.execute(delete(marks).where(marks.c.created_at < before)).rowcount

    return run_sync(source, work)


def run_sync(source: str, work: Callable[[Connection], T]) -> T:
    """What *work* returns, in a transaction of its own."""
    engine = engine_of(source)
    if isinstance(engine, AsyncEngine):
        return asyncio.run(_run_async(engine, work))
    try:
        with engine.begin() as conn:
            return work(conn)
    finally:
        engine.dispose()


async def _run_async(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    try:
        async with engine.begin() as conn:
            return await conn.run_sync(work)
    finally:
        await engine.dispose()
