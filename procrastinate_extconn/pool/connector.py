"""An app's connector on the pool or engine that the application has anyway."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from .. import ambient, forgotten, server_errors, wire
from ..base import OneBodyConnector
from ..connector import ExternalConnector
from ..exceptions import SyncAsyncMismatch, UnsupportedConnection
from ..fallback import type_name
from ..hookspecs import Rows
from ..known_plugins import missing_plugin
from ..layer import layer
from ..options import OutsideMode
from ..plugins import plugins
from ..queries import WORKER_QUERIES
from ..sync_async import done, finish


class PoolConnector(OneBodyConnector):
    """An app's connector on a pool or engine that is there already: for a process that defers, cancels and reads.

    Each call runs in a short transaction of its own, on a connection from the pool; ``connection=`` and `using` work
    as anywhere. The pool is never opened, resized or closed. A worker needs `PsycopgConnector`.

    :param pool_or_engine: a psycopg ``ConnectionPool`` or ``AsyncConnectionPool``, a SQLAlchemy ``Engine`` or
        ``AsyncEngine``, or whatever pool a plugin takes.
    :param json_dumps: makes JSON of a job's arguments; `json.dumps` if None.
    :param json_loads: reads JSON; `json.loads` if None.
    """

    def __init__(
        self,
        pool_or_engine: object,
        *,
        json_dumps: wire.Dumps | None = None,
        json_loads: wire.Loads | None = None,
    ) -> None:
        self.json_dumps = json_dumps
        self.json_loads = json_loads
        self._pool = pool_or_engine
        layer.own_connectors.add(self)

    def run_query(
        self, query: str, arguments: dict[str, Any], *, is_async: bool, connection: object = None
    ) -> Rows | Awaitable[Rows]:
        rows = self._run(query, arguments, is_async=is_async, connection=connection)
        return rows if is_async else finish(rows)

    async def _run(
        self, query: str, arguments: dict[str, Any], *, is_async: bool, connection: object
    ) -> Rows:
        if connection is None:
            connection = ambient.connection(query)
        if connection is not None:
            mode = layer.mode_of(self)
            return await self._on(connection, query, arguments, mode, is_async=is_async)
        if query in WORKER_QUERIES:
            raise self.worker_refused()
        forgotten.judge(self, query)
        lent = plugins().connect(self._pool)
        if lent is None:
            raise self._unsupported()
        if hasattr(lent, "__aenter__") is not is_async:
            raise self._mismatch(is_async=is_async)
        failed: list[Exception] = []

        async def call(conn: object) -> Rows:
            try:
                # Nothing of a caller's is in its transaction, so that it may as well commit by itself.
                return await self._on(conn, query, arguments, "allow", is_async=is_async)
            except Exception as exc:
                failed.append(exc)
                raise

        try:
            if is_async:
                async with lent as conn:
                    return await call(conn)
            with lent as conn:
                return await call(conn)
        except Exception as exc:
            if exc in failed:
                raise
            # Not the query but what is around it: no connection to be had, or a commit that failed.
            name = type_name(type(self._pool))
            error = server_errors.translate(exc, self._pool, driver=name, state="idle")
        raise error

    async def _on(
        self,
        connection: object,
        query: str,
        arguments: dict[str, Any],
        mode: OutsideMode | None,
        *,
        is_async: bool,
    ) -> Rows:
        connector = ExternalConnector(
            connection,
            json_dumps=self.json_dumps,
            json_loads=self.json_loads,
            outside_transaction=mode,
        )
        return await done(connector.run_query(query, arguments, is_async=is_async))

    def _unsupported(self) -> UnsupportedConnection:
        asked = plugins().names("connect_external")
        advice = (
            missing_plugin(self._pool, plugins().names())
            or "Pass a connection pool or an engine, not a connection or a DSN."
        )
        return UnsupportedConnection(
            f"{type(self).__name__} does not support pools of type {type_name(type(self._pool))}: no plugin takes it "
            f"(asked: {', '.join(asked)}). {advice}"
        )

    def _mismatch(self, *, is_async: bool) -> SyncAsyncMismatch:
        name = type_name(type(self._pool))
        if is_async:
            return SyncAsyncMismatch(
                f"{name} is a synchronous pool in an asynchronous call, where it would block the event loop: call "
                "defer(), or the sync method of the same name, or make the app on an asynchronous pool"
            )
        return SyncAsyncMismatch(
            f"{name} is an asynchronous pool in a synchronous call: call `await ... .defer_async()`, or the method "
            "of the same name that ends in _async, or make the app on a synchronous pool"
        )
