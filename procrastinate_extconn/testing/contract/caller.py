"""Somebody who holds a connection and calls Procrastinate on it, in the connection's own colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from procrastinate import App
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

from ...connector import ExternalConnector
from ...hookspecs import Description, Rows
from ...kinds import Held, Kind, done
from ...plugins import describe
from .database import Database

TASK = "contract.task"

_NOT_ROWS = (
    "`Held.execute` should return the rows as tuples, and [] where there are none: it gave {}"
)


def new_job(
    task_kwargs: Mapping[str, Any] | None = None,
    *,
    queue: str = "default",
    task_name: str = TASK,
    lock: str | None = None,
    queueing_lock: str | None = None,
    **fields: Any,
) -> Job:
    """A job that is yet to be deferred."""
    return Job(
        queue=queue,
        task_name=task_name,
        lock=lock,
        queueing_lock=queueing_lock,
        task_kwargs=dict(task_kwargs or {}),
        **fields,
    )


class Caller:
    """What a clause of the contract works with.

    :param kind: what is held.
    :param held: the connection, in a transaction.
    :param database: where it leads.
    :param cannot_tell: what `PluginContract.cannot_tell` says.
    """

    def __init__(
        self, kind: Kind, held: Held, database: Database, cannot_tell: Sequence[str]
    ) -> None:
        self.kind = kind
        self.conn: Any = held.conn
        self.database = database
        self.cannot_tell = cannot_tell
        self._held = held

    # -- with the driver ------------------------------------------------------------------------------------------

    async def execute(self, query: str) -> list[tuple[Any, ...]]:
        """Run SQL as the connection's owner does."""
        rows = await done(self._held.execute(query))
        if rows is None:
            return []
        try:
            [*found] = rows
        except Exception as exc:
            raise AssertionError(_NOT_ROWS.format(type(rows).__name__)) from exc
        for row in found:
            assert not isinstance(row, dict), _NOT_ROWS.format("dicts")
        return [tuple(row) for row in found]

    async def value(self, query: str) -> Any:
        """The first column of the first row, as the connection's owner gets it."""
        rows = await self.execute(query)
        assert rows, _NOT_ROWS.format("none")
        return rows[0][0]

    async def commit(self) -> None:
        await done(self._held.commit())

    async def rollback(self) -> None:
        await done(self._held.rollback())

    async def close(self) -> None:
        """Close the connection, if it can be closed."""
        with suppress(Exception):
            await done(self.conn.close())

    # -- with Procrastinate ---------------------------------------------------------------------------------------

    async def query(self, query: str, /, *, conn: object = None, **arguments: Any) -> Rows:
        """Run one of Procrastinate's queries through the plugin.

        :param conn: the connection with options, if it shall have some.
        """
        # A state that the driver cannot show, or shows wrong, must not keep the clause from what it is about.
        connector = ExternalConnector(conn or self.conn, outside_transaction="allow")
        if self.kind.is_async:
            return await connector.execute_query_all_async(query, **arguments)
        return connector.execute_query_all(query, **arguments)

    async def defer(self, *jobs: Job, conn: object = None) -> list[int]:
        """Defer *jobs*, or one of no interest, in one call, and return their ids."""
        connector = ExternalConnector(conn or self.conn, outside_transaction="allow")
        manager = JobManager(connector)
        batch = list(jobs or [new_job()])
        if self.kind.is_async:
            deferred = await manager.batch_defer_jobs_async(batch)
        else:
            deferred = manager.batch_defer_jobs(batch)
        return [job.id for job in deferred if job.id is not None]

    def app(self) -> App:
        """An app that stands on the connection."""
        return App(connector=ExternalConnector(self.conn, outside_transaction="allow"))

    def describe(self) -> Description:
        """What the plugin says of the connection."""
        return describe(self.conn)

    def can_tell(self, what: str) -> bool:
        """Whether the author says that the driver shows *what*."""
        return what not in self.cannot_tell
