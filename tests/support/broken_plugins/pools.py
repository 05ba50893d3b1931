"""Faults with pools."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from functools import partial
from typing import Any, ClassVar

import psycopg
from psycopg import sql

from procrastinate_extconn.hookspecs import Listener, hookimpl
from procrastinate_extconn.testing import Kind

from .base import Fault, Pool, open_async_pool, open_pool


class PoolFault(Fault):
    """A plugin that takes pools."""

    pool: ClassVar[type[Pool]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.pool = type("Pool", (Pool,), {})

    @hookimpl
    def connect_external(self, pool: Any) -> Any:
        return self.lend(pool) if isinstance(pool, self.pool) else None

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        """Lend a connection."""
        with pool.raw.connection() as raw, raw.transaction():
            yield self.connection(raw)

    @classmethod
    def pool_kind(cls) -> Kind:
        """How its pool is opened."""
        opened = partial(open_async_pool if cls.is_async else open_pool, pool=cls.pool)
        return Kind(cls.__name__, cls.__name__, (), cls.is_async, opened)


class RightPool(PoolFault):
    """Shows that it is not the harness that fails."""


class LendsAutocommit(PoolFault):
    """Lends a connection that commits each statement."""

    clause = "pool_lends_a_transaction"
    why = "the state is 'autocommit'"

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        with pool.raw.connection() as raw:
            raw.autocommit = True
            try:
                yield self.connection(raw)
            finally:
                raw.autocommit = False


class NeverCommits(PoolFault):
    """Gives a connection back as it is."""

    clause = "pool_lends_a_transaction"
    why = "a clean exit does not commit"

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        with pool.raw.connection() as raw:
            yield self.connection(raw)
            raw.rollback()


class CommitsAlways(PoolFault):
    """Commits in spite of an exception."""

    clause = "pool_rolls_back"
    why = "the row was committed in spite of the exception"

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        with pool.raw.connection() as raw:
            try:
                yield self.connection(raw)
            finally:
                raw.commit()


class SwallowsExceptions(PoolFault):
    """Rolls back and says nothing."""

    clause = "pool_rolls_back"
    why = "the exception is swallowed"

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        with contextlib.suppress(Exception), super().lend(pool) as conn:
            yield conn


class KeepsConnectionsOnError(PoolFault):
    """Gives a connection back on a clean exit alone."""

    clause = "pool_gets_connections_back"
    why = "PoolTimeout"

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        raw = pool.raw.getconn()
        yield self.connection(raw)
        raw.commit()
        pool.raw.putconn(raw)


class OpensItsOwn(PoolFault):
    """Takes from the pool its address alone."""

    clause = "pool_gets_connections_back"
    why = "each block has a new connection"

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        with psycopg.connect(pool.dsn) as raw:
            yield self.connection(raw)


class LeavesSettings(PoolFault):
    """Sets what it would rather have on the pool's connections."""

    clause = "pool_stays_the_callers"
    why = "a later transaction has other settings than the first"
    count: ClassVar[int] = 0

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        with super().lend(pool) as conn:
            yield conn
            type(self).count += 1
            conn.raw.execute(f"SET application_name = 'plugin {self.count}'")


class TakesPools(PoolFault):
    """Takes a pool for a connection."""

    clause = "pool_is_no_connection"
    why = "nothing was raised instead of UnsupportedConnection"

    def is_mine(self, conn: Any) -> bool:
        return isinstance(conn, (self.connection, self.pool))

    def describe(self, raw: Any) -> Any:
        with raw.connection() as conn:
            return super().describe(conn)

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        with raw.connection() as conn:
            return super().execute(conn, query, args)


class AsyncPoolFault(PoolFault):
    """A plugin that takes async pools, and listens."""

    is_async = True

    @contextlib.asynccontextmanager
    async def lend(self, pool: Pool) -> AsyncGenerator[Any]:  # type: ignore[override]
        async with pool.raw.connection() as raw, raw.transaction():
            yield self.connection(raw)

    @hookimpl
    def listen_external(self, pool: Any, channels: Sequence[str]) -> Any:
        return self.listen(pool, channels) if isinstance(pool, self.pool) else None

    @contextlib.asynccontextmanager
    async def listen(self, pool: Pool, channels: Sequence[str]) -> AsyncGenerator[Any]:
        """Listen on a connection of its own, whose notices are asked for in between."""
        raw = await self.open(pool)
        try:
            await raw.set_autocommit(True)
            for channel in channels:
                await raw.execute(self.listening(channel))
            yield Listener(self.connection(raw), self.notifications(raw))
        finally:
            await self.give_back(pool, raw)

    async def open(self, pool: Pool) -> Any:
        """Take a connection."""
        return await pool.raw.getconn()

    async def give_back(self, pool: Pool, raw: Any) -> None:
        """Give the connection back as it was."""
        if not raw.closed:
            await raw.execute("UNLISTEN *")
            await raw.set_autocommit(False)
        await pool.raw.putconn(raw)

    def listening(self, channel: str) -> Any:
        """Say it in SQL."""
        return sql.SQL("LISTEN {}").format(sql.Identifier(channel))

    async def notifications(self, raw: Any) -> AsyncIterator[tuple[str, str]]:
        """Look for notifications in turn with statements."""
        while True:
            found = [notify async for notify in raw.notifies(timeout=0.02)]
            for notify in found:
                yield notify.channel, notify.payload


class RightAsyncPool(AsyncPoolFault):
    """Shows that it is not the harness that fails."""


class CommitsOnCancellation(AsyncPoolFault):
    """Takes a cancellation for a clean exit."""

    clause = "pool_when_cancelled"
    why = "a row of a task that was cancelled was committed"

    @contextlib.asynccontextmanager
    async def lend(self, pool: Pool) -> AsyncGenerator[Any]:  # type: ignore[override]
        async with pool.raw.connection() as raw:
            try:
                yield self.connection(raw)
            except Exception:
                await raw.rollback()
                raise
            finally:
                await raw.commit()


class DropsEmptyPayloads(AsyncPoolFault):
    """Takes an empty payload for none."""

    clause = "pool_listens"
    why = ""

    async def notifications(self, raw: Any) -> AsyncIterator[tuple[str, str]]:
        async for channel, payload in super().notifications(raw):
            if payload:
                yield channel, payload


class FoldsChannels(AsyncPoolFault):
    """Does not quote the names of channels."""

    clause = "pool_listens"
    why = "syntax error"

    def listening(self, channel: str) -> Any:
        return f"LISTEN {channel}"


class HearsAll(AsyncPoolFault):
    """Gives payload and channel the wrong way round."""

    clause = "pool_listens"
    why = "it gives [('first', 'procrastinate_queue_v1#q')"

    async def notifications(self, raw: Any) -> AsyncIterator[tuple[str, str]]:
        async for channel, payload in super().notifications(raw):
            yield payload, channel


class LeavesListening(AsyncPoolFault):
    """Gives a connection back that listens."""

    clause = "listener_is_tidied_up"
    why = "a connection in the pool still listens"

    async def give_back(self, pool: Pool, raw: Any) -> None:
        await raw.set_autocommit(False)
        await pool.raw.putconn(raw)


class LeavesAutocommit(AsyncPoolFault):
    """Gives a connection back that commits each statement."""

    clause = "listener_is_tidied_up"
    why = "a connection in the pool has autocommit = True"

    async def give_back(self, pool: Pool, raw: Any) -> None:
        await raw.execute("UNLISTEN *")
        await pool.raw.putconn(raw)


class NeverGivesBack(AsyncPoolFault):
    """Keeps the connection that listened."""

    clause = "listener_is_tidied_up"
    why = "PoolTimeout"

    async def give_back(self, pool: Pool, raw: Any) -> None:
        self.kept = raw


class BlocksStatements(AsyncPoolFault):
    """Waits for notifications with the connection in its hands."""

    clause = "listener_runs_statements"
    why = "TimeoutError"

    async def notifications(self, raw: Any) -> AsyncIterator[tuple[str, str]]:
        async for notify in raw.notifies():
            yield notify.channel, notify.payload


class ListensInATransaction(AsyncPoolFault):
    """Leaves the statements of the listener's connection uncommitted."""

    clause = "listener_runs_statements"
    why = "a statement is not committed by itself"

    async def notifications(self, raw: Any) -> AsyncIterator[tuple[str, str]]:
        async for one in super().notifications(raw):
            yield one

    async def give_back(self, pool: Pool, raw: Any) -> None:
        await raw.rollback()
        await super().give_back(pool, raw)

    @contextlib.asynccontextmanager
    async def listen(self, pool: Pool, channels: Sequence[str]) -> AsyncGenerator[Any]:
        async with super().listen(pool, channels) as listener:
            await listener.conn.raw.execute("BEGIN")
            yield listener


class HoldsATransaction(ListensInATransaction):
    """Does so without channels."""

    clause = "held_without_channels"
    why = "a statement is not committed by itself"


class WaitsForEver(AsyncPoolFault):
    """Does not notice that the connection is gone."""

    clause = "listener_ends_with_its_connection"
    why = "seconds after its connection ended"

    async def notifications(self, raw: Any) -> AsyncIterator[tuple[str, str]]:
        import asyncio

        with contextlib.suppress(psycopg.Error):
            async for one in super().notifications(raw):
                yield one
        await asyncio.Event().wait()
