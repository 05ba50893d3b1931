"""What the test helpers share: queries on the connection of a test, sync or async as it is, and its transaction."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from procrastinate.connector import BaseConnector

from ..base import json_of
from ..connector import ExternalConnector
from ..drivers import execute_on_held
from ..exceptions import ExternalConnectionError, OutsideTransaction
from ..hookspecs import OUTBOX, Description, Rows
from ..options import unwrap
from ..plugins import describe
from ..queries import FOR_A_TEST
from ..sync_async import done, finish
from ..wire import Loads

T = TypeVar("T")


class TestedConnection(ExternalConnector):
    """A connector whose async methods also serve a sync connection, where `answer` drives them.

    :param app_connector: reads and writes JSON; the defaults are used if None.
    """

    __test__ = False

    def __init__(self, conn: object, app_connector: BaseConnector | None = None) -> None:
        super().__init__(unwrap(conn), json_dumps=json_of(app_connector, "dumps"))
        self.json_loads: Loads | None = json_of(app_connector, "loads")
        self.description: Description = describe(conn)

    async def run_query(
        self,
        query: str,
        arguments: dict[str, Any],
        *,
        is_async: bool | None = None,
        connection: object = None,
    ) -> Rows:
        if self.description.dialect == OUTBOX:
            query += FOR_A_TEST
        return await super().run_query(
            query, arguments, is_async=self.description.is_async, connection=connection
        )

    def answer(self, coroutine: Coroutine[Any, Any, T]) -> Any:
        """The result of *coroutine*, which uses this connector; for an async connection *coroutine* itself."""
        __tracebackhide__ = True
        return coroutine if self.description.is_async else finish(coroutine)

    async def rows(self, query: str, **arguments: Any) -> Rows:
        """Run *query*, with the errors of every other call."""
        return await self.run_query(query, arguments)

    async def send(self, query: str) -> Rows:
        """Run *query* in any state of the connection, with the driver's own errors."""
        return await done(execute_on_held(self._conn, query, {}))

    async def transaction_id(self, purpose: str) -> int:
        """The id of the open transaction. One begins if the connection is about to begin one.

        :param purpose: why a transaction is needed, for the error.
        :raises OutsideTransaction: if each statement commits by itself.
        :raises ExternalConnectionError: for an outbox.
        """
        if self.description.dialect == OUTBOX:
            raise ExternalConnectionError(
                "the jobs of an outbox are not in this transaction, and cannot be run or undone in it: look at them "
                "with assert_deferred() or deferred_jobs(), or let the relay forward them"
            )
        ids = []
        if self.description.state != "autocommit":
            # Only two statements show whether both are in one transaction, if the driver does not tell.
            for _ in range(2 if self.description.state == "unknown" else 1):
                [row] = await self.rows("SELECT txid_current() AS id")
                ids.append(row["id"])
        if len(set(ids)) == 1:
            return int(ids[0])
        begin = self.description.begin
        raise OutsideTransaction(
            f"this {self.description.driver} connection is not in a transaction and commits each statement by itself, "
            f"so {purpose}: open a transaction first" + (f" with `{begin}`" if begin else "")
        )
