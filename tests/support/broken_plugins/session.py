"""Faults with the session, and with what the plugin leaves behind."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from psycopg.rows import dict_row
from psycopg.types.string import TextLoader

from .base import Fault


class RunsMore(Fault):
    """Runs a statement of its own beside the one that it is asked for."""

    before: ClassVar[str] = ""
    after: ClassVar[str] = ""
    if_idle: ClassVar[bool] = False

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        applies = not self.if_idle or raw.info.transaction_status == 0
        if self.before and applies:
            raw.execute(self.before)
        rows = super().execute(raw, query, args)
        if self.after and applies:
            raw.execute(self.after)
        return rows


class Meddles(RunsMore):
    """Sets what it would rather have."""

    clause = "session_stays"
    why = "the plugin leaves another setting: DateStyle = German, DMY"
    before = "SET datestyle = 'German'"


class MeddlesWhenIdle(RunsMore):
    """Does so where no transaction is open yet."""

    clause = "session_stays_on_an_idle_connection"
    why = "the plugin leaves another setting: DateStyle = German, DMY"
    before = "SET datestyle = 'German'"
    if_idle = True


class SetsLocally(RunsMore):
    """Sets it for the length of the transaction, which is the caller's."""

    clause = "session_stays"
    why = "statement_timeout = 5000"
    before = "SET LOCAL statement_timeout = '5s'"


class BecomesAnother(RunsMore):
    """Takes another role."""

    clause = "session_stays"
    why = "pg_monitor"
    after = "SET LOCAL ROLE pg_monitor"


class LeavesCursors(RunsMore):
    """Leaves a cursor of the server's open."""

    clause = "session_stays"
    why = "the plugin leaves another cursor: left_open"
    after = "DECLARE left_open CURSOR FOR SELECT 1"
    before = "CLOSE ALL"


class LeavesTables(RunsMore):
    """Leaves a temporary table."""

    clause = "session_stays"
    why = "the plugin leaves another temporary table: left_behind"
    after = "CREATE TEMPORARY TABLE IF NOT EXISTS left_behind (n int)"


class LeavesLocks(RunsMore):
    """Leaves an advisory lock."""

    clause = "session_stays"
    why = "the plugin leaves another advisory lock"
    after = "SELECT pg_advisory_lock(1)"


class LeavesTransactionLocks(RunsMore):
    """Leaves one until the transaction ends."""

    clause = "session_stays"
    why = "the plugin leaves another advisory lock"
    after = "SELECT pg_advisory_xact_lock(1)"


class Listens(RunsMore):
    """Listens."""

    clause = "session_stays_on_an_idle_connection"
    why = "the plugin leaves another listened channel"
    after = "LISTEN plugin; COMMIT"
    if_idle = True


class Prepares(Fault):
    """Prepares each statement under a name of its own."""

    clause = "session_stays"
    why = "the plugin leaves another prepared statement"
    count: ClassVar[int] = 0

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        type(self).count += 1
        raw.execute(f"PREPARE left{self.count} AS SELECT 1")
        return super().execute(raw, query, args)


class PreparesInTheProtocol(Fault):
    """Prepares each statement anew by the driver's own means."""

    clause = "prepared_statements_do_not_pile_up"
    why = "prepared statements"
    count: ClassVar[int] = 0

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        type(self).count += 1
        raw.execute(f"SELECT {self.count}", prepare=True)
        return super().execute(raw, query, args)


class ForgetsListening(RunsMore):
    """Tidies the session up."""

    clause = "settings_of_earlier_transactions"
    why = "the plugin leaves another listened channel: none, where it was of_the_caller"
    after = "UNLISTEN *"


class ForgetsAdvisoryLocks(RunsMore):
    """Releases what it did not lock."""

    clause = "settings_of_the_callers"
    why = "the plugin leaves another advisory lock: none"
    after = "SELECT pg_advisory_unlock_all()"


class ForgetsCursors(RunsMore):
    """Closes what it did not open."""

    clause = "settings_of_the_callers"
    why = "the plugin leaves another cursor: none"
    after = "CLOSE ALL"


class ForgetsStatements(RunsMore):
    """Deallocates what it did not prepare."""

    clause = "settings_of_the_callers"
    why = "the plugin leaves another prepared statement: none"
    after = "DEALLOCATE ALL"


class ForgetsSettings(RunsMore):
    """Resets what it did not set."""

    clause = "settings_of_the_callers"
    why = "work_mem"
    after = "RESET ALL"


class MeddlesOnError(Fault):
    """Puts a setting back, unless the statement fails."""

    clause = "session_stays_after_an_error"
    why = "the plugin leaves another setting"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "quotient" not in query:
            return super().execute(raw, query, args)
        raw.execute("ROLLBACK TO SAVEPOINT contract")
        raw.execute("RELEASE SAVEPOINT contract")
        raw.execute("SET datestyle = 'German'")
        raw.execute("SAVEPOINT contract")
        return super().execute(raw, query, args)


class RunsTwo(RunsMore):
    """Asks before each statement whether the server is there."""

    clause = "one_statement"
    why = "one job takes 2 statements"
    before = "SELECT 1"


class RunsTwoAtOnce(Fault):
    """Sends a comment's worth of statement along."""

    clause = "one_statement"
    why = "takes 3 statements"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        raw.pgconn.exec_(b"SELECT 1; SELECT 2")
        return rows


class RunsEachJob(Fault):
    """Sends the jobs of a batch one by one."""

    clause = "one_statement"
    why = "a batch of 150 takes 150 statements"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "jobs" not in args:
            return super().execute(raw, query, args)
        return [
            row
            for job in json.loads(args["jobs"])
            for row in Fault.execute(self, raw, query, {"jobs": json.dumps([job])})
        ]


class ReadsTwice(Fault):
    """Runs what only reads a second time."""

    clause = "one_statement"
    why = "a query with rows takes 2 statements"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "procrastinate_defer" not in query:
            super().execute(raw, query, args)
        return super().execute(raw, query, args)


class LocksTheTable(RunsMore):
    """Keeps everybody else from deferring."""

    clause = "locks_no_tables"
    why = "procrastinate_jobs in ShareRowExclusiveLock"
    before = "LOCK TABLE procrastinate_jobs IN SHARE ROW EXCLUSIVE MODE"


class SetsFactories(Fault):
    """Sets the factory that it needs on the connection."""

    clause = "attributes_stay"
    why = "it changes row_factory"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        raw.row_factory = dict_row
        return super().execute(raw, query, args)


class RegistersForAll(Fault):
    """Registers a loader for the whole process."""

    clause = "reads_stay"
    why = "the owner reads"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        raw.adapters.register_loader("jsonb", TextLoader)
        return rows


class KeepsConnections(Fault):
    """Keeps each connection that it saw."""

    clause = "keeps_no_connection"
    why = "references"
    seen: ClassVar[list[Any]] = []

    def is_mine(self, conn: Any) -> bool:
        if super().is_mine(conn):
            self.seen.append(conn)
            return True
        return False


class SubmitsTheTransaction(RunsMore):
    """Makes deferrable constraints immediate."""

    clause = "one_statement"
    why = "SET CONSTRAINTS"
    before = "SET CONSTRAINTS ALL IMMEDIATE"
