"""What kind of query of Procrastinate's a text is."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

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

JOBS = re.compile(r"%\((\w+)\)s::(procrastinate_job_to_defer_v\d+)\[\]")
"""The parameter of a query that takes job records, and their type."""
# PostgreSQL's own names are qualified: an earlier schema of the search_path may have the same.
RECORDS = r"pg_catalog.json_populate_recordset(NULL::\2, CAST(CAST(%(\1)s AS pg_catalog.text) AS pg_catalog.json))"
# The server looks at FROM first. So a database without Procrastinate's schema, and one with another version of it,
# give different errors.
JOBS_AS_TEXT = (
    "ARRAY(SELECT RECORDS FROM (SELECT CAST('procrastinate_jobs' AS pg_catalog.regclass)) AS its_schema)"
).replace("RECORDS", RECORDS)
_COMMON = r"pg_catalog.json_populate_record(NULL::\2, CAST(CAST(%(common)s AS pg_catalog.text) AS pg_catalog.json))"
_ROWS = JOBS_AS_TEXT.replace(r"NULL::\2", _COMMON).replace(r"%(\1)s", "%(rows)s")
_defer_rows, _known = JOBS.subn(_ROWS, sql.queries["defer_jobs"].rstrip().rstrip(";"))
DEFER_ROWS: str | None = (
    "".join(
        (
            "SELECT pg_catalog.max(id) AS id, pg_catalog.count(id) AS count FROM (",
            _defer_rows,
            ") AS jobs",
        )
    )
    if _known
    else None
)
"""Defers jobs that have all but their arguments in common, and counts them; None if Procrastinate's query is unknown.

The records in ``rows`` lack what they have in common. It stands in the record ``common``.
"""

MANAGER_QUERIES = frozenset({*sql.queries.values(), *filter(None, [DEFER_ROWS])}) - WORKER_QUERIES
"""What a job manager asks on behalf of an application."""


@functools.lru_cache(maxsize=256)
def original(query: str | None) -> str | None:
    """The query of Procrastinate's that *query* is, or has in it, as a connector may add a comment; None if none."""
    known = MANAGER_QUERIES | WORKER_QUERIES
    if query is None or query in known:
        return query
    return next((one for one in known if one.strip().rstrip(";") in query), None)


JOB_ROW = """\
SELECT CAST(status AS text) AS status, attempts, worker_id
FROM procrastinate_jobs WHERE id = %(job_id)s"""

# The weakest lock that the task's transaction keeps others from; a person's foreign key to the job is not in its way.
UNLOCKED_JOB_ROW = f"{JOB_ROW} FOR SHARE SKIP LOCKED"

DELETE_COMPLETED_JOB = (
    "DELETE FROM procrastinate_jobs WHERE id = %(job_id)s AND status = 'succeeded'"
)

# `set_config` sends a write that may fail: see conflicts.py.
_WRITES = re.compile(
    r"procrastinate_\w+_v\d+\s*\(|\bset_config\(|\b(?:INSERT|UPDATE|DELETE)\b", re.IGNORECASE
)


FOR_A_TEST = "\n-- for a test"
"""At the end of a query to an `OUTBOX`: a test looks at jobs that an application cannot see there."""


def notifies(query: str, args: Mapping[str, object]) -> bool:
    """Whether *query* sends a NOTIFY, as it does where it defers or aborts a job."""
    return "procrastinate_defer_" in query or "pg_notify(" in query or bool(args.get("abort"))


@functools.lru_cache(maxsize=256)
def writes(query: str) -> bool:
    """Whether *query* changes anything."""
    return _WRITES.search(query) is not None
