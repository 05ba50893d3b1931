"""The caller's transaction decides, and stays the caller's."""

from __future__ import annotations

from ..caller import Caller, new_job
from ..clause import clause, must
from ..examples import INSTANT, LONG

# Of a backend and a transaction there is one at a time; txid_current() is there in every PostgreSQL.
_WHERE = "SELECT pg_backend_pid(), txid_current()"
_SHAPES = {
    "one job": [new_job()],
    "a scheduled job": [new_job(scheduled_at=INSTANT)],
    "a job with a lock and a priority": [new_job(lock="lock", priority=5)],
    "a job with a queueing lock": [new_job(queueing_lock="queueing lock")],
    "a job with long arguments": [new_job({"long": LONG})],
    "a batch of 2": [new_job(), new_job(scheduled_at=INSTANT)],
    "a batch of 250": [new_job({"n": n}) for n in range(250)],
}


class TransactionClauses:
    """Commit, rollback, and nothing in between."""

    @clause()
    async def test_commit_keeps_row_and_job(self, caller: Caller) -> None:
        """A commit by the caller keeps the caller's row and the job."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        [job_id] = await caller.defer()
        await caller.commit()
        must(caller.database.value("SELECT count(*) FROM orders") == 1, "the row was lost")
        must(caller.database.sees(job_id), "the job was lost")

    @clause()
    async def test_rollback_takes_row_and_job(self, caller: Caller) -> None:
        """A rollback by the caller takes the caller's row and the job."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        [job_id] = await caller.defer()
        await caller.rollback()
        must(
            caller.database.value("SELECT count(*) FROM orders") == 0,
            "the row outlived the rollback: the plugin committed it",
        )
        must(
            not caller.database.sees(job_id),
            "the job outlived the rollback: it was committed, or deferred on another connection",
        )

    @clause()
    async def test_a_lone_job_is_in_the_transaction_too(self, caller: Caller) -> None:
        """A job that is the transaction's first statement is taken by a rollback as well."""
        [job_id] = await caller.defer()
        await caller.rollback()
        must(not caller.database.sees(job_id), "the job outlived the rollback")

    @clause()
    async def test_a_lone_batch_is_in_the_transaction_too(self, caller: Caller) -> None:
        """So is a batch that is the transaction's first statement."""
        await caller.defer(*_SHAPES["a batch of 250"])
        await caller.rollback()
        must(not caller.database.jobs(), "the batch outlived the rollback")

    @clause()
    async def test_invisible_before_commit(self, caller: Caller) -> None:
        """Before the commit the caller sees the jobs and nobody else does, with each shape and number of jobs."""
        ids: list[int] = []
        for shape, jobs in _SHAPES.items():
            ids += await caller.defer(*jobs)
            must(
                not caller.database.jobs(),
                f"another connection saw {shape} before the commit: the plugin commits, or runs the query on another "
                "connection",
            )
        seen = await caller.execute("SELECT id FROM procrastinate_jobs ORDER BY id")
        must(
            seen == [(one,) for one in sorted(ids)],
            "the caller's own connection does not see the jobs",
        )

    @clause()
    async def test_all_go_with_the_rollback(self, caller: Caller) -> None:
        """A rollback takes jobs of every shape, deferred one after the other, and a commit of the next keeps them."""
        for jobs in _SHAPES.values():
            await caller.defer(*jobs)
        await caller.rollback()
        must(not caller.database.jobs(), "jobs outlived the rollback")

    @clause()
    async def test_savepoints_of_the_caller(self, caller: Caller) -> None:
        """A rollback to the caller's savepoint takes the jobs after it, and keeps those before it."""
        [kept] = await caller.defer()
        await caller.execute("SAVEPOINT of_the_caller")
        [undone] = await caller.defer()
        await caller.execute("ROLLBACK TO SAVEPOINT of_the_caller")
        await caller.execute("RELEASE SAVEPOINT of_the_caller")
        await caller.commit()
        must(caller.database.sees(kept), "the job before the savepoint was lost")
        must(not caller.database.sees(undone), "the job after the savepoint was kept")

    @clause()
    async def test_notify_at_commit(self, caller: Caller) -> None:
        """Workers hear of the job when the caller commits, and not before."""
        caller.database.listen()
        [job_id] = await caller.defer()
        must(caller.database.heard() == [], "a notification went out before the commit")
        await caller.commit()
        must(caller.database.heard() == [job_id], "the commit did not notify of the job, once")

    @clause()
    async def test_no_notify_at_rollback(self, caller: Caller) -> None:
        """Workers hear nothing of a job that was rolled back."""
        caller.database.listen()
        await caller.defer()
        await caller.rollback()
        must(caller.database.heard() == [], "a notification went out in spite of the rollback")

    @clause()
    async def test_the_very_connection(self, caller: Caller) -> None:
        """Queries run on the caller's own connection and transaction, which are the same before and after."""
        [before] = await caller.execute(_WHERE)
        [during] = await caller.query("SELECT pg_backend_pid() AS pid, txid_current() AS xid")
        await caller.defer()
        [after] = await caller.execute(_WHERE)
        must(during["pid"] == before[0], "the query ran on another connection")
        must(during["xid"] == before[1], "the query ran in another transaction")
        must(after == before, "the plugin ended the caller's transaction, or reconnected")

    @clause(on_two=True)
    async def test_two_connections(self, caller: Caller) -> None:
        """Two connections in turn each get their own jobs and rows, and each transaction decides over its own."""
        other = caller.other
        pids = [await one.value("SELECT pg_backend_pid()") for one in (caller, other)]
        for one, pid in zip((caller, other, caller), (*pids, pids[0]), strict=True):
            [row] = await one.query("SELECT pg_backend_pid() AS pid, %(n)s::bigint AS n", n=pid)
            must(row == {"pid": pid, "n": pid}, "a query ran on the other connection")
        [kept], [undone] = await caller.defer(), await other.defer()
        await other.rollback()
        await caller.commit()
        must(caller.database.sees(kept), "the job of the connection that committed was lost")
        must(not caller.database.sees(undone), "the job of the one that rolled back was kept")
