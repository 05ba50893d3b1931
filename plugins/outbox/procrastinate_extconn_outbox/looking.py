"""What `assert_deferred` and its like see in an outbox: the jobs of the rows that wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from procrastinate_extconn.hookspecs import Rows

SELECT = "SELECT jobs FROM {table} WHERE set_aside IS NULL ORDER BY id"


def jobs(rows: Rows) -> Rows:
    """A row for each job, with the columns that Procrastinate's own query has."""
    return [*_jobs(rows)]


def _jobs(rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows:
        for job in json.loads(row["jobs"]):
            scheduled_at = job.get("scheduled_at")
            yield {
                "id": -1,
                "lock": None,
                "queueing_lock": None,
                **job,
                "scheduled_at": scheduled_at and datetime.fromisoformat(scheduled_at),
                "status": "todo",
                "attempts": 0,
                "abort_requested": False,
                "worker_id": None,
            }
