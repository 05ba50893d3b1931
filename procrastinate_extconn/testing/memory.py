"""Jobs in memory, for unit tests, but no misuse of a connection."""

from __future__ import annotations

from typing import Any

from procrastinate.testing import InMemoryConnector

from ..connector import ExternalConnector
from ..hookspecs import Rows
from ..options import External, unwrap
from ..transaction import describe
from ..wire import encode


class StrictInMemoryConnector(InMemoryConnector):
    """An `InMemoryConnector` that refuses the connections which a real connector would refuse.

    A job that is deferred with ``connection=`` needs an open connection of the call's own colour: not a pool, not a
    closed connection, not a stand-in; and its arguments have to be JSON. Nothing is sent to the connection: the job
    stays in memory, also when the transaction is rolled back.
    """

    def execute_query_one_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> dict[str, Any]:
        _checked(connection, self).execute_query(query, **arguments)
        return super().execute_query_one_with_connection(connection, query, **arguments)

    def execute_query_all_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> Rows:
        _checked(connection, self).execute_query(query, **arguments)
        return super().execute_query_all_with_connection(connection, query, **arguments)

    async def execute_query_one_async_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> dict[str, Any]:
        await _checked(connection, self).execute_query_async(query, **arguments)
        return await super().execute_query_one_async_with_connection(connection, query, **arguments)

    async def execute_query_all_async_with_connection(
        self, connection: object, query: str, **arguments: Any
    ) -> Rows:
        await _checked(connection, self).execute_query_async(query, **arguments)
        return await super().execute_query_all_async_with_connection(connection, query, **arguments)


class _Unsent(ExternalConnector):
    """Does all that comes before a statement is sent."""

    async def _send(self, query: str, arguments: dict[str, Any], **colour: bool) -> Rows:
        encode(query, arguments, self.json_dumps)
        return []


def _checked(connection: object, connector: InMemoryConnector) -> _Unsent:
    describe(connection)  # refuses what no plugin takes
    mode = connection.outside_transaction if isinstance(connection, External) else None
    return _Unsent(unwrap(connection), json_dumps=connector.json_dumps, outside_transaction=mode)
