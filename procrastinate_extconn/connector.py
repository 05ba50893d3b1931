"""An external connection is itself a connector."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Coroutine
from typing import Any, NoReturn, TypeVar

from procrastinate import sql
from procrastinate.connector import BaseConnector
from procrastinate.exceptions import NoResult, ProcrastinateException

from . import conflicts, server_errors, wire
from .exceptions import ExternalConnectionError, PluginWarning, SyncAsyncMismatch
from .fallback import type_name
from .hookspecs import Description, Rows
from .options import External, OutsideMode
from .plugins import plugins
from .transaction import default_mode, guard, warn

T = TypeVar("T")

WORKER_QUERIES = frozenset(
    sql.queries[name]
    for name in (
        "fetch_job",
        "register_worker",
        "unregister_worker",
        "update_heartbeat",
        "prune_stalled_workers",
        "listen_queue",
    )
    if name in sql.queries
)
"""What only a worker asks: it needs connections of its own."""


class ExternalConnector(BaseConnector):
    """An external connection as a connector: every query of Procrastinate's runs on *conn*, in your transaction.

    No patching is needed: ``JobManager(ExternalConnector(conn))`` lists, cancels or retries jobs on it. Its sync
    methods take a sync connection, its async methods an async one.

    :param conn: any connection that a plugin takes, or what `external` made of one. It stays yours: it is never
        committed, rolled back or closed.
    :param json_dumps: makes JSON of a job's arguments; `json.dumps` if None.
    :param json_loads: reads JSON; `json.loads` if None.
    """

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
        self._mode = outside_transaction

    # -- Procrastinate's interface --------------------------------------------------------------------------------

    def get_sync_connector(self) -> ExternalConnector:
        return self

    def execute_query(self, query: str, **arguments: Any) -> None:
        _finish(self._execute(query, arguments, False))

    def execute_query_one(self, query: str, **arguments: Any) -> dict[str, Any]:
        return _first(_finish(self._execute(query, arguments, False)))

    def execute_query_all(self, query: str, **arguments: Any) -> Rows:
        return _finish(self._execute(query, arguments, False))

    async def execute_query_async(self, query: str, **arguments: Any) -> None:
        await self._execute(query, arguments, True)

    async def execute_query_one_async(self, query: str, **arguments: Any) -> dict[str, Any]:
        return _first(await self._execute(query, arguments, True))

    async def execute_query_all_async(self, query: str, **arguments: Any) -> Rows:
        return await self._execute(query, arguments, True)

    def execute_query_one_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> dict[str, Any]:
        return self._on(connection).execute_query_one(query, **arguments)

    def execute_query_all_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> Rows:
        return self._on(connection).execute_query_all(query, **arguments)

    async def execute_query_one_async_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> dict[str, Any]:
        return await self._on(connection).execute_query_one_async(query, **arguments)

    async def execute_query_all_async_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> Rows:
        return await self._on(connection).execute_query_all_async(query, **arguments)

    def open(self, pool: object = None) -> None:
        """Nothing to open: the connection is the caller's."""

    def close(self) -> None:
        """Nothing to close: the connection is the caller's."""

    async def open_async(self, pool: object = None) -> None:
        """Nothing to open: the connection is the caller's."""

    async def close_async(self) -> None:
        """Nothing to close: the connection is the caller's."""

    async def listen_notify(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ExternalConnectionError(
            "LISTEN does not run on an external connection: notifications need a connection of their own. "
            "Listen with the app's own connector."
        )

    # -- on the connection ----------------------------------------------------------------------------------------

    def _on(self, connection: object) -> ExternalConnector:
        return ExternalConnector(
            connection,
            json_dumps=self.json_dumps,
            json_loads=self.json_loads,
            outside_transaction=self._mode,
        )

    async def _execute(self, query: str, arguments: dict[str, Any], is_async: bool) -> Rows:
        """Run one query. The one body for both colours: in a sync call nothing in it ever suspends."""
        if query in WORKER_QUERIES:
            raise ExternalConnectionError(
                "a worker does not run on an external connection: it needs connections of its own. "
                "Run it with the app's own connector."
            )
        description = self._describe(is_async)
        if description is not None:
            guard(self._conn, description, query, self._mode or default_mode())
        options = self._options
        if options is None or not (options.savepoint or options.on_conflict == "existing"):
            rows = await self._send(query, arguments, is_async)
        else:

            async def send(query: str, arguments: dict[str, Any]) -> Rows:
                return await self._send(query, arguments, is_async, isolated=True)

            state = description.state if description else "unknown"
            rows = await conflicts.execute(send, query, arguments, options.on_conflict, state)
        return wire.decode(rows, self.json_loads)

    def _describe(self, is_async: bool) -> Description | None:
        description = plugins().describe(self._conn)
        if description is not None and description.is_async is not is_async:
            raise self._mismatch(is_async)
        return description

    async def _send(
        self, query: str, arguments: dict[str, Any], is_async: bool, isolated: bool = False
    ) -> Rows:
        query, args = wire.encode(query, arguments, self.json_dumps)
        try:
            result = plugins().execute(self._conn, query, args)
            if isinstance(result, list):
                if is_async:
                    self._at_once()
                return result
            if not is_async:
                _discard(result)
                raise self._mismatch(is_async)
            rows: Rows = await result
            return rows
        except ProcrastinateException:
            raise
        except Exception as exc:
            error = self._translated(exc, arguments, isolated)
        # Raised out here so that the driver's error is its cause alone: SQLAlchemy's wrapper, which quotes
        # parameters, would be its context.
        raise error

    def _translated(
        self, exc: Exception, arguments: dict[str, Any], isolated: bool
    ) -> ProcrastinateException:
        try:
            description = plugins().describe(self._conn)
        except ProcrastinateException:
            description = None
        state = description.state if description else "unknown"
        return server_errors.translate(
            exc,
            driver=description.driver if description else type_name(type(self._conn)),
            state="unknown" if isolated and state == "failed" else state,
            locks=wire.queueing_locks(arguments),
        )

    def _mismatch(self, is_async: bool) -> SyncAsyncMismatch:
        name = type_name(type(self._conn))
        if is_async:
            return SyncAsyncMismatch(
                f"{name} is a synchronous connection in an asynchronous call, where it would block the event loop: "
                "call defer(), or the sync method of the same name, from a thread, or pass an asynchronous connection"
            )
        return SyncAsyncMismatch(
            f"{name} is an asynchronous connection in a synchronous call: call `await ... .defer_async()`, or the "
            "method of the same name that ends in _async"
        )

    def _at_once(self) -> None:
        """A plugin without `describe_external` may answer an async call at once: say so, the loop was blocked."""
        name = plugins().taker(self._conn) or "unknown"
        if name not in plugins().names("describe_external") and plugins().first_time("at once", name):
            warn(
                f"the plugin {name!r} answered an asynchronous call at once, which blocks the event loop: its "
                "connection is synchronous, or it should return an awaitable (it has no describe_external hook)",
                PluginWarning,
            )


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise RuntimeError("a synchronous call suspended")


def _discard(awaitable: Awaitable[object]) -> None:
    """Leave nothing un-awaited behind."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    elif hasattr(awaitable, "cancel"):
        awaitable.cancel()


def _first(rows: Rows) -> dict[str, Any]:
    if not rows:
        raise NoResult
    return rows[0]
