"""Undo what a test does on a connection, jobs and all."""

from __future__ import annotations

from contextlib import suppress
from typing import Generic, TypeVar

from procrastinate.exceptions import ConnectorException

from ..connector import ExternalConnector
from ..drivers import execute_on_held
from ..exceptions import OutsideTransaction, SyncAsyncMismatch
from ..hookspecs import Rows
from ..options import unwrap
from ..plugins import describe
from ..sync_async import done, finish

C = TypeVar("C")


def rolled_back(conn: C) -> RolledBack[C]:
    """Undo at the end of the ``with`` or ``async with`` block what was done on *conn* in it.

    Everything in the block stands behind a savepoint, so that *conn* itself is left as it was. A commit would get past
    that, and fails the test, unless *conn* is closed in the block, too.

    :param conn: any connection that a plugin takes, in a transaction or about to begin one.
    :returns: a context manager, sync or async as *conn* is, that yields *conn*.
    :raises OutsideTransaction: on entering the block, if *conn* commits each statement by itself.
    :raises UnusableConnection: on entering it, if *conn* is closed or its transaction has failed.
    :raises AssertionError: on leaving it, if *conn* was committed.
    """
    return RolledBack(conn)


class RolledBack(Generic[C]):
    """What `rolled_back` returns."""

    def __init__(self, conn: C) -> None:
        self._conn = conn
        self._transaction = 0

    def __enter__(self) -> C:
        finish(self._begin(is_async=False))
        return self._conn

    def __exit__(self, *exc: object) -> None:
        finish(self._end())

    async def __aenter__(self) -> C:
        await self._begin(is_async=True)
        return self._conn

    async def __aexit__(self, *exc: object) -> None:
        await self._end()

    async def _begin(self, *, is_async: bool) -> None:
        description = describe(self._conn)
        if description.is_async is not is_async:
            raise SyncAsyncMismatch(
                f"rolled_back() of this {description.driver} connection is entered with "
                f"`{'async with' if description.is_async else 'with'}`"
            )
        outside = OutsideTransaction(
            f"this {description.driver} connection is not in a transaction and commits each statement by itself, "
            "so that nothing can be rolled back: open a transaction first"
        )
        if description.state == "autocommit":
            raise outside
        connector = ExternalConnector(unwrap(self._conn))
        query = "SELECT txid_current() AS xid"
        [row] = await done(connector.run_query(query, {}, is_async=is_async))
        self._transaction = row["xid"]
        try:
            await done(connector.run_query("SAVEPOINT rolled_back", {}, is_async=is_async))
        except ConnectorException as exc:
            if description.state == "unknown":  # to us, but not to the server
                raise outside from exc
            raise

    async def _end(self) -> None:
        if describe(self._conn).state == "closed":
            return
        fate = "in progress"
        with suppress(Exception):  # a transaction that has failed answers nothing, but it goes on
            [row] = await self._send(f"SELECT txid_status({self._transaction}) AS fate")
            fate = row["fate"]
        if fate == "in progress":
            try:
                await self._send("ROLLBACK TO SAVEPOINT rolled_back")
                await self._send("RELEASE SAVEPOINT rolled_back")
            except Exception as exc:
                raise AssertionError(
                    "the transaction ended inside rolled_back(), and one that was begun since has failed, so that "
                    "nobody can tell whether the first was committed: roll back after an error"
                ) from exc
        elif fate == "committed":
            raise AssertionError(
                "the transaction was committed inside rolled_back(), so that its rows and jobs are there to stay: let "
                "whoever opens the transaction commit it, or use a database that is emptied after the test"
            )

    async def _send(self, query: str) -> Rows:
        return await done(execute_on_held(unwrap(self._conn), query, {}))
