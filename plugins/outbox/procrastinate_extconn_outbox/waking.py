"""When the relay looks again: at a notification, or after a while."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from sqlalchemy import NullPool
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from procrastinate_extconn.plugins import plugins

from .lending import explained
from .names import CHANNEL

logger: logging.Logger = logging.getLogger(__name__)

POLL = 1.0
"""Seconds between two looks at an outbox that tells nothing."""
_POLL_LISTENING = 5.0
"""The same where notifications come. One may be lost, as behind PgBouncer."""
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds between attempts, one after the other. The last is repeated."""


class Waking:
    """What the relay waits for between two looks."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._stopped = asyncio.Event()
        self._listens = False
        self._failures = 0

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """End every wait, now and later."""
        self._stopped.set()

    async def next_look(self) -> None:
        """Wait for a notification, or for the next time to look."""
        await _first(
            _POLL_LISTENING if self._listens else POLL, self._woken.wait(), self._stopped.wait()
        )
        self._woken.clear()

    async def pause(self) -> float:
        """Wait a while after a failure, longer after each. Returns how long."""
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        await _first(pause, self._stopped.wait())
        return pause

    def succeeded(self) -> None:
        """Let the next pause be a short one again."""
        self._failures = 0

    async def listen(self, engine: Engine | AsyncEngine) -> None:
        """Wake at each notification of a PostgreSQL outbox, until cancelled."""
        if engine.dialect.name != "postgresql":
            return
        own = None
        if not isinstance(engine, AsyncEngine):
            url = engine.url.set(drivername="postgresql+psycopg")
            engine = own = create_async_engine(url, poolclass=NullPool)
        try:
            await self._listen(engine)
        finally:
            if own is not None:
                await own.dispose()

    async def _listen(self, engine: AsyncEngine) -> None:
        listener = plugins().listen(engine, (CHANNEL,))
        if listener is None:
            return
        failures = 0
        while True:
            try:
                async with listener as held:
                    self._listens, failures = True, 0
                    self._woken.set()  # Rows may have come while nobody listened.
                    async for _ in held.notifications:
                        self._woken.set()
            except Exception as exc:  # noqa: BLE001 - a driver may raise anything, and polling goes on
                logger.debug(
                    "The relay polls for a while: %s", explained(exc, "the outbox's database")
                )
            self._listens = False
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])
            failures += 1
            listener = plugins().listen(engine, (CHANNEL,))


async def _first(timeout: float, *awaitables: Awaitable[object]) -> None:
    """Wait for the first of *awaitables*, or so many seconds."""
    tasks = [asyncio.ensure_future(one) for one in awaitables]
    try:
        await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
