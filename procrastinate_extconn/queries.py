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

MANAGER_QUERIES = frozenset(sql.queries.values()) - WORKER_QUERIES
"""What a job manager asks on behalf of an application."""

_WRITES = re.compile(r"procrastinate_\w+_v\d+\s*\(|\b(?:INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


def notifies(query: str, args: Mapping[str, object]) -> bool:
    """Whether *query* sends a NOTIFY, as it does where it defers or aborts a job."""
    return "procrastinate_defer_" in query or bool(args.get("abort"))


@functools.lru_cache(maxsize=256)
def writes(query: str) -> bool:
    """Whether *query* changes anything."""
    return _WRITES.search(query) is not None
