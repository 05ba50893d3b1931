"""Jobs in memory, for unit tests, but no misuse of a connection."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from procrastinate.testing import InMemoryConnector

from .. import ambient, forgotten, own_work
from ..connector import ExternalConnector
from ..hookspecs import Rows
from ..layer import layer
from ..options import External, OutsideMode, check_modes, unwrap
from ..plugins import describe
from ..sync_async import finish
from ..wire import encode

if TYPE_CHECKING:
    from typing_extensions import LiteralString


class StrictInMemoryConnector(InMemoryConnector):
    """An `InMemoryConnector` that refuses the connections which a real connector would refuse.

    A job that is deferred with ``connection=`` or in a ``using()`` block needs an open connection. A sync call needs a
    sync connection, and an async call an async one. A pool, a closed connection, a stand-in and another task's
    connection are refused. The job's arguments have to be JSON. Nothing is sent to the connection: the job stays in
    memory, also when the transaction is rolled back.

    :param without_connection: as in `procrastinate_extconn.install`, which decides if this is None.
    """

    def __init__(self, *, without_connection: OutsideMode | None = None) -> None:
        check_modes(without_connection=without_connection)
        super().__init__()
        self._without_connection: OutsideMode | None = without_connection
        if without_connection is not None:
            layer.strict.add(self)
            own_work.recognise()

    def execute_query(
        self, query: LiteralString, *, connection: object = None, **arguments: Any
    ) -> None:
        with self._checked(connection, query, arguments, is_async=False):
            super().execute_query(query, **arguments)

    def execute_query_one(
        self, query: LiteralString, *, connection: object = None, **arguments: Any
    ) -> dict[str, Any]:
        with self._checked(connection, query, arguments, is_async=False):
            return super().execute_query_one(query, **arguments)

    def execute_query_all(
        self, query: LiteralString, *, connection: object = None, **arguments: Any
    ) -> Rows:
        with self._checked(connection, query, arguments, is_async=False):
            return super().execute_query_all(query, **arguments)

    async def execute_query_async(
        self, query: str, *, connection: object = None, **arguments: Any
    ) -> None:
        with self._checked(connection, query, arguments, is_async=True):
            await super().execute_query_async(query, **arguments)

    async def execute_query_one_async(
        self, query: str, *, connection: object = None, **arguments: Any
    ) -> dict[str, Any]:
        with self._checked(connection, query, arguments, is_async=True):
            return await super().execute_query_one_async(query, **arguments)

    async def execute_query_all_async(
        self, query: str, *, connection: object = None, **arguments: Any
    ) -> Rows:
        with self._checked(connection, query, arguments, is_async=True):
            return await super().execute_query_all_async(query, **arguments)

    def execute_query_one_with_connection(
        self, connection: object, query: Any, **arguments: Any
    ) -> dict[str, Any]:
        return self.execute_query_one(query, connection=connection, **arguments)

    def execute_query_all_with_connection(
        self, connection: object, query: Any, **arguments: Any
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

    @contextmanager
    def _checked(
        self, connection: object, query: str, arguments: dict[str, Any], *, is_async: bool
    ) -> Generator[None]:
        if connection is None:
            connection = ambient.connection(query)
        if connection is None:
            forgotten.judge(self, query, self._without_connection)
        else:
            describe(connection)  # refuses what no plugin takes
            mode = connection.outside_transaction if isinstance(connection, External) else None
            unsent = _Unsent(
                unwrap(connection), json_dumps=self.json_dumps, outside_transaction=mode
            )
            finish(unsent.run_query(query, arguments, is_async=is_async))
        # A sync call goes on as an async one in a task of its own, which must not be asked again.
        with ambient.standalone():
            yield


class _Unsent(ExternalConnector):
    """Does all that comes before a statement is sent."""

    async def _send(self, query: str, arguments: dict[str, Any], *, is_async: bool) -> Rows:
        encode(query, arguments, self.json_dumps)
        return []
