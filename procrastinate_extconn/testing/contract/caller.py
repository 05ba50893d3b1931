"""Somebody who holds a connection and calls Procrastinate on it, in sync or async calls as the connection is."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any

from procrastinate import App
from procrastinate.jobs import Job
from procrastinate.manager import JobManager

from ...connector import ExternalConnector
from ...hookspecs import Description, Rows
from ...kinds import Held, Kind, done
from ...plugins import describe
from .clause import Broken, must
from .database import Database
from .openings import Pair
from .wiretap import Wiretap

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
    """

    def __init__(self, kind: Kind, held: Any, database: Database) -> None:
        must(isinstance(held, Held), f"`open` should yield a `Held`: it yielded {held!r}")
        self.kind = kind
        self.conn: Any = held.conn
        self.database = database
        self.wiretap: Wiretap | None = None
        self.gone: bool = False
        """Whether the connection was ended, so that giving it back may fail."""
        self._held: Held = held

    @property
    def other(self) -> Caller:
        """Somebody with another connection of the same kind."""
        assert isinstance(self._held, Pair)
        return Caller(self.kind, self._held.other, self.database)

    # -- with the driver ------------------------------------------------------------------------------------------

    async def execute(self, query: str) -> list[tuple[Any, ...]]:
        """Run SQL as the connection's owner does."""
        rows = await done(self._held.execute(query))
        if rows is None:
            return []
        try:
            [*found] = rows
        except Exception as exc:
            raise Broken(_NOT_ROWS.format(type(rows).__name__)) from exc
        for row in found:
            must(not isinstance(row, dict), _NOT_ROWS.format("dicts"))
        return [tuple(row) for row in found]

    async def value(self, query: str) -> Any:
        """The first column of the first row, as the connection's owner gets it."""
        rows = await self.execute(query)
        must(rows, _NOT_ROWS.format("none"))
        return rows[0][0]

    async def commit(self) -> None:
        await done(self._held.commit())

    async def rollback(self) -> None:
        await done(self._held.rollback())

    def is_over(self) -> bool:
        """Whether the connection is over, as a transaction object is after its commit or rollback."""
        return self.describe().state == "closed"

    async def close(self) -> None:
        """Close the connection, if it can be closed."""
        self.gone = True
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

    async def error_of(self, attempt: Awaitable[object]) -> Exception | None:
        """What *attempt* raises."""
        try:
            await attempt
        except Exception as exc:  # noqa: BLE001 - a plugin or its driver may raise anything
            return exc
        return None


def what(error: BaseException | None) -> str:
    """*error* in a reason."""
    return "nothing was raised" if error is None else f"{type(error).__name__} was raised"
