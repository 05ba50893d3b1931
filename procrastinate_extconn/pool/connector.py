"""An app's connector on the pool or engine that the application has anyway."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from procrastinate.connector import Notify

from .. import ambient, forgotten, wire
from ..base import OneBodyConnector
from ..connector import ExternalConnector
from ..exceptions import ExternalConnectionError, UnsupportedConnection
from ..fallback import type_name
from ..guard import mismatch
from ..hookspecs import Rows
from ..known_plugins import missing_plugin
from ..layer import layer
from ..options import OutsideMode
from ..plugins import plugins
from ..queries import WORKER_QUERIES
from ..sync_async import done
from . import worker
from .listening import of_pool


class _Connection(ExternalConnector):
    _refused = frozenset()


class PoolConnector(OneBodyConnector):
    """An app's connector on a pool or engine that is there already.

    Each call runs in a short transaction of its own, on a connection from the pool. ``connection=`` and `using` work
    as anywhere. A worker runs on an asynchronous pool, and holds one connection of it. The pool is never opened,
    resized or closed.

    :param pool_or_engine: an open connection pool or an engine, sync or async. The how-to pages of the drivers
        name those that plugins take.
    :param listen: another pool, for a worker's LISTEN alone, where this one cannot listen.
    :param json_dumps: makes JSON of a job's arguments; `json.dumps` if None.
    :param json_loads: reads JSON; `json.loads` if None.
    """

    def __init__(
        self,
        pool_or_engine: object,
        *,
        listen: object = None,
        json_dumps: wire.Dumps | None = None,
        json_loads: wire.Loads | None = None,
    ) -> None:
        self.json_dumps = json_dumps
        self.json_loads = json_loads
        self.pool = pool_or_engine
        self.listen_pool = listen
        layer.own_connectors.add(self)

    async def run_query(
        self, query: str, arguments: dict[str, Any], *, is_async: bool, connection: object = None
    ) -> Rows:
        if connection is None:
            connection = ambient.connection(query)
        if connection is not None:
            mode = layer.mode_of(self)
            return await self._on(connection, query, arguments, mode, is_async=is_async)
        if is_async and (rows := await worker.run(self, query, arguments)) is not None:
            return rows
        if query not in WORKER_QUERIES:
            forgotten.judge(self, query)
        return await self.run_on_pool(query, arguments, is_async=is_async)

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        """Call *on_notification* for each notification on *channels*, until cancelled."""
        session = worker.session_of(self) or worker.WorkerSession(self, None)
        await session.listen(on_notification, list(channels))

    async def run_on_pool(
        self, query: str, arguments: dict[str, Any], *, is_async: bool = True
    ) -> Rows:
        """Run *query* in a short transaction, on a connection from the pool."""
        lent = plugins().connect(self.pool)
        if lent is None:
            raise self._unsupported()
        if hasattr(lent, "__aenter__") is not is_async:
            if query in WORKER_QUERIES:
                raise self.worker_refused()
            raise mismatch(self.pool, "pool", "make the app on", is_async=is_async)
        enter, leave = (
            (lent.__aenter__, lent.__aexit__) if is_async else (lent.__enter__, lent.__exit__)
        )
        conn = await of_pool(self.pool, enter)
        try:
            rows = await self.run_on(conn, query, arguments, is_async=is_async)
        except BaseException as exc:
            with contextlib.suppress(Exception):
                await done(leave(type(exc), exc, exc.__traceback__))
            raise
        await of_pool(self.pool, leave, None, None, None)
        return rows

    async def run_on(
        self, conn: object, query: str, arguments: dict[str, Any], *, is_async: bool = True
    ) -> Rows:
        """Run *query* on a connection of the pool."""
        # Nothing of a caller's is in its transaction, so that it may as well commit by itself.
        return await self._on(conn, query, arguments, "allow", is_async=is_async)

    async def _on(
        self,
        connection: object,
        query: str,
        arguments: dict[str, Any],
        mode: OutsideMode | None,
        *,
        is_async: bool,
    ) -> Rows:
        connector = _Connection(
            connection,
            json_dumps=self.json_dumps,
            json_loads=self.json_loads,
            outside_transaction=mode,
        )
        return await connector.run_query(query, arguments, is_async=is_async)

    def worker_refused(self) -> ExternalConnectionError:
        return ExternalConnectionError(
            f"a worker does not run on {type_name(type(self.pool))}, a synchronous pool: make its app on an "
            "asynchronous pool or engine, or on PsycopgConnector"
        )

    def _unsupported(self) -> UnsupportedConnection:
        asked = plugins().names("connect_external")
        advice = (
            missing_plugin(self.pool, plugins().names())
            or "Pass a connection pool or an engine, not a connection or a DSN."
        )
        return UnsupportedConnection(
            f"{type(self).__name__} does not support pools of type {type_name(type(self.pool))}: no plugin takes it "
            f"(asked: {', '.join(asked)}). {advice}"
        )
