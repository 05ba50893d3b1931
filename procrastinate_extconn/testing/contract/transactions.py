"""The caller's transaction decides, and stays the caller's."""

from __future__ import annotations

from .caller import Caller
from .clause import clause

# Of a backend and a transaction there is one at a time; txid_current() is there in every PostgreSQL.
_WHERE = "SELECT pg_backend_pid(), txid_current()"


class TransactionClauses:
    """Commit, rollback, and nothing in between."""

    @clause
    async def test_commit_keeps_row_and_job(self, caller: Caller) -> None:
        """A commit by the caller keeps the caller's row and the job."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        [job_id] = await caller.defer()
        await caller.commit()
        assert caller.database.value("SELECT count(*) FROM orders") == 1, "the row was lost"
        assert caller.database.sees(job_id), "the job was lost"

    @clause
    async def test_rollback_takes_row_and_job(self, caller: Caller) -> None:
        """A rollback by the caller takes the caller's row and the job."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        [job_id] = await caller.defer()
        await caller.rollback()
        assert caller.database.value("SELECT count(*) FROM orders") == 0, (
            "the row outlived the rollback: the plugin committed it"
        )
        assert not caller.database.sees(job_id), (
            "the job outlived the rollback: it was committed, or deferred on another connection"
        )

    @clause
    async def test_a_lone_job_is_in_the_transaction_too(self, caller: Caller) -> None:
        """A job that is the transaction's first statement is taken by a rollback as well."""
        [job_id] = await caller.defer()
        await caller.rollback()
        assert not caller.database.sees(job_id), "the job outlived the rollback"

    @clause
    async def test_invisible_before_commit(self, caller: Caller) -> None:
        """Before the commit the caller sees the job and nobody else does."""
        [job_id] = await caller.defer()
        assert not caller.database.sees(job_id), (
            "another connection saw the job before the commit: the plugin commits, or runs the query on another "
            "connection"
        )
        seen = await caller.execute("SELECT id FROM procrastinate_jobs")
        assert seen == [(job_id,)], "the caller's own connection does not see the job"

    @clause
    async def test_notify_at_commit(self, caller: Caller) -> None:
        """Workers hear of the job when the caller commits, and not before."""
        caller.database.listen()
        [job_id] = await caller.defer()
        assert caller.database.heard() == [], "a notification went out before the commit"
        await caller.commit()
        assert caller.database.heard() == [job_id], "the commit did not notify of the job, once"

    @clause
    async def test_no_notify_at_rollback(self, caller: Caller) -> None:
        """Workers hear nothing of a job that was rolled back."""
        caller.database.listen()
        await caller.defer()
        await caller.rollback()
        assert caller.database.heard() == [], "a notification went out in spite of the rollback"

    @clause
    async def test_the_very_connection(self, caller: Caller) -> None:
        """Queries run on the caller's own connection and transaction, which are the same before and after."""
        [before] = await caller.execute(_WHERE)
        [during] = await caller.query("SELECT pg_backend_pid() AS pid, txid_current() AS xid")
        await caller.defer()
        [after] = await caller.execute(_WHERE)
        assert during["pid"] == before[0], "the query ran on another connection"
        assert during["xid"] == before[1], "the query ran in another transaction"
        assert after == before, "the plugin ended the caller's transaction, or reconnected"

    @clause
    async def test_settings_stay(self, caller: Caller) -> None:
        """What the caller has set on the connection is the same before and after."""
        settings = "SELECT name, setting FROM pg_settings ORDER BY name"
        before = dict(await caller.execute(settings))
        await caller.defer()
        after = dict(await caller.execute(settings))
        changed = [name for name in before if after[name] != before[name]]
        assert not changed, f"the plugin changed {', '.join(changed)}"
