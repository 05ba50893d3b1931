"""``complete``: a job ends in the transaction of its task, so what the task wrote and the job's end commit together.

What the worker then makes of the job's row stands in `settlement`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from procrastinate import JobContext
from procrastinate.jobs import Job
from procrastinate.testing import InMemoryConnector

from ..connector import ExternalConnector
from ..exceptions import ExternalConnectionError
from ..hookspecs import Rows
from ..layer import layer
from ..queries import JOB_ROW
from ..sync_async import finish
from . import settlement
from .decision import Fate

# As Procrastinate's finish_job, but for this run of the job alone. Pruning a stalled worker sets worker_id to NULL.
# The job still belongs to this run until a retry increments its attempts.
_SUCCEED = """\
WITH succeeded AS (
    UPDATE procrastinate_jobs
    SET status = 'succeeded', abort_requested = false, attempts = attempts + 1
    WHERE id = %(job_id)s AND status = 'doing' AND attempts = %(attempts)s
        AND (worker_id = %(worker_id)s OR worker_id IS NULL)
    RETURNING id
)
SELECT id FROM succeeded"""


def complete(context: JobContext, connection: object) -> None:
    """Mark the running job as succeeded on *connection*, in the transaction that holds what the task has written.

    After a commit the job has succeeded, even if the task or its worker fails later. After a rollback it has not: the
    worker then retries or fails the job, even where the task returns without an error. An app on an
    `InMemoryConnector` leaves the job to its worker.

    :param context: what a task with ``pass_context=True`` gets.
    :param connection: any synchronous connection that a plugin takes, or what `external` made of one. The job's
        row is locked until its transaction ends, so complete the job last, and commit.
    :raises ExternalConnectionError: if the job is no longer this run's, because it was taken for stalled and
        retried, for instance. Let it through, so that the transaction is rolled back.
    :raises procrastinate.exceptions.ConnectorException: if the connection or the server says no.
    """
    finish(_complete(context, connection, is_async=False))


async def complete_async(context: JobContext, connection: object) -> None:
    """Mark the running job as succeeded, as `complete` does, on an asynchronous connection."""
    await _complete(context, connection, is_async=True)


async def _complete(context: JobContext, connection: object, *, is_async: bool) -> None:
    app_connector = context.app.connector
    if isinstance(app_connector, InMemoryConnector):
        return
    if not layer.is_on(app_connector):
        raise ExternalConnectionError(
            "complete() needs a worker that knows of it: call procrastinate_extconn.install() where the worker "
            "starts, or patch(app)"
        )
    job = context.job
    settlement.expect(job)
    connector = ExternalConnector(connection, outside_transaction=layer.mode_of(app_connector))
    run = partial(connector.run_query, is_async=is_async)
    if not await run(_SUCCEED, _this_run(job)):
        raise _not_ours(job, await run(JOB_ROW, {"job_id": job.id}))


def _this_run(job: Job) -> dict[str, Any]:
    return {"job_id": job.id, "attempts": job.attempts, "worker_id": job.worker_id}


def _not_ours(job: Job, rows: Rows) -> ExternalConnectionError:
    if not rows:
        found = "it has been deleted"
    elif Fate.of(rows[0], job) is Fate.COMPLETED:
        found = "it is completed already"
    else:
        found = (
            f"it is {rows[0]['status']!r} now, at {rows[0]['attempts']} attempts and with worker "
            f"{rows[0]['worker_id']}, and this run began at {job.attempts} with worker {job.worker_id}"
        )
    return ExternalConnectionError(
        f"job {job.id} is not this run's to complete: {found}. Let this exception through, so that the transaction "
        "is rolled back."
    )
