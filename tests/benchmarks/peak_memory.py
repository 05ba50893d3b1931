"""Print how many times the encoded payload a batch holds at its peak: arguments are a DSN and the number of jobs."""

from __future__ import annotations

import sys
import tracemalloc

import psycopg
from procrastinate_side import DEFER, jobs, ready_made

from procrastinate_extconn import ExternalConnector


def main(dsn: str, count: int) -> None:
    """Defer one job, so that all is loaded, and then the batch."""
    batch = jobs(count)
    _, text = ready_made(count)
    payload = len(text)
    del text
    with psycopg.connect(dsn) as conn:
        connector = ExternalConnector(conn)
        connector.execute_query_all(DEFER, jobs=batch[:1])
        tracemalloc.start()
        connector.execute_query_all(DEFER, jobs=batch)
        _, peak = tracemalloc.get_traced_memory()
        conn.rollback()
    sys.stdout.write(f"{peak / payload}\n")


main(sys.argv[1], int(sys.argv[2]))
