"""``once``: a task's effects in another database happen once, however often the job is run."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

from procrastinate import JobContext
from procrastinate.exceptions import ProcrastinateException

from procrastinate_extconn import describe
from procrastinate_extconn.base import json_of
from procrastinate_extconn.connector import ExternalConnector
from procrastinate_extconn.diagnosis import read
from procrastinate_extconn.exceptions import ExternalConnectionError, OutsideTransaction
from procrastinate_extconn.guard import READY, guard, mismatch
from procrastinate_extconn.hookspecs import Rows
from procrastinate_extconn.sync_async import finish

from .absent import is_missing, missing
from .names import MARKS

_MARK = "namespace = %(namespace)s AND job_id = %(job_id)s AND digest = %(digest)s"
_LOOK = f"SELECT job_id FROM {MARKS} WHERE {_MARK}"  # noqa: S608
_INSERT = (
    f"INSERT INTO {MARKS} (namespace, job_id, digest) "  # noqa: S608
    "VALUES (%(namespace)s, %(job_id)s, %(digest)s)"
)


class _InTransaction(ExternalConnector):
    """A connection to any database, in a transaction of the caller's."""

    async def run_query(
        self, query: str, arguments: dict[str, Any], *, is_async: bool, connection: object = None
    ) -> Rows:
        description = describe(self._conn)
        if description.is_async is not is_async:
            raise mismatch(self._conn, "connection", "pass", is_async=is_async)
        if description.state == "unknown":
            raise OutsideTransaction(
                f"this {description.driver} connection does not tell whether it is in a transaction, and once() keeps "
                "its word only in one: use a connection that tells"
            )
        if description.state not in READY:
            # As for the INSERT: outside a transaction, what the look finds is worth nothing either.
            guard(self._conn, description, _INSERT, "error")
        return await self._send(query, arguments, is_async=is_async)

    def _translated(
        self, exc: Exception, arguments: dict[str, Any], *, kept: bool = False
    ) -> ProcrastinateException:
        if not is_missing(exc, MARKS):
            return super()._translated(exc, arguments, kept=kept)
        error = missing(MARKS, self._conn)
        error.__cause__ = read(exc)[0]
        return error


def once(context: JobContext, connection: object, *, namespace: str = "") -> bool:
    """Mark on *connection* that the running job has its effect, in the transaction that holds what the task writes.

    Call it first, and write only if it returns True. A later run of the job finds the mark, once it is committed. Of
    two runs at the same time, the second waits for the first, and then fails.

    :param context: what a task with ``pass_context=True`` gets.
    :param connection: any synchronous connection that a plugin takes, to any database with the table of marks.
    :param namespace: the queue's name, where jobs of several queues leave marks in one table, or where
        Procrastinate's schema was made anew: job ids repeat there.
    :returns: whether this is the first time.
    :raises ExternalConnectionError: if *connection* is in no transaction, or does not tell.
    :raises procrastinate.exceptions.ConnectorException: if the database says no.
    """
    return finish(_once(context, connection, namespace, is_async=False))


async def once_async(context: JobContext, connection: object, *, namespace: str = "") -> bool:
    """Mark that the running job has its effect, as `once` does, on an asynchronous connection."""
    return await _once(context, connection, namespace, is_async=True)


async def _once(context: JobContext, connection: object, namespace: str, *, is_async: bool) -> bool:
    run = partial(_InTransaction(connection).run_query, is_async=is_async)
    mark = _mark_of(context, namespace)
    if await run(_LOOK, mark):
        return False
    await run(_INSERT, mark)
    return True


def _mark_of(context: JobContext, namespace: str) -> dict[str, Any]:
    job = context.job
    if job.id is None:
        raise ExternalConnectionError("once() marks a job that is in a queue: this one has no id")
    work = [job.task_name, job.task_kwargs]
    try:
        content = json.dumps(work, sort_keys=True)
    except TypeError:
        # Not str(): the text of an object may differ in each process.
        dumps = json_of(context.app.connector, "dumps") or json.dumps
        content = json.dumps(json.loads(dumps(work)), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"namespace": namespace, "job_id": job.id, "digest": digest}
