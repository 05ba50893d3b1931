"""Procrastinate's connector interface, ten methods, from one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from procrastinate.connector import BaseConnector, Notify
from procrastinate.exceptions import NoResult

from .exceptions import ExternalConnectionError
from .sync_async import finish

if TYPE_CHECKING:
    from .hookspecs import Rows
    from .wire import Dumps, Loads


class OneBodyConnector(BaseConnector):
    """A connector whose queries all go through `run_query`, sync and async alike."""

    json_dumps: Dumps | None = None
    json_loads: Loads | None = None

    @abstractmethod
    async def run_query(
        self, query: str, arguments: dict[str, Any], *, is_async: bool, connection: object = None
    ) -> Rows:
        """Run one query, on *connection* if there is one.

        :param is_async: False says that a sync method asks. The coroutine then never suspends.
        """

    def get_sync_connector(self) -> BaseConnector:
        return self

    def execute_query(self, query: str, *, connection: object = None, **arguments: Any) -> None:
        self.execute_query_all(query, connection=connection, **arguments)

    def execute_query_one(
        self, query: str, *, connection: object = None, **arguments: Any
    ) -> dict[str, Any]:
        return _first(self.execute_query_all(query, connection=connection, **arguments))

    def execute_query_all(self, query: str, *, connection: object = None, **arguments: Any) -> Rows:
        return finish(self.run_query(query, arguments, is_async=False, connection=connection))

    async def execute_query_async(
        self, query: str, *, connection: object = None, **arguments: Any
    ) -> None:
        await self.execute_query_all_async(query, connection=connection, **arguments)

    async def execute_query_one_async(
        self, query: str, *, connection: object = None, **arguments: Any
    ) -> dict[str, Any]:
        return _first(await self.execute_query_all_async(query, connection=connection, **arguments))

    async def execute_query_all_async(
        self, query: str, *, connection: object = None, **arguments: Any
    ) -> Rows:
        return await self.run_query(query, arguments, is_async=True, connection=connection)

    def execute_query_one_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> dict[str, Any]:
        return self.execute_query_one(query, connection=connection, **arguments)

    def execute_query_all_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> Rows:
        return self.execute_query_all(query, connection=connection, **arguments)

    async def execute_query_one_async_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> dict[str, Any]:
        return await self.execute_query_one_async(query, connection=connection, **arguments)

    async def execute_query_all_async_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> Rows:
        return await self.execute_query_all_async(query, connection=connection, **arguments)

    def open(self, pool: object = None) -> None:
        """Nothing to open: what it stands on is the caller's."""
        if pool is not None:
            raise ExternalConnectionError(
                f"{type(self).__name__} got what it stands on when it was made: open() takes no pool"
            )

    def close(self) -> None:
        """Nothing to close: what it stands on is the caller's."""

    async def open_async(self, pool: object = None) -> None:
        """Nothing to open: what it stands on is the caller's."""
        self.open(pool)

    async def close_async(self) -> None:
        """Nothing to close: what it stands on is the caller's."""

    async def listen_notify(self, on_notification: Notify, channels: Iterable[str]) -> None:
        raise self.worker_refused()

    def worker_refused(self) -> ExternalConnectionError:
        """Say why no worker runs on this connector, and on which one it does."""
        return ExternalConnectionError(
            f"a worker does not run on {type(self).__name__}: it holds a connection for LISTEN, and takes and "
            "finishes jobs outside your transactions. Run it with PsycopgConnector, or with PoolConnector on an "
            "asynchronous pool."
        )


def json_of(connector: BaseConnector | None, name: str) -> Any:
    """What makes JSON (``"dumps"``) for *connector*, or reads it (``"loads"``); None if it was given none."""
    # Some of Procrastinate's connectors keep it in a private attribute, the others in a public one.
    return getattr(connector, f"_json_{name}", None) or getattr(connector, f"json_{name}", None)


def _first(rows: Rows) -> dict[str, Any]:
    if not rows:
        raise NoResult
    return rows[0]
