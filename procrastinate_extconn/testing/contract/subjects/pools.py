"""What a pool lends, and how it listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from ....connector import ExternalConnector
from ....exceptions import UnsupportedConnection
from ....hookspecs import Listener
from ....kinds import Kind
from ....plugins import describe, plugins
from ..caller import Caller, what
from ..clause import clause, must
from ..database import Database
from ..wiretap import Wiretap
from .session import attributes

PATIENCE = 10.0
_TIMES = 25
"""More than a pool has connections."""
_CHANNELS = ["procrastinate_queue_v1#q", 'Odd "channel"']
_LISTENS = "SELECT count(*) AS n FROM pg_listening_channels()"
_PID = "SELECT pg_backend_pid() AS pid"


class _OnPurpose(Exception):
    """What a clause raises inside a lent transaction."""


class Lender:
    """What a clause about a pool works with.

    :param kind: of pool.
    :param pool: the pool itself.
    :param database: where it leads.
    """

    def __init__(self, kind: Kind, pool: Any, database: Database) -> None:
        self.kind = kind
        self.pool = pool
        self.database = database
        self.wiretap: Wiretap | None = None
        self.gone = False

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[Any]:
        """A connection in a transaction of its own, in either kind of call."""
        manager = plugins().connect(self.pool)
        must(manager is not None, "connect_external returns None for the pool")
        is_async = hasattr(manager, "__aenter__")
        must(
            is_async is self.kind.is_async,
            "the context manager is not sync or async as the pool is",
        )
        if is_async:
            async with manager as conn:
                yield conn
        else:
            with manager as conn:
                yield conn

    async def query(self, conn: Any, query: str, **arguments: Any) -> list[dict[str, Any]]:
        """Run a query on a lent connection."""
        connector = ExternalConnector(conn, outside_transaction="allow")
        return await connector.run_query(query, arguments, is_async=self.kind.is_async)

    async def insert(self, conn: Any, order: int) -> None:
        """Insert a row."""
        await self.query(conn, "INSERT INTO orders VALUES (%(id)s::bigint)", id=order)

    def orders(self) -> list[int]:
        """The rows that are committed."""
        rows = self.database.witness.execute("SELECT id FROM orders ORDER BY id").fetchall()
        return [row[0] for row in rows]

    @asynccontextmanager
    async def listening(self, *channels: str) -> AsyncGenerator[Listener]:
        """The pool's listener."""
        manager = plugins().listen(self.pool, list(channels))
        must(manager is not None, "listen_external returns None for an async pool")
        async with manager as listener:
            must(isinstance(listener, Listener), f"it yields {type(listener).__name__}")
            yield listener

    def notify(self, channel: str, payload: str) -> None:
        """Notify a channel."""
        self.database.value("SELECT pg_notify(%s, %s)", channel, payload)

    def needs(self, *hooks: str, is_async: bool = False) -> None:
        """Leave the clause out where the plugin lacks one of the *hooks*, or the pool is not of the right kind."""
        for hook in hooks:
            if self.kind.plugin not in plugins().names(hook):
                pytest.skip(f"the plugin has no {hook}")
        if (is_async or "listen_external" in hooks) and not self.kind.is_async:
            pytest.skip("the pool is sync")


class PoolClauses:
    """`connect_external` and `listen_external`, if the plugin has them."""

    @clause(on="pools")
    async def test_pool_is_no_connection(self, lender: Lender) -> None:
        """A pool that is passed as a connection is refused."""
        error = await Caller.error_of(lender, lender.query(lender.pool, _PID))  # type: ignore[arg-type]
        must(
            isinstance(error, UnsupportedConnection),
            f"{what(error)} instead of UnsupportedConnection",
            error,
        )

    @clause(on="pools")
    async def test_pool_lends_a_transaction(self, lender: Lender) -> None:
        """`connect_external` lends a connection in a transaction, which a clean exit commits."""
        lender.needs("connect_external")
        async with lender.lent() as conn:
            state = describe(conn).state
            must(state in ("idle", "in_transaction", "unknown"), f"the state is {state!r}")
            await lender.insert(conn, 1)
            must(not lender.orders(), "a row was committed before the exit")
        must(lender.orders() == [1], "a clean exit does not commit")

    @clause(on="pools")
    async def test_pool_rolls_back(self, lender: Lender) -> None:
        """An exception in the block rolls the lent transaction back, and comes out as it is."""
        lender.needs("connect_external")
        came_out = False
        try:
            async with lender.lent() as conn:
                await lender.insert(conn, 1)
                raise _OnPurpose
        except _OnPurpose:
            came_out = True
        must(came_out, "the exception is swallowed")
        must(not lender.orders(), "the row was committed in spite of the exception")

    @clause(on="pools")
    async def test_pool_gets_connections_back(self, lender: Lender) -> None:
        """Each connection is back in the pool afterwards, also after an exception and after a failed statement."""
        lender.needs("connect_external")
        pids = set()
        for n in range(_TIMES):
            with suppress(_OnPurpose):
                async with lender.lent() as conn:
                    pids |= {(await lender.query(conn, _PID))[0]["pid"]}
                    if n % 3 == 1:
                        raise _OnPurpose
                    if n % 3 == 2:
                        with suppress(Exception):
                            await lender.query(conn, "SELECT 1 / 0 AS quotient")
                        raise _OnPurpose
        must(len(pids) < _TIMES, "each block has a new connection, so none is given back")

    @clause(on="pools")
    async def test_pool_lends_each_its_own(self, lender: Lender) -> None:
        """Two blocks at once have two connections; the pool of the test has at least two."""
        lender.needs("connect_external")
        async with lender.lent() as first:
            await lender.insert(first, 1)
            async with lender.lent() as second:
                [one], [other] = await lender.query(first, _PID), await lender.query(second, _PID)
                must(one != other, "both blocks have the same connection")
                await lender.insert(second, 2)
            must(lender.orders() == [2], "the second block commits with the first, or not at all")
        must(lender.orders() == [1, 2], "the first block does not commit")

    @clause(on="pools")
    async def test_pool_stays_the_callers(self, lender: Lender) -> None:
        """The pool's settings are as they were, and it is not closed."""
        lender.needs("connect_external")
        settings = "SELECT json_object_agg(name, setting)::text AS settings FROM pg_settings"
        seen = set()
        for _ in range(_TIMES):
            async with lender.lent() as conn:
                [row] = await lender.query(conn, settings)
                seen.add(row["settings"])
        must(len(seen) == 1, "a later transaction has other settings than the first")

    @clause(on="pools")
    async def test_pool_when_cancelled(self, lender: Lender) -> None:
        """A task that is cancelled in the block of an async pool is rolled back, and the pool has its connection."""
        lender.needs("connect_external", is_async=True)
        for n in range(_TIMES):
            entered = asyncio.Event()
            task = asyncio.create_task(_insert_and_wait(lender, n, entered))
            await entered.wait()
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        must(not lender.orders(), "a row of a task that was cancelled was committed")

    @clause(on="pools")
    async def test_pool_listens(self, lender: Lender) -> None:
        """`listen_external` gives each notification of its channels, channel and payload, in order."""
        lender.needs("listen_external")
        sent = [
            (channel, payload)
            for payload in ("first", "", "it's ünï 🦄", "x" * 7000)
            for channel in _CHANNELS
        ]
        async with lender.listening(*_CHANNELS) as listener:
            lender.notify("another", "not asked for")
            for one in sent:
                lender.notify(*one)
            heard = [await _next(listener.notifications) for _ in sent]
            must(heard == sent, f"it gives {heard!r}, not {sent!r}")
            lender.notify(_CHANNELS[0], "once")
            must(
                await _next(listener.notifications) == (_CHANNELS[0], "once"),
                "a notification comes twice",
            )

    @clause(on="pools")
    async def test_listener_runs_statements(self, lender: Lender) -> None:
        """While notifications are awaited, the listener's connection runs statements and commits each by itself."""
        lender.needs("listen_external")
        async with lender.listening(*_CHANNELS) as listener:
            waiting = asyncio.ensure_future(_next(listener.notifications))
            await asyncio.sleep(0)
            for n in range(3):
                await asyncio.wait_for(lender.insert(listener.conn, n), PATIENCE)
                must(lender.orders()[-1:] == [n], "a statement is not committed by itself")
            lender.notify(_CHANNELS[0], "after it")
            must(await waiting == (_CHANNELS[0], "after it"), "the notification after it is lost")

    @clause(on="pools")
    async def test_held_without_channels(self, lender: Lender) -> None:
        """Without channels, `listen_external` holds a connection that commits each statement, or returns None."""
        lender.needs("listen_external")
        if plugins().listen(lender.pool, []) is None:
            return
        async with lender.listening() as listener:
            [row] = await lender.query(listener.conn, _LISTENS)
            must(row["n"] == 0, "it listens")
            await lender.insert(listener.conn, 1)
            must(lender.orders() == [1], "a statement is not committed by itself")

    @clause(on="pools")
    async def test_listener_is_tidied_up(self, lender: Lender) -> None:
        """Afterwards no connection of the pool listens, and the pool has all of them back."""
        lender.needs("listen_external", "connect_external")
        async with lender.lent() as conn:
            before = attributes(conn)
        for n in range(_TIMES):
            with suppress(_OnPurpose):
                async with lender.listening(*_CHANNELS):
                    if n % 2:
                        raise _OnPurpose
        async with lender.lent() as conn:
            [row] = await lender.query(conn, _LISTENS)
            must(row["n"] == 0, "a connection in the pool still listens")
            for name, value in attributes(conn).items():
                was = before.get(name)
                must(
                    not isinstance(value, bool) or was == value,
                    f"a connection in the pool has {name} = {value!r}, where it was {was!r}",
                )

    @clause(on="pools")
    async def test_listener_ends_with_its_connection(self, lender: Lender) -> None:
        """When its connection is lost, the notifications end or raise, instead of waiting for ever."""
        lender.needs("listen_external")
        ended: set[Any] = set()
        with suppress(Exception):
            async with lender.listening(*_CHANNELS) as listener:
                [row] = await lender.query(listener.conn, _PID)
                waiting = asyncio.ensure_future(_end(listener.notifications))
                await asyncio.sleep(0)
                lender.database.value("SELECT pg_terminate_backend(%s)", row["pid"])
                ended, _ = await asyncio.wait([waiting], timeout=PATIENCE)
        must(ended, f"it waits for notifications {PATIENCE:.0f} seconds after its connection ended")


async def _insert_and_wait(lender: Lender, order: int, entered: asyncio.Event) -> None:
    async with lender.lent() as conn:
        await lender.insert(conn, order)
        entered.set()
        await asyncio.Event().wait()


async def _next(notifications: AsyncIterator[tuple[str, str]]) -> tuple[str, str]:
    channel, payload = await asyncio.wait_for(notifications.__anext__(), PATIENCE)
    return channel, payload


async def _end(notifications: AsyncIterator[tuple[str, str]]) -> None:
    with suppress(Exception):
        async for _ in notifications:
            pass
