"""Calls that are cancelled, and what a call leaves running."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from .caller import Caller
from .clause import clause, must

_PATIENCE = 10.0
_SLEEP = "SELECT 1 AS one FROM pg_sleep(15)"
_SLEEPS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s AND state = 'active')"
_LIVES = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"


class InterruptionClauses:
    """Cancellation and tasks, on async connections."""

    @clause(on="async")
    async def test_cancellation(self, caller: Caller) -> None:
        """A call that is cancelled while the server works on it ends, with `asyncio.CancelledError`, and soon."""
        pid = await caller.value("SELECT pg_backend_pid()")
        task = asyncio.create_task(caller.query(_SLEEP))
        await _until(caller, _SLEEPS, pid)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=_PATIENCE)
        must(done, f"the call goes on for {_PATIENCE:.0f} seconds after it was cancelled")
        if not task.cancelled():
            error = task.exception()
            must(
                False,
                "the cancellation is swallowed: the call "
                + (f"raises {type(error).__name__}" if error else "returns a result"),
                error,
            )
        with suppress(Exception):
            await caller.rollback()
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


async def _until(caller: Caller, query: str, pid: int) -> None:
    # The clause's time limit ends it.
    while not caller.database.value(query, pid):
        await asyncio.sleep(0.005)


async def terminate(caller: Caller) -> None:
    """End the connection from the server's side, and wait until it is gone."""
    pid = await caller.value("SELECT pg_backend_pid()")
    caller.database.value("SELECT pg_terminate_backend(%s)", pid)
    while caller.database.value(_LIVES, pid):
        pass
