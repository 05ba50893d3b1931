"""Faults of async plugins."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

from .base import Fault


class AsyncFault(Fault):
    """An async plugin."""

    is_async = True

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return self.run(raw, query, args)

    async def run(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        """Run the query."""
        return await super().execute(raw, query, args)


class SwallowsCancellation(AsyncFault):
    """Makes no rows of a cancellation."""

    clause = "cancellation"
    why = "the cancellation is swallowed: the call returns a result"

    async def run(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        try:
            return await super().run(raw, query, args)
        except asyncio.CancelledError:
            return []


class TranslatesCancellation(AsyncFault):
    """Makes an error of a cancellation."""

    clause = "cancellation"
    why = "the cancellation is swallowed: the call raises ConnectorException"

    async def run(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        try:
            return await super().run(raw, query, args)
        except BaseException as exc:
            raise RuntimeError("failed") from exc


class ShieldsStatements(AsyncFault):
    """Lets a statement go on when its caller has left."""

    clause = "cancellation"
    why = "the call goes on for"

    async def run(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        task = asyncio.ensure_future(super().run(raw, query, args))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise


class LeavesTasks(AsyncFault):
    """Starts something that it does not wait for."""

    clause = "leftover_tasks"
    why = "a call that worked leaves a task running"

    async def run(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        self.task = asyncio.ensure_future(asyncio.sleep(60))
        return await super().run(raw, query, args)


class LeavesTasksOnError(AsyncFault):
    """Does so when a statement fails."""

    clause = "leftover_tasks"
    why = "a call that failed leaves a task running"

    async def run(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        try:
            return await super().run(raw, query, args)
        except psycopg.Error:
            self.task = asyncio.ensure_future(asyncio.sleep(60))
            raise


class BlocksTheLoop(AsyncFault):
    """Runs the statement on a sync connection, and waits."""

    clause = "event_loop_runs_on"
    why = "the event loop stands still"

    async def run(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "pg_sleep" in query:
            time.sleep(0.2)  # noqa: ASYNC251
            return [{"one": 1}]
        return await super().run(raw, query, args)


class LeavesUnawaited(Fault):
    """Calls what it should have awaited."""

    clause = "nothing_unawaited"
    why = "coroutine 'LeavesUnawaited.log' was never awaited"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        self.log()
        return super().execute(raw, query, args)

    async def log(self) -> None:
        """Never runs."""


class SendsAtOnce(AsyncFault):
    """Sends a statement before it knows what kind of call it is."""

    clause = "sync_async_mismatch"
    why = "something was sent to the server"

    def describe(self, raw: Any) -> Any:
        raw.pgconn.exec_(b"SELECT 1")
        return super().describe(raw)
