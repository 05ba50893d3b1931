"""A connection of a pool that a worker holds, and the notifications that it gets there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

from procrastinate.connector import Notify
from procrastinate.exceptions import ConnectorException, ProcrastinateException

from .. import server_errors
from ..fallback import type_name
from ..hookspecs import Listener, Rows
from ..plugins import plugins
from ..sync_async import done
from .recovery import Send, is_transient

logger: logging.Logger = logging.getLogger(__name__)

RunOn: TypeAlias = "Callable[[object, str, dict[str, Any]], Awaitable[Rows]]"
Repeat: TypeAlias = "Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]"

_WAKE_UP = '{"type": "job_inserted", "job_id": 0}'
_NOTIFY = "SELECT CAST(pg_notify(CAST(%(channel)s AS text), '') AS text) AS notified"
_HEARD_WITHIN = 5.0
_PROBES = 3
"""Behind PgBouncer, one may be heard by chance."""
_CHECK_INTERVAL = 30.0


async def of_pool(pool: object, call: Callable[..., Any], *arguments: object) -> Any:
    """Call what is around a query: no connection may be had, or a commit fail."""
    try:
        return await done(call(*arguments))
    except ProcrastinateException:
        raise
    except Exception as exc:  # noqa: BLE001 - a driver may raise anything
        error = server_errors.translate(exc, pool, driver=type_name(type(pool)), state="idle")
    raise error


class HeldConnection:
    """One connection of *pool*: taken when it is needed, used by one statement at a time, replaced when it is lost.

    :param run_on: runs a query on a connection.
    """

    def __init__(self, pool: object, run_on: RunOn) -> None:
        self.pool = pool
        self.channels: Sequence[str] = ()
        self.listens: bool = False
        """Whether the present connection listens on the channels."""
        self._run_on = run_on
        self._lock = asyncio.Lock()
        self._listener: Listener | None = None
        self._context: AbstractAsyncContextManager[Listener] | None = None

    async def take(self) -> Listener | None:
        """Take a connection, unless one is held; None if no plugin can hold one of this pool."""
        async with self._lock:
            return await self._take()

    async def send(self, query: str, arguments: dict[str, Any]) -> Rows | None:
        """Run *query* when its turn comes; None if no plugin can hold a connection of this pool."""
        async with self._lock:
            listener = await self._take()
            if listener is None:
                return None
            try:
                return await self._run_on(listener.conn, query, arguments)
            except (ConnectorException, asyncio.CancelledError) as exc:
                if not isinstance(exc, ConnectorException) or is_transient(exc):
                    await self._give_back(exc)
                raise

    async def at_rest(self) -> None:
        """Wait until the statement that runs on it has ended."""
        async with self._lock:
            pass

    async def give_back(
        self, error: BaseException | None = None, listener: Listener | None = None
    ) -> None:
        """Give the connection back; with an *error*, as lost. With a *listener*, give back that one alone."""
        async with self._lock:
            if listener is None or listener is self._listener:
                await self._give_back(error)

    async def _take(self) -> Listener | None:
        if self._listener is None:
            context = plugins().listen(self.pool, self.channels)
            self.listens = context is not None and bool(self.channels)
            context = context or plugins().listen(self.pool, ())
            if context is not None:
                self._listener = await of_pool(self.pool, context.__aenter__)
                self._context = context
        return self._listener

    async def _give_back(self, error: BaseException | None) -> None:
        context, self._context, self._listener = self._context, None, None
        if context is not None:
            # A connection that is lost may not even be given back without an error.
            with contextlib.suppress(Exception):
                await context.__aexit__(type(error) if error else None, error, None)


class Listening:
    """The notifications that a worker gets on a held connection.

    :param repeat: repeats what it is given until that succeeds.
    :param send: runs a query on any connection of the application's pool.
    """

    def __init__(self, held: HeldConnection, repeat: Repeat, send: Send) -> None:
        self._held = held
        self._repeat = repeat
        self._send = send
        self._probe = f"procrastinate_extconn_{secrets.token_hex(8)}"
        self._heard = asyncio.Event()

    async def run(self, on_notification: Notify, channels: Sequence[str]) -> None:
        """Call *on_notification* for each notification on *channels*, until cancelled."""
        await self._held.give_back()
        self._held.channels = (*channels, self._probe)
        listener = await self._repeat(self._held.take)
        if not self._held.listens:
            self._say_that_it_polls("cannot listen")
            await asyncio.Event().wait()
        checks = asyncio.create_task(self._check())
        try:
            while True:
                # Jobs may have been announced while nobody listened.
                await on_notification(channel=channels[0], payload=_WAKE_UP)
                lost: Exception = ConnectionError("the notifications have ended")
                try:
                    async for channel, payload in listener.notifications:
                        if channel == self._probe:
                            self._heard.set()
                        else:
                            await on_notification(channel=channel, payload=payload)
                except Exception as exc:  # noqa: BLE001 - a driver may raise anything
                    lost = exc
                await self._held.give_back(lost, listener)
                await asyncio.sleep(0.05)
                listener = await self._repeat(self._held.take)
        finally:
            checks.cancel()

    async def _check(self) -> None:
        """See whether a notification arrives, and then that the connection lives: maybe nothing else is sent on it."""
        try:
            for _ in range(_PROBES):
                self._heard.clear()
                await self._repeat(lambda: self._send(_NOTIFY, {"channel": self._probe}))
                await asyncio.wait_for(self._heard.wait(), _HEARD_WITHIN)
        except (TimeoutError, asyncio.TimeoutError):
            self._say_that_it_polls("hears nothing, as behind PgBouncer's transaction mode")
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            await self._repeat(lambda: self._held.send("SELECT 1 AS one", {}))

    def _say_that_it_polls(self, why: str) -> None:
        logger.warning(
            "The worker polls, since a connection of its pool (%s) %s. PoolConnector(..., listen=...) takes another "
            "pool for notifications",
            type_name(type(self._held.pool)),
            why,
            extra={"action": "worker_polls"},
        )
