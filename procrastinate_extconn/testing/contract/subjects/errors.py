"""What goes wrong comes out, as what it is, and harms no more than it must."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from procrastinate.exceptions import (
    AlreadyEnqueued,
    ConnectorException,
    ProcrastinateException,
    UniqueViolation,
)

from ....diagnosis import chain
from ....exceptions import UnusableConnection
from ....options import external
from ....plugins import plugins
from ..caller import Caller, new_job, what
from ..clause import clause, must
from .interruptions import terminate

LOCK = """a (taken) "lock" isn't {free}, \\"""
PRIVATE = "correct horse battery staple"
_FAILS = "SELECT 1 / %(zero)s::bigint AS quotient"


class ErrorClauses:
    """Taken locks, failed statements, aborted transactions, lost connections."""

    @clause()
    async def test_taken_lock(self, caller: Caller) -> None:
        """A taken queueing lock is `AlreadyEnqueued`, and the error has the lock."""
        _take_lock(caller)
        error = await caller.error_of(caller.defer(new_job(queueing_lock=LOCK)))
        must(
            isinstance(error, AlreadyEnqueued),
            f"{what(error)} instead of AlreadyEnqueued",
            error,
        )
        cause = error and error.__cause__
        must(isinstance(cause, UniqueViolation), f"its cause is {type(cause).__name__}", error)
        lock = getattr(cause, "queueing_lock", None)
        must(lock == LOCK, f"its lock is {lock!r}, not {LOCK!r}", error)

    @clause()
    async def test_taken_lock_in_a_batch(self, caller: Caller) -> None:
        """In a batch of jobs with several locks, the error has the one that is taken, or none if nobody told."""
        _take_lock(caller)
        locks = ("free", LOCK, "free too", "taken")
        attempt = caller.defer(*(new_job(queueing_lock=lock) for lock in locks))
        error = await caller.error_of(attempt)
        must(
            isinstance(error, AlreadyEnqueued),
            f"{what(error)} instead of AlreadyEnqueued",
            error,
        )
        lock = getattr(error and error.__cause__, "queueing_lock", None)
        must(lock in (LOCK, None), f"its lock is {lock!r}, not {LOCK!r}", error)

    @clause()
    async def test_other_unique_violation(self, caller: Caller) -> None:
        """A unique violation of another constraint is no `AlreadyEnqueued`, even if its text quotes that one's name."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        await caller.execute("CREATE TEMPORARY TABLE named (lock text UNIQUE)")
        text = "procrastinate_jobs_queueing_lock_idx_v1"
        await caller.execute(f"INSERT INTO named VALUES ('{text}')")  # noqa: S608 - no input
        attempt = caller.query("INSERT INTO named VALUES (%(text)s::text)", text=text)
        error = await caller.error_of(attempt)
        must(
            isinstance(error, ConnectorException),
            f"{what(error)} instead of ConnectorException",
            error,
        )
        name = getattr(error, "constraint_name", None)
        must(name != text, "it is taken for a taken queueing lock", error)

    @clause()
    async def test_error_comes_out(self, caller: Caller) -> None:
        """A database error is a `ConnectorException` whose cause is the error that the driver gives its owner."""
        error = await caller.error_of(caller.query(_FAILS, zero=0))
        must(
            isinstance(error, ConnectorException),
            f"{what(error)} instead of ConnectorException",
            error,
        )
        cause = error and error.__cause__
        must(cause is not None, "it has no cause", error)
        must(
            not isinstance(cause, ProcrastinateException),
            f"its cause is {type(cause).__name__}",
            error,
        )
        await caller.error_of(caller.rollback())

    @clause()
    async def test_error_is_the_drivers(self, caller: Caller) -> None:
        """The cause of an error is of the class that the driver raises for its owner."""
        await caller.execute("SAVEPOINT contract")
        own = await caller.error_of(caller.execute("SELECT 1 / 0"))
        assert own is not None
        await caller.execute("ROLLBACK TO SAVEPOINT contract")
        error = await caller.error_of(caller.query(_FAILS, zero=0))
        cause = error and error.__cause__
        classes = {type(one) for one in chain(own)}
        must(
            type(cause) in classes,
            f"its cause is a {type(cause).__name__}, where the driver raises {type(own).__name__}: let its errors "
            "through as they are",
            error,
        )

    @clause()
    async def test_sqlstate(self, caller: Caller) -> None:
        """The text of a database error has its SQLSTATE."""
        error = await caller.error_of(caller.query(_FAILS, zero=0))
        must("22012" in str(error), f"the text has no SQLSTATE: {error}", error)

    @clause()
    async def test_read_external_error(self, caller: Caller) -> None:
        """If the plugin has `read_external_error`, it reads what the server said, as text or None."""
        if caller.kind.plugin not in plugins().names("read_external_error"):
            return
        await caller.execute("INSERT INTO orders VALUES (1)")
        error = await caller.error_of(caller.execute("INSERT INTO orders VALUES (1)"))
        assert error is not None
        read = [said for one in chain(error) if (said := plugins().read_error(one))]
        must(read, "it knows none of the errors of its driver", error)
        for said in read:
            facts: list[Any] = [*said]
            wrong = [fact for fact in facts if not isinstance(fact, (str, type(None)))]
            must(not wrong, f"it gives {wrong!r}, where a text or None is due")
            must(
                said.sqlstate in ("23505", None), f"the SQLSTATE is {said.sqlstate!r}, not '23505'"
            )

    @clause()
    async def test_no_secrets(self, caller: Caller) -> None:
        """The error for a job that PostgreSQL cannot store does not quote its arguments."""
        await _fails_in_secret(caller, caller.defer(new_job({"private": PRIVATE, "nul": "\0"})))

    @clause()
    async def test_no_secrets_of_values(self, caller: Caller) -> None:
        """The error for a value that PostgreSQL cannot read does not quote it."""
        number = "SELECT CAST(%(text)s::text AS bigint) AS n"
        await _fails_in_secret(caller, caller.query(number, text=PRIVATE))

    @clause()
    async def test_next_call_after_an_error(self, caller: Caller) -> None:
        """After an error, and a rollback to a savepoint by the caller, the next call works."""
        await caller.execute("SAVEPOINT contract")
        await caller.error_of(caller.query(_FAILS, zero=0))
        await caller.execute("ROLLBACK TO SAVEPOINT contract")
        error = await caller.error_of(caller.defer())
        must(error is None, f"{what(error)} by a job after an error", error)

    @clause()
    async def test_failed_transaction(self, caller: Caller) -> None:
        """In a transaction that has failed, deferring is a `ConnectorException`."""
        await caller.error_of(caller.execute("SELECT 1 / 0"))
        error = await caller.error_of(caller.defer())
        must(
            isinstance(error, ConnectorException),
            f"{what(error)} instead of ConnectorException",
            error,
        )

    @clause()
    async def test_failed_transaction_is_named(self, caller: Caller) -> None:
        """In a transaction that has failed, deferring is `UnusableConnection`, which says what to do."""
        await caller.error_of(caller.execute("SELECT 1 / 0"))
        error = await caller.error_of(caller.defer())
        must(
            isinstance(error, UnusableConnection),
            f"{what(error)} instead of UnusableConnection",
            error,
        )

    @clause()
    async def test_lost_connection(self, caller: Caller) -> None:
        """On a connection that the server has ended, deferring is a `ConnectorException`, and a second call is, too."""
        await terminate(caller)
        for _ in range(2):
            error = await caller.error_of(caller.defer())
            must(
                isinstance(error, ConnectorException),
                f"{what(error)} instead of ConnectorException",
                error,
            )
        await caller.error_of(caller.rollback())
        await caller.close()

    @clause()
    async def test_rollback_is_the_callers(self, caller: Caller) -> None:
        """An error leaves it to the caller to roll back."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        _take_lock(caller)
        await caller.error_of(caller.defer(new_job(queueing_lock=LOCK)))
        left = 1
        try:
            left = await caller.value("SELECT count(*) FROM orders")
        except Exception:  # noqa: BLE001 - the transaction has failed, and the driver says so
            await caller.rollback()
            left_behind = caller.database.value("SELECT count(*) FROM orders")
            must(left_behind == 0, "the row outlived the rollback: the plugin committed it")
        else:
            must(left == 1, "the plugin rolled the caller's transaction back")
            must(
                False, "the transaction goes on after an error: the plugin rolled a savepoint back"
            )

    @clause()
    async def test_savepoint(self, caller: Caller) -> None:
        """With `external(conn, savepoint=True)` the transaction goes on after a taken lock."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        _take_lock(caller)
        conn = external(caller.conn, savepoint=True)
        error = await caller.error_of(caller.defer(new_job(queueing_lock=LOCK), conn=conn))
        must(
            isinstance(error, AlreadyEnqueued),
            f"{what(error)} instead of AlreadyEnqueued",
            error,
        )
        [job_id] = await caller.defer(new_job(queueing_lock="free"), conn=conn)
        await caller.commit()
        must(caller.database.value("SELECT count(*) FROM orders") == 1, "the row was lost")
        must(caller.database.sees(job_id), "the job after the conflict was lost")

    @clause()
    async def test_on_conflict_existing(self, caller: Caller) -> None:
        """With `external(conn, on_conflict="existing")` a taken lock gives the id of the job that has it."""
        waiting = _take_lock(caller)
        conn = external(caller.conn, on_conflict="existing")
        jobs = [
            new_job({"n": n}, queueing_lock=lock) for n, lock in enumerate([None, LOCK, "free"])
        ]
        first, found, last = await caller.defer(*jobs, conn=conn)
        await caller.commit()
        must(found == waiting, f"the id is {found}, not {waiting}")
        must(caller.database.sees(first), "the job before it was lost")
        must(caller.database.sees(last), "the job after it was lost")


async def _fails_in_secret(caller: Caller, attempt: Awaitable[object]) -> None:
    error = await caller.error_of(attempt)
    must(
        isinstance(error, ConnectorException),
        f"{what(error)} instead of ConnectorException",
        error,
    )
    must(PRIVATE not in f"{error} {error!r}", "the text quotes it")


def _take_lock(caller: Caller) -> int:
    job_id: int = caller.database.value(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, queueing_lock) VALUES ('q', 't', %s) RETURNING id",
        LOCK,
    )
    return job_id
