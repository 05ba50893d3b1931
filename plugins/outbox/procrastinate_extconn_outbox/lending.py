"""A pool or an engine, sync or async, lends connections in transactions of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeAlias, TypeVar

from procrastinate.exceptions import ConnectorException

from procrastinate_extconn import server_errors
from procrastinate_extconn.fallback import type_name
from procrastinate_extconn.hookspecs import Rows, Value
from procrastinate_extconn.plugins import plugins
from procrastinate_extconn.pool.recovery import is_blocked, is_transient
from procrastinate_extconn.sync_async import done

T = TypeVar("T")
Call: TypeAlias = "Callable[..., Awaitable[Any]]"


class Lent:
    """A connection in a transaction, which ends with the block that lent it."""

    def __init__(self, conn: Any, call: Call) -> None:
        self._conn = conn
        self._call = call

    async def execute(self, query: str, args: Mapping[str, Value]) -> Rows:
        """Run one statement of PostgreSQL's."""
        rows: Rows = await self._call(plugins().execute, self._conn, query, args)
        return rows

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call *function* with SQLAlchemy's synchronous connection."""
        if hasattr(self._conn, "run_sync"):
            result: T = await self._call(self._conn.run_sync, function, *arguments)
        else:
            result = await self._call(function, self._conn, *arguments)
        return result


class Lender:
    """Lends connections. What is synchronous runs in a thread, so that the event loop goes on.

    Every error of a driver is raised as Procrastinate's, without a value that was sent.

    :param pool: what a plugin lends connections of.
    :param place: what errors call it.
    """

    def __init__(self, pool: object, place: str) -> None:
        self._pool = pool
        self._place = place
        self._thread = ThreadPoolExecutor(1, "procrastinate-outbox")

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Lent]:
        """Lend a connection. What is done on it is committed, unless the block ends with an exception."""
        lent: Any = plugins().connect(self._pool)
        if lent is None:
            raise ConnectorException(
                f"the relay cannot work on {type_name(type(self._pool))}: no plugin takes it as a pool or an engine"
            )
        if hasattr(lent, "__aenter__"):
            call, enter, leave = self._call, lent.__aenter__, lent.__aexit__
        else:
            call, enter, leave = self._call_in_thread, lent.__enter__, lent.__exit__
        try:
            conn = await call(enter)
        except asyncio.CancelledError:
            if call == self._call_in_thread:  # The thread goes on, and then has a connection.
                with contextlib.suppress(Exception):
                    await call(leave, None, None, None)
            raise
        try:
            yield Lent(conn, call)
        except BaseException as exc:
            # A connection that is lost may not even be given back without an error.
            with contextlib.suppress(Exception):
                await call(leave, type(exc), exc, exc.__traceback__)
            raise
        await call(leave, None, None, None)

    async def _call_in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await self._call(loop.run_in_executor, self._thread, partial(function, *arguments))

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await done(function(*arguments))
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything
            error = explained(exc, self._place)
        # Outside of the `except`, so that it has no context: a wrapper's error quotes parameters.
        try:
            raise error
        finally:
            del error

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False)


def explained(error: Exception, place: str) -> ConnectorException:
    """*error* as Procrastinate's, without a value that was sent."""
    if isinstance(error, ConnectorException):
        return error
    return server_errors.translate(error, None, driver=place, state="idle")


def may_pass(error: ConnectorException) -> bool:
    """Whether the same may succeed later: a server that is down, a conflict, a lock."""
    return is_transient(error) or is_blocked(error)
