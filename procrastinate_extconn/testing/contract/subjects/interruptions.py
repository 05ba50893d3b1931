"""Calls that are cancelled, and what a call leaves running."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from ..caller import Caller
from ..clause import clause, must

PATIENCE = 5.0
_SLEEP = "SELECT 1 AS one FROM pg_sleep(8)"
_SLEEPS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active')"
_LIVES = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"


class InterruptionClauses:
    """Cancellation and tasks, on async connections."""

    @clause(on="async")
    async def test_cancellation(self, caller: Caller) -> None:
        """A call that is cancelled while the server works on it ends, with `asyncio.CancelledError`, and soon."""
        pid = await caller.value("SELECT pg_backend_pid()")
        # In this very task, since a session may belong to a task.
        this: Any = asyncio.current_task()
        canceller = asyncio.create_task(_cancel(this, caller, pid))
        started = time.monotonic()
        outcome = "returns a result"
        error: Exception | None = None
        try:
            await caller.query(_SLEEP)
        except asyncio.CancelledError:
            outcome = ""
        except Exception as exc:  # noqa: BLE001 - a plugin or its driver may raise anything
            outcome, error = f"raises {type(exc).__name__}", exc
        took = time.monotonic() - started
        await asyncio.wait([canceller])
        getattr(this, "uncancel", int)()
        must(not outcome, f"the cancellation is swallowed: the call {outcome}", error)
        must(took < PATIENCE, f"the call goes on for {took:.0f} seconds after it was cancelled")
        caller.database.value("SELECT pg_terminate_backend(%s)", pid)
        await caller.close()

    @clause(on="async")
    async def test_leftover_tasks(self, caller: Caller) -> None:
        """When a call is over, whether it works or fails, no task of its own is left running."""
        before = asyncio.all_tasks()
        await caller.defer()
        must(not asyncio.all_tasks() - before, "a call that worked leaves a task running")
        with suppress(Exception):
            await caller.query("SELECT 1 / %(zero)s::bigint AS quotient", zero=0)
        must(not asyncio.all_tasks() - before, "a call that failed leaves a task running")

    @clause(on="async")
    async def test_event_loop_runs_on(self, caller: Caller) -> None:
        """While the server works on a query, the event loop runs other tasks."""
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        try:
            await caller.query("SELECT 1 AS one FROM pg_sleep(0.2)")
        finally:
            ticking.cancel()
        must(ticks > 1, "the event loop stands still: the plugin blocks it")


async def _cancel(task: asyncio.Task[Any], caller: Caller, pid: int) -> None:
    """Cancel *task* once the server works for it."""
    while not caller.database.value(_SLEEPS, pid):  # noqa: ASYNC110 - the server tells nobody
        await asyncio.sleep(0.005)
    task.cancel()


async def terminate(caller: Caller) -> None:
    """End the connection from the server's side, and wait until it is gone."""
    pid = await caller.value("SELECT pg_backend_pid()")
    caller.database.value("SELECT pg_terminate_backend(%s)", pid)
    while caller.database.value(_LIVES, pid):
        pass
