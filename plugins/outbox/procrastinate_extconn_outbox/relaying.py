"""``relay``: rows of an outbox become jobs, each exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeAlias, TypeVar

import procrastinate
from procrastinate.exceptions import ConnectorException
from sqlalchemy.engine import URL, Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from . import forwarding
from .lending import Lender, may_pass
from .names import OUTBOX
from .queues import QUEUE, pool_of
from .source import ROWS, Source, engine_of, reading_afresh
from .waking import Waking

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")
AnySource: TypeAlias = "str | URL | Engine | AsyncEngine"

_IDS = 5 * ROWS
"""After so many ids the relay tries to forget them, even while it is busy."""
_PATIENCE = 200
_LAST_PATIENCE = 2000
"""Milliseconds to wait for the fence, in between and at the end."""
_END = 5
"""Seconds to spend on that at the end."""


def relay(
    source: AnySource, app: procrastinate.App, *, table: str = OUTBOX, wait: bool = True
) -> None:
    """Forward the rows of an outbox to the queue of *app*, each exactly once, until SIGTERM or SIGINT.

    Any number of relays may work on one outbox. A server that is down is waited for. A row that cannot be forwarded is
    set aside with the reason, which is logged.

    :param source: the outbox's database: an engine, sync or async, or a URL. It has to lead to the primary.
    :param app: it is opened and closed if it is not open.
    :param table: the outbox's name, as `Outbox` has it.
    :param wait: go on when the outbox is empty. If false, end when it holds no row that is not set aside.
    :raises ExternalConnectionError: if a table is missing and the role may not create it.
    :raises procrastinate.exceptions.ConnectorException: for an error of a server that does not pass by waiting.
    """

    async def run() -> None:
        waking = Waking()
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            loop.remove_signal_handler(number)  # The second one does what it does elsewhere.
            waking.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            # Another thread than the main one gets no signals.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, stop, number)
        await _run(source, app, table, waking, wait=wait)

    asyncio.run(run())


async def relay_async(
    source: AnySource, app: procrastinate.App, *, table: str = OUTBOX, wait: bool = True
) -> None:
    """Forward the rows of an outbox, as `relay` does, until cancelled. It leaves signals alone."""
    await _run(source, app, table, Waking(), wait=wait)


async def _run(
    source: AnySource, app: procrastinate.App, table: str, waking: Waking, *, wait: bool
) -> None:
    async with _engine(source) as engine, contextlib.AsyncExitStack() as stack:
        lender = Lender(reading_afresh(engine), "the outbox's database")
        outbox = stack.enter_context(contextlib.closing(lender))
        # While its server is down, the app cannot be opened.
        pool = await _patiently(waking, lambda: stack.enter_async_context(pool_of(app)))
        if pool is None:
            return
        queue = stack.enter_context(contextlib.closing(Lender(pool, QUEUE)))
        relay = _Relay(Source(table), outbox, queue, waking)
        listening = asyncio.ensure_future(waking.listen(engine) if wait else asyncio.sleep(0))
        try:
            await relay.run(wait=wait)
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


@contextlib.asynccontextmanager
async def _engine(source: AnySource) -> AsyncGenerator[Engine | AsyncEngine]:
    if isinstance(source, (Engine, AsyncEngine)):
        yield source
        return
    engine = engine_of(source)
    try:
        yield engine
    finally:
        if isinstance(engine, AsyncEngine):
            await engine.dispose()
        else:
            engine.dispose()


async def _patiently(waking: Waking, attempt: Callable[[], Awaitable[T]]) -> T | None:
    """What *attempt* returns, once it succeeds; None if the relay is stopped."""
    while not waking.is_stopped:
        try:
            result = await attempt()
        except ConnectorException as exc:
            if not may_pass(exc):
                raise
            error = exc
        else:
            waking.succeeded()
            return result
        logger.warning(
            "The relay waits, and tries again: %s", error, extra={"action": "outbox_relay_waits"}
        )
        await waking.pause()
    return None


class _Relay:
    """Forwards rows until there are none, or until it is stopped.

    :param outbox: lends connections to the outbox's database.
    :param queue: lends connections to the queue's.
    """

    def __init__(self, source: Source, outbox: Lender, queue: Lender, waking: Waking) -> None:
        self._source = source
        self._outbox = outbox
        self._queue = queue
        self._waking = waking
        self._known: set[str] = set()
        """Ids that this relay has read in the outbox, and that the inbox may still hold."""
        self._forget_at = _IDS

    async def run(self, *, wait: bool) -> None:
        """Forward rows. What fails is repeated until it succeeds."""
        try:
            await self._run(wait=wait)
        finally:
            # A server that is down now is no reason to wait.
            with contextlib.suppress(ConnectorException, TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._forget(_LAST_PATIENCE), _END)

    async def _run(self, *, wait: bool) -> None:
        await _patiently(self._waking, self._prepare)
        is_full, was_idle = False, False
        while not self._waking.is_stopped:
            count = 0
            if is_full or await _patiently(self._waking, self._has_rows):
                count = await _patiently(self._waking, self._forward) or 0
            elif not wait:
                break
            is_full = count == ROWS
            if was_idle or len(self._known) >= self._forget_at:
                await self._forget(_PATIENCE)
            was_idle = not count
            if not count:
                # Rows that are there all the same are another relay's.
                await self._waking.next_look()

    async def _prepare(self) -> None:
        async with self._outbox.transaction() as outbox:
            await outbox.run(self._source.check)
        async with self._queue.transaction() as queue:
            await forwarding.prepare(queue)

    async def _has_rows(self) -> bool:
        async with self._outbox.transaction() as outbox:
            return await outbox.run(self._source.has_rows)

    async def _forward(self) -> int:
        """Forward some rows. Until they are deleted, the inbox knows them."""
        async with contextlib.AsyncExitStack() as claim:
            async with self._queue.transaction() as queue:
                await forwarding.enter_fence(queue)
                outbox = await claim.enter_async_context(self._outbox.transaction())
                rows = await outbox.run(self._source.claim)
                if not rows:
                    return 0
                is_claimed = await outbox.run(self._source.holds_claims)
                if not is_claimed:
                    await claim.aclose()  # It could only be in the way of others.
                gone, aside = await forwarding.forward(queue, rows)
            self._known.update(gone)
            if not is_claimed:
                outbox = await claim.enter_async_context(self._outbox.transaction())
            await outbox.run(self._source.settle, gone, aside)
        for row_id, reason in aside.items():
            logger.error(
                "The row %s is set aside: %s",
                row_id,
                reason,
                extra={"action": "outbox_row_set_aside"},
            )
        logger.debug("Rows forwarded: %s", len(gone), extra={"action": "outbox_rows_forwarded"})
        return len(rows)

    async def _forget(self, patience: int) -> None:
        """Let the inbox forget rows that are gone, if no other relay holds the fence for long.

        These are ids that this relay itself has read here. Those of other outboxes are never touched.
        """
        if not self._known:
            return
        try:
            async with self._queue.transaction() as queue:
                await forwarding.close_fence(queue, patience)
                async with self._outbox.transaction() as outbox:
                    left = await outbox.run(self._source.still_there, self._known)
                await forwarding.forget(queue, self._known - left)
        except ConnectorException as exc:
            if not may_pass(exc):
                raise
            self._forget_at = len(self._known) + _IDS
        else:
            self._known = left
            self._forget_at = len(left) + _IDS
