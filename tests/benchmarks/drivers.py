"""Connections of each driver, and on each its own shortest way to run the statement that the layer runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import asyncpg
import psycopg
import psycopg2
import sqlalchemy
from comparing import CPU, Turn
from sqlalchemy.ext.asyncio import create_async_engine

from procrastinate_extconn.drivers import named, numeric


class Holder(NamedTuple):
    """A connection that somebody holds."""

    conn: Any
    execute: Callable[[str], Any]
    """Runs SQL without parameters."""
    raw: Callable[[str], Callable[..., Any]]
    """Statement -> what runs it with texts for its parameters, by name, and fetches the rows."""
    loop: asyncio.AbstractEventLoop | None = None
    """Where the connection lives, if it is asynchronous: what the calls return is then awaited."""

    def do(self, value: Any) -> Any:
        """*value*, or what comes of awaiting it."""
        return self.loop.run_until_complete(value) if self.loop else value

    def turn(
        self, call: Callable[[], Any], clock: Callable[[], float] = CPU, before: str = ""
    ) -> Turn:
        """Calls, timed inside one transaction that is rolled back in the end.

        :param before: SQL that runs in the transaction first, and is not timed.
        """
        time = self._time if self.loop is None else self._time_async

        def turn(calls: int) -> float:
            self.do(self.execute("BEGIN"))
            try:
                if before:
                    self.do(self.execute(before))
                return time(call, calls, clock)
            finally:
                self.do(self.execute("ROLLBACK"))

        return turn

    def _time(self, call: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
        start = clock()
        for _ in range(calls):
            call()
        return (clock() - start) / calls

    def _time_async(
        self, call: Callable[[], Awaitable[Any]], calls: int, clock: Callable[[], float]
    ) -> float:
        async def main() -> float:
            start = clock()
            for _ in range(calls):
                await call()
            return (clock() - start) / calls

        seconds: float = self.do(main())
        return seconds


@contextmanager
def hold_psycopg(dsn: str) -> Generator[Holder]:
    """Hold a `psycopg.Connection`."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield Holder(
            conn,
            conn.execute,
            lambda query: lambda **texts: conn.execute(query, texts).fetchall(),
        )


@contextmanager
def hold_psycopg_async(dsn: str) -> Generator[Holder]:
    """Hold a `psycopg.AsyncConnection`."""
    with closing(asyncio.new_event_loop()) as loop:
        connect = psycopg.AsyncConnection.connect
        conn = loop.run_until_complete(connect(dsn, autocommit=True))

        def raw(query: str) -> Callable[..., Any]:
            async def run(**texts: str) -> Any:
                return await (await conn.execute(query, texts)).fetchall()

            return run

        yield Holder(conn, conn.execute, raw, loop)
        loop.run_until_complete(conn.close())


@contextmanager
def hold_asyncpg(dsn: str) -> Generator[Holder]:
    """Hold an `asyncpg.Connection`."""
    with closing(asyncio.new_event_loop()) as loop:
        conn = loop.run_until_complete(asyncpg.connect(dsn))

        def raw(query: str) -> Callable[..., Any]:
            query, names = numeric(query)
            return lambda **texts: conn.fetch(query, *[texts[name] for name in names])

        yield Holder(conn, conn.execute, raw, loop)
        loop.run_until_complete(conn.close())


@contextmanager
def hold_psycopg2(dsn: str) -> Generator[Holder]:
    """Hold a psycopg2 connection."""
    with closing(psycopg2.connect(dsn)) as conn:
        conn.autocommit = True

        def raw(query: str) -> Callable[..., Any]:
            def run(**texts: str) -> Any:
                with conn.cursor() as cursor:
                    cursor.execute(query, texts)
                    return cursor.fetchall()

            return run

        def execute(sql: str) -> None:
            with conn.cursor() as cursor:
                cursor.execute(sql)

        yield Holder(conn, execute, raw)


@contextmanager
def hold_sqlalchemy(dsn: str, driver: str = "psycopg2") -> Generator[Holder]:
    """Hold a `sqlalchemy.Connection`."""
    engine = sqlalchemy.create_engine(_url(dsn, driver))
    with engine.connect() as conn:

        def raw(query: str) -> Callable[..., Any]:
            clause = sqlalchemy.text(named(query))
            return lambda **texts: conn.execute(clause, texts).fetchall()

        def execute(sql: str) -> None:
            (conn.begin if sql == "BEGIN" else conn.rollback)()

        yield Holder(conn, execute, raw)
    engine.dispose()


@contextmanager
def hold_sqlalchemy_async(dsn: str) -> Generator[Holder]:
    """Hold a `sqlalchemy.ext.asyncio.AsyncConnection` on asyncpg."""
    with closing(asyncio.new_event_loop()) as loop:
        engine = create_async_engine(_url(dsn, "asyncpg"))
        conn = loop.run_until_complete(engine.connect().start())

        def raw(query: str) -> Callable[..., Any]:
            clause = sqlalchemy.text(named(query))

            async def run(**texts: str) -> Any:
                return (await conn.execute(clause, texts)).fetchall()

            return run

        async def execute(sql: str) -> None:
            await (conn.begin().start() if sql == "BEGIN" else conn.rollback())

        yield Holder(conn, execute, raw, loop)
        loop.run_until_complete(conn.close())
        loop.run_until_complete(engine.dispose())


def _url(dsn: str, driver: str) -> str:
    return "postgresql+" + driver + dsn[dsn.index("://") :]
