"""A defer is interrupted at a random moment: its task is cancelled, its time is up, somebody presses Ctrl-C.

All that the caller may do then is roll back, as any ``with`` block does.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from faults.chance import at_a_random_moment
from faults.ledger import Ledger

import procrastinate_extconn as extconn
from procrastinate_extconn.kinds import Held, Kind, all_kinds, done, run

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("installed"),
    # A driver that was interrupted may leave its socket to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:the plugin 'psqlpy' does not tell"),
]

Call = Coroutine[Any, Any, Any]

IN_A_TASK = [kind for kind in all_kinds() if kind.is_async or kind.in_greenlet]


class Interruptions:
    """Transactions whose defer is interrupted, with a savepoint round it or without.

    :param interrupt: awaits a call, and interrupts it within so many seconds.
    """

    def __init__(self, ledger: Ledger, interrupt: Callable[[Call, float], Call]) -> None:
        self.ledger = ledger
        self._interrupt = interrupt
        self._durations = [0.005]

    def run(self, transactions: int) -> None:
        """Run them, each on a new connection."""
        while self.ledger.transactions < transactions:
            with contextlib.suppress(Exception):
                run(self.ledger.kind, self.ledger.dsn, self._transact)
        gc.collect()

    async def _transact(self, held: Held) -> None:
        ledger = self.ledger
        order = ledger.begin()
        await ledger.insert(held, order)
        conn = extconn.external(held.conn, savepoint=ledger.rng.random() < 0.5)
        started = time.perf_counter()
        within = 1.5 * statistics.median(self._durations[-20:])
        try:
            await self._interrupt(ledger.defer(conn, order), within)
        except (asyncio.CancelledError, asyncio.TimeoutError):
            await done(held.rollback())
            await self._use_again(held)
        except KeyboardInterrupt:
            await done(held.rollback())
        else:
            self._durations.append(time.perf_counter() - started)
            await ledger.commit(held, order)

    async def _use_again(self, held: Held) -> None:
        """If the connection has survived, a transaction on it is as good as on a new one."""
        state = extconn.describe(held.conn).state
        if state == "autocommit":
            await done(held.execute("BEGIN"))
        if state in ("autocommit", "idle"):
            order = self.ledger.begin()
            await self.ledger.insert(held, order)
            await self.ledger.defer(held.conn, order)
            again = held._replace(commit=functools.partial(held.execute, "COMMIT"))
            await self.ledger.commit(again, order)


@pytest.mark.parametrize("kind", IN_A_TASK, ids=lambda kind: kind.id, indirect=True)
def test_cancelled(
    kind: Kind, dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """Whenever the task is cancelled or its time is up, a rollback takes both, and a later transaction keeps both."""
    # Before Python 3.12 wait_for starts a task, which has a session of its own.
    is_of_a_task = "scoped" in kind.id

    async def interrupt(call: Call, within: float) -> None:
        delay = rng.uniform(0, within)
        if kind.is_async and rng.random() < 0.5 and not is_of_a_task:
            await asyncio.wait_for(call, delay)
            return
        task = asyncio.current_task()
        assert task
        cancelling = asyncio.get_running_loop().call_later(delay, task.cancel)
        try:
            await call
        finally:
            cancelling.cancel()

    ledger = Ledger(kind, dsn, rng)
    Interruptions(ledger, interrupt).run(sized(8, 1000))
    audit("cancelled", ledger)


def test_ctrl_c(
    sync_kind: Kind, dsn: str, rng: random.Random, audit: Callable, sized: Callable
) -> None:
    """Whenever Ctrl-C comes, a rollback takes both."""
    armed = False

    def interrupted(*_: object) -> None:
        if armed:
            raise KeyboardInterrupt

    async def interrupt(call: Call, within: float) -> None:
        nonlocal armed
        press = functools.partial(signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)
        with at_a_random_moment(rng, within, press):
            armed = True
            try:
                await call
            finally:
                armed = False

    ledger = Ledger(sync_kind, dsn, rng)
    handler = signal.signal(signal.SIGINT, interrupted)
    try:
        Interruptions(ledger, interrupt).run(sized(8, 1000))
    finally:
        signal.signal(signal.SIGINT, handler)
    audit("Ctrl-C", ledger)
