"""An external connection is itself a connector."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from procrastinate.exceptions import ProcrastinateException

from . import conflicts, server_errors, wire
from .base import OneBodyConnector
from .drivers import StateSeen
from .exceptions import ExternalConnectionError, PluginWarning
from .fallback import type_name
from .guard import READY, guard, mismatch, require_postgresql, warn
from .hookspecs import Description, Rows
from .layer import layer
from .options import External, OutsideMode
from .plugins import plugins
from .queries import WORKER_QUERIES
from .sync_async import discard


class ExternalConnector(OneBodyConnector):
    """An external connection as a connector: every query of Procrastinate's runs on *conn*, in your transaction.

    No patching is needed: ``JobManager(ExternalConnector(conn))`` lists, cancels or retries jobs on it. Its sync
    methods take a sync connection, its async methods an async one.

    :param conn: any connection that a plugin takes, or what `external` made of one. It stays yours: it is never
        committed, rolled back or closed.
    :param json_dumps: makes JSON of a job's arguments; `json.dumps` if None.
    :param json_loads: reads JSON; `json.loads` if None.
    :param outside_transaction: as in `install`, which decides if this is None.
    """

    _refused = WORKER_QUERIES

    def __init__(
        self,
        conn: object,
        *,
        json_dumps: wire.Dumps | None = None,
        json_loads: wire.Loads | None = None,
        outside_transaction: OutsideMode | None = None,
    ) -> None:
        self.json_dumps = json_dumps
        self.json_loads = json_loads
        self._options: External | None = None
        if isinstance(conn, External):
            self._options = conn
            outside_transaction = conn.outside_transaction or outside_transaction
            conn = conn.conn
        self._conn = conn
        self._mode: OutsideMode | None = outside_transaction

    async def run_query(
        self, query: str, arguments: dict[str, Any], *, is_async: bool, connection: object = None
    ) -> Rows:
        if connection is not None:
            other = ExternalConnector(
                connection,
                json_dumps=self.json_dumps,
                json_loads=self.json_loads,
                outside_transaction=self._mode,
            )
            return await other.run_query(query, arguments, is_async=is_async)
        if query in self._refused:
            raise self.worker_refused()
        description = self._judge(query, is_async=is_async)
        options = self._options
        if options is None or not (options.savepoint or options.on_conflict == "existing"):
            return await self._send(query, arguments, is_async=is_async)
        conn = conflicts.Connection(
            send=functools.partial(self._send, is_async=is_async),
            encode=functools.partial(wire.encode, dumps=self.json_dumps),
            translated=functools.partial(self._translated, kept=True),
            state=description.state if description else "unknown",
        )
        return await conflicts.execute(conn, query, arguments, options.on_conflict)

    def _judge(self, query: str, *, is_async: bool) -> Description | None:
        description = plugins().describe(self._conn)
        if description is not None:
            if description.dialect != "postgresql":
                require_postgresql(self._conn, description)
            if description.is_async is not is_async:
                raise mismatch(self._conn, "connection", "pass", is_async=is_async)
            if description.state not in READY:
                guard(self._conn, description, query, self._mode or layer.outside_transaction)
        return description

    # An error is raised outside of the `except`, so that it has no context, only the driver's error as its cause. The
    # context could be a wrapper's error, which quotes parameters. `del error` breaks the circle of error and traceback,
    # which would keep the connection alive.

    async def _send(self, query: str, arguments: dict[str, Any], *, is_async: bool) -> Rows:
        sent, args = wire.encode(query, arguments, self.json_dumps)
        try:
            result: Any = plugins().execute(self._conn, sent, args)
            is_awaitable = inspect.isawaitable(result)
            if is_awaitable and not is_async:
                discard(result)
                raise mismatch(self._conn, "connection", "pass", is_async=is_async)
            rows = await result if is_awaitable else result
        except StateSeen:
            self._judge(query, is_async=is_async)  # Its wrapper has only now checked it out.
            return await self._send(query, arguments, is_async=is_async)
        except Exception as exc:  # noqa: BLE001 - a driver may raise anything
            error = self._translated(exc, arguments)
        else:
            if is_async and not is_awaitable:
                self._at_once()
            return self._decoded(rows, query)
        try:
            raise error
        finally:
            del error

    def _translated(
        self, exc: Exception, arguments: dict[str, Any], *, kept: bool = False
    ) -> ProcrastinateException:
        if isinstance(exc, ProcrastinateException):
            return exc
        try:
            description = plugins().describe(self._conn)
        except ProcrastinateException:
            description = None
        state = description.state if description else "unknown"
        return server_errors.translate(
            exc,
            self._conn,
            driver=description.driver if description else type_name(type(self._conn)),
            state=state,
            kept=kept,
            locks=wire.queueing_locks(arguments),
        )

    def _decoded(self, rows: Any, query: str) -> Rows:
        if not isinstance(rows, list):
            raise self._fault(rows, "rows")
        found: list[Any] = rows
        for row in found:
            if not isinstance(row, dict):
                raise self._fault(row, "a row")
        if found and wire.DEFERS in query and not isinstance(found[0].get("id"), int):
            raise self._fault(found[0].get("id"), "a job's id")
        return wire.decode(found, self.json_loads)

    def _fault(self, returned: object, place: str) -> ExternalConnectionError:
        return ExternalConnectionError(
            f"the plugin {self._plugin()!r} returned {type_name(type(returned))} for {place}: execute_on_external "
            "should return a list of dicts, with PostgreSQL's own values. Roll back: the statement may have run."
        )

    def _plugin(self) -> str:
        return plugins().claimed_by(self._conn) or "unknown"

    def _at_once(self) -> None:
        """A plugin without `describe_external` may answer an async call at once: say so, the loop was blocked."""
        name = self._plugin()
        if name not in plugins().names("describe_external") and plugins().first_time(
            "at once", name
        ):
            warn(
                f"the plugin {name!r} answered an asynchronous call at once, which blocks the event loop: its "
                "connection is synchronous, or it should return an awaitable (it has no describe_external hook)",
                PluginWarning,
            )
