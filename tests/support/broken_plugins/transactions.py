"""Faults with the caller's transaction."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

import psycopg

from .base import Fault


class Commits(Fault):
    """Commits what it has sent."""

    clause = "invisible_before_commit"
    why = "another connection saw one job before the commit"

    def applies(self, query: str, args: dict[str, Any]) -> bool:
        """Whether this statement is committed."""
        return True

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        if self.applies(query, args):
            raw.commit()
        return rows


class CommitsToo(Commits):
    """Does the same, and is caught by a rollback."""

    clause = "rollback_takes_row_and_job"
    why = "the plugin committed it"


class CommitsAndNotifies(Commits):
    """Does the same, and wakes the workers."""

    clause = "notify_at_commit"
    why = "a notification went out before the commit"


class CommitsBatches(Commits):
    """Commits large batches."""

    why = "another connection saw a batch of 250 before the commit"

    def applies(self, query: str, args: dict[str, Any]) -> bool:
        return len(json.loads(args.get("jobs", "[]"))) > 50


class CommitsScheduledJobs(Commits):
    """Commits jobs that have time."""

    why = "another connection saw a scheduled job before the commit"

    def applies(self, query: str, args: dict[str, Any]) -> bool:
        return "scheduled_at" in args.get("jobs", "")


class CommitsWhatItBegan(Fault):
    """Commits the transaction that its own statement opened."""

    clause = "a_lone_job_is_in_the_transaction_too"
    why = "the job outlived the rollback"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        idle = raw.info.transaction_status == 0
        rows = super().execute(raw, query, args)
        if idle:
            raw.commit()
        return rows


class CommitsBatchesItBegan(Fault):
    """Does so for batches alone."""

    clause = "a_lone_batch_is_in_the_transaction_too"
    why = "the batch outlived the rollback"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        idle = raw.info.transaction_status == 0
        rows = super().execute(raw, query, args)
        if idle and len(rows) > 1:
            raw.commit()
        return rows


class CommitsOtherWrites(Commits):
    """Commits every statement that defers no job."""

    clause = "writes"
    why = "others see what"

    def applies(self, query: str, args: dict[str, Any]) -> bool:
        return "jobs" not in args and query.lstrip().startswith("SELECT procrastinate")


class RunsElsewhere(Fault):
    """Opens a connection of its own."""

    clause = "the_very_connection"
    why = "the query ran on another connection"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        dsn = psycopg.conninfo.make_conninfo(raw.info.dsn, password=raw.info.password)
        with psycopg.connect(dsn, autocommit=True) as other:
            return super().execute(other, query, args)


class EndsAndBegins(Fault):
    """Begins each statement in a fresh transaction."""

    clause = "the_very_connection"
    why = "the query ran in another transaction"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        raw.commit()
        return super().execute(raw, query, args)


class Closes(Fault):
    """Takes the connection for its own."""

    clause = "the_very_connection"
    why = "is closed"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        raw.close()
        return rows


class KeepsTheFirst(Fault):
    """Runs everything on the first connection that it saw, while that one lives."""

    clause = "two_connections"
    why = "a query ran on the other connection"
    first: ClassVar[Any] = None

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        cls = type(self)
        if cls.first is None or cls.first.closed:
            cls.first = raw
        return super().execute(cls.first, query, args)


class LosesSavepoints(Fault):
    """Gives its own savepoint a name that the caller uses too, and leaves it."""

    clause = "savepoints_of_the_caller"
    why = "the job after the savepoint was kept"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        raw.execute("SAVEPOINT of_the_caller")
        return rows


class UndoesItself(Fault):
    """Rolls its own savepoint back at the end."""

    clause = "commit_keeps_row_and_job"
    why = "the job was lost"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        raw.execute("SAVEPOINT own")
        rows = super().execute(raw, query, args)
        raw.execute("ROLLBACK TO SAVEPOINT own")
        return rows


class CommitsTheSeventh(Fault):
    """Commits now and then, so that no transaction grows long."""

    clause = "all_go_with_the_rollback"
    why = "jobs outlived the rollback"
    counts: ClassVar[dict[int, int]] = {}

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        self.counts[id(raw)] = self.counts.get(id(raw), 0) + 1
        if self.counts[id(raw)] % 7 == 0:
            raw.commit()
        return rows


class NotifiesByItself(Fault):
    """Wakes the workers on a connection of its own."""

    clause = "no_notify_at_rollback"
    why = "a notification went out in spite of the rollback"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        dsn = psycopg.conninfo.make_conninfo(raw.info.dsn, password=raw.info.password)
        with psycopg.connect(dsn, autocommit=True) as other:
            payload = json.dumps({"job_id": rows[0]["id"]})
            other.execute("SELECT pg_notify('procrastinate_any_queue_v1', %s)", [payload])
        return rows


class KnowsPlainQueries(Fault):
    """Refuses a query that does more than to select."""

    clause = "savepoint"
    why = "instead of AlreadyEnqueued"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if re.search(r"\b(SAVEPOINT|EXCEPTION|WITH jobs)\b", query):
            raise NotImplementedError
        return super().execute(raw, query, args)
