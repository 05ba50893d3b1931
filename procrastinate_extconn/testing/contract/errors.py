"""What goes wrong comes out, as what it is, and harms no more than it must."""

from __future__ import annotations

from collections.abc import Awaitable

from procrastinate.exceptions import (
    AlreadyEnqueued,
    ConnectorException,
    ProcrastinateException,
    UniqueViolation,
)

from ...exceptions import UnusableConnection
from ...options import external
from .caller import Caller, new_job
from .clause import clause

LOCK = """a (taken) "lock" isn't {free}, \\"""
PRIVATE = "correct horse battery staple"


class ErrorClauses:
    """Taken locks, failed statements, aborted transactions."""

    @clause
    async def test_taken_lock(self, caller: Caller) -> None:
        """A taken queueing lock is `AlreadyEnqueued`, and the error has the lock."""
        _take_lock(caller)
        error = await _error(caller.defer(new_job(queueing_lock=LOCK)))
        assert isinstance(error, AlreadyEnqueued), f"{_what(error)} instead of AlreadyEnqueued"
        cause = error.__cause__
        assert isinstance(cause, UniqueViolation), f"its cause is {_what(cause)}"
        assert cause.queueing_lock == LOCK, f"its lock is {cause.queueing_lock!r}, not {LOCK!r}"

    @clause
    async def test_taken_lock_in_a_batch(self, caller: Caller) -> None:
        """In a batch of jobs with several locks, the error has the one that is taken, or none if nobody told."""
        _take_lock(caller)
        locks = ("free", LOCK, "free too", "taken")
        error = await _error(caller.defer(*(new_job(queueing_lock=lock) for lock in locks)))
        assert isinstance(error, AlreadyEnqueued), f"{_what(error)} instead of AlreadyEnqueued"
        lock = getattr(error.__cause__, "queueing_lock", None)
        assert lock in (LOCK, None), f"its lock is {lock!r}, not {LOCK!r}"

    @clause
    async def test_error_comes_out(self, caller: Caller) -> None:
        """A database error is a `ConnectorException` whose cause is the driver's own error, with its SQLSTATE."""
        error = await _error(caller.query("SELECT 1 / %(zero)s::bigint AS quotient", zero=0))
        assert isinstance(error, ConnectorException), (
            f"{_what(error)} instead of ConnectorException"
        )
        cause = error.__cause__
        assert cause is not None, "it has no cause"
        assert not isinstance(cause, ProcrastinateException), f"its cause is {_what(cause)}"
        if caller.can_tell("sqlstate"):
            assert "22012" in str(error), f"its text has no SQLSTATE: {error}"

    @clause
    async def test_no_secrets(self, caller: Caller) -> None:
        """The error for a job that PostgreSQL cannot store does not quote the job's arguments."""
        error = await _error(caller.defer(new_job({"private": PRIVATE, "nul": "\0"})))
        assert isinstance(error, ConnectorException), (
            f"{_what(error)} instead of ConnectorException"
        )
        assert PRIVATE not in f"{error} {error!r}", "it quotes them"

    @clause
    async def test_aborted_transaction(self, caller: Caller) -> None:
        """In a transaction that has failed, deferring is `UnusableConnection`."""
        await _error(caller.execute("SELECT 1 / 0"))
        error = await _error(caller.defer())
        if caller.can_tell("sqlstate") or caller.can_tell("failed"):
            assert isinstance(error, UnusableConnection), (
                f"{_what(error)} instead of UnusableConnection"
            )
        assert isinstance(error, ConnectorException), (
            f"{_what(error)} instead of ConnectorException"
        )

    @clause
    async def test_rollback_is_the_callers(self, caller: Caller) -> None:
        """An error leaves it to the caller to roll back."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        _take_lock(caller)
        await _error(caller.defer(new_job(queueing_lock=LOCK)))
        try:
            left = await caller.value("SELECT count(*) FROM orders")
        except Exception:  # noqa: BLE001 - the transaction has failed, and the driver says so
            left = 1
        assert left == 1, "the plugin rolled the caller's transaction back"
        await caller.rollback()
        assert caller.database.value("SELECT count(*) FROM orders") == 0, (
            "the row outlived the rollback: the plugin committed it"
        )

    @clause
    async def test_savepoint(self, caller: Caller) -> None:
        """With `external(conn, savepoint=True)` the transaction goes on after a taken lock."""
        await caller.execute("INSERT INTO orders VALUES (1)")
        _take_lock(caller)
        conn = external(caller.conn, savepoint=True)
        error = await _error(caller.defer(new_job(queueing_lock=LOCK), conn=conn))
        assert isinstance(error, AlreadyEnqueued), f"{_what(error)} instead of AlreadyEnqueued"
        [job_id] = await caller.defer(new_job(queueing_lock="free"), conn=conn)
        await caller.commit()
        assert caller.database.value("SELECT count(*) FROM orders") == 1, "the row was lost"
        assert caller.database.sees(job_id), "the job after the conflict was lost"

    @clause
    async def test_on_conflict_existing(self, caller: Caller) -> None:
        """With `external(conn, on_conflict="existing")` a taken lock gives the id of the job that has it."""
        waiting = _take_lock(caller)
        conn = external(caller.conn, on_conflict="existing")
        jobs = [
            new_job({"n": n}, queueing_lock=lock) for n, lock in enumerate([None, LOCK, "free"])
        ]
        first, found, last = await caller.defer(*jobs, conn=conn)
        await caller.commit()
        assert found == waiting, f"the id is {found}, not {waiting}"
        assert caller.database.sees(first), "the job before it was lost"
        assert caller.database.sees(last), "the job after it was lost"


def _take_lock(caller: Caller) -> int:
    job_id: int = caller.database.value(
        "INSERT INTO procrastinate_jobs (queue_name, task_name, queueing_lock) VALUES ('q', 't', %s) RETURNING id",
        LOCK,
    )
    return job_id


async def _error(attempt: Awaitable[object]) -> Exception | None:
    try:
        await attempt
    except Exception as exc:  # noqa: BLE001 - a plugin or its driver may raise anything
        return exc
    return None


def _what(error: BaseException | None) -> str:
    return "nothing was raised" if error is None else f"{type(error).__name__} ({error})"
