"""Undo what a test does on a connection, jobs and all."""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from uuid import uuid4

from ..exceptions import SyncAsyncMismatch
from ..plugins import describe
from ..sync_async import finish
from .open_transaction import TestedConnection

C = TypeVar("C")

_MARK = "procrastinate_extconn.rolled_back"
"""A setting of the transaction: the release of a savepoint keeps its value, a rollback does not."""

_COMMITTED = (
    "the transaction was committed inside rolled_back(), so that its rows and jobs are there to stay: let "
    "the code that opens the transaction commit it, or use a database that is emptied after the test"
)
_RELEASED = (
    "a savepoint around that of rolled_back() was released in the block, so rolled_back() can undo nothing. The "
    "transaction is still open. A SQLAlchemy session with join_transaction_mode='create_savepoint' does so when it "
    "commits: pass rolled_back() the connection that the session is bound to."
)
_ANOTHER = (
    "the transaction was rolled back inside rolled_back(), and another one has written since, which rolled_back() "
    "cannot undo: roll it back in the test"
)
_UNKNOWN = (
    "the savepoint of rolled_back() is gone and the present transaction has failed, so it cannot be told whether the "
    "rows and jobs of the block were committed: roll back after an error"
)


def rolled_back(conn: C) -> RolledBack[C]:
    """Undo at the end of the ``with`` or ``async with`` block what was done on *conn* in it.

    The block runs behind a savepoint, so the transaction around it is left as it was. A commit removes the
    savepoint and fails the test, unless the block closes *conn* as well.

    :param conn: any connection that a plugin takes, in a transaction or about to begin one.
    :returns: a context manager, sync or async as *conn* is, that yields *conn*.
    :raises OutsideTransaction: on entering the block, if *conn* commits each statement by itself.
    :raises UnusableConnection: on entering it, if *conn* is closed or its transaction has failed.
    :raises AssertionError: on leaving it, if *conn* was committed, or wrote in another transaction.
    """
    return RolledBack(conn)


class RolledBack(Generic[C]):
    """What `rolled_back` returns."""

    def __init__(self, conn: C) -> None:
        self._conn = conn
        self._tested: TestedConnection
        self._transaction = 0
        self._token = uuid4().hex

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
        self._tested = TestedConnection(self._conn)
        description = self._tested.description
        if description.is_async is not is_async:
            raise SyncAsyncMismatch(
                f"rolled_back() of this {description.driver} connection is entered with "
                f"`{'async with' if description.is_async else 'with'}`"
            )
        self._transaction = await self._tested.transaction_id("nothing can be rolled back")
        await self._tested.rows("SAVEPOINT rolled_back")
        await self._tested.rows(
            "SELECT set_config(%(name)s, %(value)s, true)", name=_MARK, value=self._token
        )

    async def _end(self) -> None:
        if describe(self._conn).state == "closed":
            return
        now = await self._look()
        if now is None:
            await self._undo(otherwise=_UNKNOWN)
        elif now["fate"] == "committed":
            raise AssertionError(_COMMITTED)
        elif now["fate"] == "aborted":
            if now["another"] is not None:
                raise AssertionError(_ANOTHER)
        elif now["is_kept"]:
            await self._tested.send("SAVEPOINT rolled_back_end")
            await self._undo(otherwise=_RELEASED, back_to="rolled_back_end")
        # Else the savepoint was rolled back with one around it.

    async def _look(self) -> dict[str, Any] | None:
        """What has become of the transaction and the savepoint; None if the present transaction has failed."""
        try:
            [row] = await self._tested.send(
                f"SELECT txid_status({self._transaction}) AS fate, txid_current_if_assigned() AS another, "
                f"coalesce(current_setting('{_MARK}', true) = '{self._token}', false) AS is_kept"
            )
        except Exception:  # noqa: BLE001 - each driver has its own
            return None
        return row

    async def _undo(self, *, otherwise: str, back_to: str | None = None) -> None:
        try:
            await self._tested.send("ROLLBACK TO SAVEPOINT rolled_back")
            await self._tested.send("RELEASE SAVEPOINT rolled_back")
        except Exception as exc:
            if back_to is not None:
                await self._tested.send(f"ROLLBACK TO SAVEPOINT {back_to}")
                await self._tested.send(f"RELEASE SAVEPOINT {back_to}")
            raise AssertionError(otherwise) from exc
