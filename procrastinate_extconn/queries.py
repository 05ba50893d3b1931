"""What kind of query of Procrastinate's a text is."""

from __future__ import annotations

import functools
import re

from procrastinate import sql

WORKER_QUERIES = frozenset(
    sql.queries[name]
    for name in (
        "fetch_job",
        "register_worker",
        "unregister_worker",
        "update_heartbeat",
        "prune_stalled_workers",
        "listen_queue",
    )
    if name in sql.queries
)
"""What only a worker asks: it needs connections of its own."""

MANAGER_QUERIES = frozenset(sql.queries.values()) - WORKER_QUERIES
"""What a job manager asks on behalf of an application."""

JOB_ROW = """\
SELECT CAST(status AS text) AS status, attempts, worker_id
FROM procrastinate_jobs WHERE id = %(job_id)s"""

# The weakest lock that the task's transaction keeps others from; a person's foreign key to the job is not in its way.
UNLOCKED_JOB_ROW = f"{JOB_ROW} FOR SHARE SKIP LOCKED"

DELETE_COMPLETED_JOB = (
    "DELETE FROM procrastinate_jobs WHERE id = %(job_id)s AND status = 'succeeded'"
)

_WRITES = re.compile(r"procrastinate_\w+_v\d+\s*\(|\b(?:INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


@functools.lru_cache(maxsize=256)
def writes(query: str) -> bool:
    """Whether *query* changes anything."""
    return _WRITES.search(query) is not None
