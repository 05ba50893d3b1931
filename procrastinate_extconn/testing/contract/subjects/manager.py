"""Every operation of Procrastinate's job manager that is a single query, and the worker that runs the job."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

from procrastinate import App, PsycopgConnector, sql
from procrastinate.manager import JobManager

from ....connector import ExternalConnector
from ....hookspecs import Rows
from ..caller import TASK, Caller, new_job
from ..clause import clause, must
from ..database import Database

_ALL = {"queue_name": None, "task_name": None, "status": None, "lock": None}
_JOBS = {"id": None, **_ALL, "queueing_lock": None, "worker_id": None}

READS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("list_jobs", _JOBS),
    ("list_jobs", {**_JOBS, "id": 2}),
    ("list_jobs", {**_JOBS, "queue_name": "q2", "status": "doing", "worker_id": 1}),
    ("list_jobs", {**_JOBS, "task_name": "t1", "lock": "l1", "queueing_lock": "ql1"}),
    ("list_queues", _ALL),
    ("list_queues", {**_ALL, "queue_name": "q2"}),
    ("list_tasks", {**_ALL, "status": "doing"}),
    ("list_locks", _ALL),
    ("list_jobs_to_abort", {"queue_name": None}),
    ("get_job_status", {"job_id": 3}),
    ("get_job_status", {"job_id": 99}),
    ("count_jobs_status", {}),
    ("check_connection", {}),
    ("select_stalled_jobs_by_started", {"nb_seconds": 60, "queue": None, "task_name": "t2"}),
    (
        "select_stalled_jobs_by_heartbeat",
        {"queue": "q2", "task_name": None, "seconds_since_heartbeat": 30.5},
    ),
)
"""Queries that change nothing, and what the manager passes them."""

WRITES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("cancel_job", {"job_id": 1, "abort": False, "delete_job": False}),
    ("cancel_job", {"job_id": 1, "abort": False, "delete_job": True}),
    ("cancel_job", {"job_id": 2, "abort": True, "delete_job": False}),
    ("cancel_job", {"job_id": 99, "abort": False, "delete_job": False}),
    ("finish_job", {"job_id": 2, "status": "succeeded", "delete_job": False}),
    ("finish_job", {"job_id": 2, "status": "failed", "delete_job": True}),
    (
        "retry_job",
        {
            "job_id": 2,
            "retry_at": datetime(2040, 1, 2, 3, 4, 5, 6, timezone.utc),
            "new_priority": 7,
            "new_queue_name": "q'3",
            "new_lock": None,
        },
    ),
    ("delete_old_jobs", {"nb_hours": 1, "queue": None, "statuses": ["succeeded", "failed"]}),
    ("delete_old_jobs", {"nb_hours": 1, "queue": "none", "statuses": ["succeeded"]}),
    (
        "defer_periodic_job",
        {
            "queue": "q1",
            "task_name": "periodic",
            "priority": 3,
            "lock": "l9",
            "queueing_lock": None,
            "args": {"text": "it's {\\} %s"},
            "defer_timestamp": 1_900_000_000,
            "periodic_id": "",
        },
    ),
)
"""Queries that change something."""
_WITHOUT_ROWS = ("finish_job", "retry_job", "delete_old_jobs")

_SEED = """
    SELECT setval('procrastinate_jobs_id_seq', 5, false);
    INSERT INTO procrastinate_workers (id, last_heartbeat) OVERRIDING SYSTEM VALUE VALUES (1, '2024-01-01T00:00Z');
    INSERT INTO procrastinate_jobs
        (id, queue_name, task_name, priority, lock, queueing_lock, args, status, scheduled_at, attempts,
         abort_requested, worker_id)
    VALUES
        (1, 'q1', 't1', 5, 'l1', 'ql1', '{"a": [1, 2.5, null, "it''s"]}', 'todo', '2030-06-01T12:00:00.000001Z', 0,
         false, NULL),
        (2, 'q2', 't2', 0, 'l2', NULL, '{}', 'doing', NULL, 1, true, 1),
        (3, 'q2', 't1', -1, NULL, NULL, '{"n": 123456789012345678901234567890}', 'succeeded', NULL, 2, false, NULL),
        (4, 'q1', 't2', 0, 'l1', NULL, '{"b": {"c": true}}', 'failed', NULL, 3, false, NULL);
    UPDATE procrastinate_events SET at = '2024-01-01T00:00Z';
    INSERT INTO procrastinate_events (job_id, type, at) VALUES (2, 'started', '2024-01-01T00:00:01.5Z');
"""

MANY_JOBS = """
    INSERT INTO procrastinate_jobs (id, queue_name, task_name, args)
    SELECT n, 'many', 'many', jsonb_build_object('n', 9007199254740992 + n, 'f', 1.0,
                                                 'text', repeat('x', CASE n WHEN 250 THEN 150000 ELSE 3 END))
    FROM generate_series(101, 250) AS n
"""
"""More than a hundred rows, and at the end a long one."""

_TABLES = """
    SELECT json_build_object(
        'jobs', (SELECT json_agg(json_build_array(to_jsonb(j) - 'scheduled_at', extract(epoch FROM scheduled_at))
                                 ORDER BY id) FROM procrastinate_jobs j),
        'events', (SELECT json_agg(json_build_array(job_id, type) ORDER BY id) FROM procrastinate_events),
        'periodic', (SELECT json_agg(json_build_array(task_name, defer_timestamp, job_id, periodic_id))
                     FROM procrastinate_periodic_defers)
    )::text
"""


class ManagerClauses:
    """Cancel, status, all the other operations, and a real worker."""

    @clause()
    async def test_cancel_and_status(self, caller: Caller) -> None:
        """A job is looked at and cancelled in the transaction that deferred it."""
        [job_id] = await caller.defer()
        manager = JobManager(ExternalConnector(caller.conn, outside_transaction="allow"))
        if caller.kind.is_async:
            before = await manager.get_job_status_async(job_id)
            cancelled = await manager.cancel_job_by_id_async(job_id)
            after = await manager.get_job_status_async(job_id)
        else:
            before = manager.get_job_status(job_id)
            cancelled = manager.cancel_job_by_id(job_id)
            after = manager.get_job_status(job_id)
        must(
            (before.value, cancelled, after.value) == ("todo", True, "cancelled"),
            f"the job was {before.value}, cancelling gave {cancelled}, and then it was {after.value}",
        )
        await caller.commit()
        must(caller.database.jobs()[0]["status"] == "cancelled", "the commit lost it")

    @clause()
    async def test_reads(self, caller: Caller) -> None:
        """Every query of the manager that reads gives the rows that Procrastinate's own connector gives."""
        seed(caller.database)
        caller.database.witness.execute(MANY_JOBS)
        await reads_as_natively(caller)

    @clause()
    async def test_writes(self, caller: Caller) -> None:
        """Every query of the manager that writes leaves what Procrastinate's own connector leaves, once committed."""
        expected = [_written_natively(caller.database, *write) for write in WRITES]
        seed(caller.database)
        untouched = caller.database.value(_TABLES)
        for (name, arguments), (expected_rows, expected_tables) in zip(
            WRITES, expected, strict=True
        ):
            await caller.execute("SAVEPOINT contract")
            rows = await caller.query(sql.queries[name], **arguments)
            tables = json.loads(await caller.value(_TABLES))
            must(
                caller.database.value(_TABLES) == untouched,
                f"others see what {name} wrote before it is committed",
            )
            await caller.execute("ROLLBACK TO SAVEPOINT contract")
            must(tables == expected_tables, f"{name} leaves {tables!r}, not {expected_tables!r}")
            if name not in _WITHOUT_ROWS:
                must(rows == expected_rows, f"{name} gives {rows!r}, not {expected_rows!r}")

    @clause()
    async def test_worker_runs_it(self, caller: Caller) -> None:
        """A real worker runs the job once it is committed, with its arguments."""
        await caller.defer(new_job({"order_id": 42, "name": "it's"}))
        must(_run_worker(caller.database) == [], "the worker ran it before the commit")
        await caller.commit()
        ran = _run_worker(caller.database)
        must(ran == [{"order_id": 42, "name": "it's"}], f"the worker ran {ran!r}")


async def reads_as_natively(caller: Caller) -> None:
    """Break the clause unless each query that reads gives the rows that Procrastinate's own connector gives."""
    for name, arguments in READS:
        query = sql.queries[name]
        expected = _typed(caller.database.native.execute_query_all(query, **arguments), query)
        found = _typed(await caller.query(query, **arguments), query)
        must(len(found) == len(expected), f"{name} gives {len(found)} rows, not {len(expected)}")
        for ours, theirs in zip(found, expected, strict=True):
            wrong = [column for column in theirs if ours.get(column) != theirs[column]]
            must(
                list(ours) == list(theirs) and not wrong,
                f"{name} gives {_told(ours, wrong)}, not {_told(theirs, wrong)}",
            )


def _told(row: dict[str, tuple[type, Any]], columns: list[str]) -> str:
    return str({column: row[column][1] for column in columns if column in row} or list(row))


def seed(database: Database) -> None:
    """Empty the tables, and fill them with jobs in every state."""
    database.empty()
    database.witness.execute(_SEED)


def _written_natively(database: Database, name: str, arguments: dict[str, Any]) -> tuple[Rows, Any]:
    seed(database)
    query = sql.queries[name]
    if name in _WITHOUT_ROWS:
        database.native.execute_query(query, **arguments)
        rows = []
    else:
        rows = database.native.execute_query_all(query, **arguments)
    return rows, json.loads(database.value(_TABLES))


def _typed(rows: Rows, query: str) -> list[dict[str, tuple[type, Any]]]:
    """*rows* so that 1 is neither Decimal(1) nor True, and in one order where the query asks for none."""
    if "ORDER BY" not in query:
        rows = sorted(rows, key=str)
    return [
        {
            name: (
                type(value),
                json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value,
            )
            for name, value in row.items()
        }
        for row in rows
    ]


def _run_worker(database: Database) -> list[dict[str, Any]]:
    """Let a worker run what there is, and return the arguments of the jobs that it ran."""
    app = App(connector=PsycopgConnector(conninfo=database.dsn))
    ran: list[dict[str, Any]] = []

    @app.task(name=TASK)
    def task(**task_kwargs: Any) -> None:
        ran.append(task_kwargs)

    async def work() -> None:
        async with app.open_async():
            await app.run_worker_async(
                wait=False, listen_notify=False, install_signal_handlers=False
            )

    # In a thread, since there may be an event loop in this one.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, work()).result()
    return ran
