"""Faults with errors."""

from __future__ import annotations

from typing import Any

import psycopg

from procrastinate_extconn.hookspecs import Diagnostic, hookimpl

from .base import Fault


class OnError(Fault):
    """Does something about an error before it lets it out."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        try:
            return super().execute(raw, query, args)
        except psycopg.Error as exc:
            return self.failed(raw, exc, args)

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        """Do it."""
        raise exc


class RollsBack(OnError):
    """Tidies up after an error, and the caller's rows away."""

    clause = "rollback_is_the_callers"
    why = "the plugin rolled the caller's transaction back"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        raw.rollback()
        raise exc


class CommitsOnError(OnError):
    """Ends the transaction after an error, in the other way."""

    clause = "rollback_is_the_callers"
    why = "the plugin"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        raw.commit()
        raise exc


class ClosesOnError(OnError):
    """Closes what has failed."""

    clause = "rollback_is_the_callers"
    why = "the connection is closed"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        raw.close()
        raise exc


class SavepointOnEachCall(Fault):
    """Rolls each failed statement back to a savepoint of its own."""

    clause = "rollback_is_the_callers"
    why = "the plugin rolled a savepoint back"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        with raw.transaction():
            return super().execute(raw, query, args)


class Swallows(OnError):
    """Makes no rows of an error."""

    clause = "error_comes_out"
    why = "nothing was raised instead of ConnectorException"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        return []


class SwallowsTakenLocks(OnError):
    """Makes no rows of a unique violation alone."""

    clause = "taken_lock"
    why = "instead of AlreadyEnqueued"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        if isinstance(exc, psycopg.errors.UniqueViolation):
            return []
        raise exc


class HidesTheDriversError(OnError):
    """Raises an error of its own from nothing."""

    clause = "error_is_the_drivers"
    why = "its cause is a RuntimeError, where the driver raises DivisionByZero"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        raise RuntimeError("ERROR: " + str(exc)) from None


class HidesTheSqlstate(OnError):
    """Says nothing but that something went wrong."""

    clause = "sqlstate"
    why = "the text has no SQLSTATE"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        raise RuntimeError("something went wrong") from None


class TellsSecrets(OnError):
    """Raises one of Procrastinate's errors with what was sent."""

    clause = "no_secrets"
    why = "the text quotes it"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        from procrastinate.exceptions import ConnectorException

        raise ConnectorException(f"{exc} ({args})") from exc


class TakesEachConstraintForTheLock(OnError):
    """Reads each unique violation as a taken lock."""

    clause = "other_unique_violation"
    why = "it is taken for a taken queueing lock"

    @hookimpl
    def read_external_error(self, error: BaseException) -> Any:
        if not isinstance(error, psycopg.errors.UniqueViolation):
            return None
        constraint = "procrastinate_jobs_queueing_lock_idx_v1"
        return Diagnostic("23505", "duplicate key", "", constraint)


class ReadsNoErrors(OnError):
    """Has a hook that reads nothing."""

    clause = "read_external_error"
    why = "it knows none of the errors of its driver"

    @hookimpl
    def read_external_error(self, error: BaseException) -> Any:
        return None


class ReadsErrorsInBytes(OnError):
    """Reads what came over the wire."""

    clause = "read_external_error"
    why = "where a text or None is due"

    @hookimpl
    def read_external_error(self, error: BaseException) -> Any:
        return Diagnostic(b"23505", b"duplicate") if isinstance(error, psycopg.Error) else None  # type: ignore[arg-type]


class TriesTwice(OnError):
    """Tries a statement that failed a second time."""

    clause = "error_is_the_drivers"
    why = "its cause is a InFailedSqlTransaction"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        return Fault.execute(self, raw, "SELECT 1 / 0 AS quotient", {})


class Reconnects(OnError):
    """Opens another connection where the first is lost."""

    clause = "lost_connection"
    why = "nothing was raised instead of ConnectorException"

    def failed(self, raw: Any, exc: psycopg.Error, args: dict[str, Any]) -> Any:
        if not isinstance(exc, psycopg.OperationalError):
            raise exc
        return [{"id": 1}]


class ReadsTheWrongLock(Fault):
    """Reads the first lock of a batch from the error, whichever was taken."""

    clause = "taken_lock_in_a_batch"
    why = "its lock is 'free'"

    @hookimpl
    def read_external_error(self, error: BaseException) -> Any:
        if not isinstance(error, psycopg.errors.UniqueViolation):
            return None
        constraint = "procrastinate_jobs_queueing_lock_idx_v1"
        return Diagnostic("23505", "duplicate key", "Key (queueing_lock)=(free)", constraint)


class ReadsNoLocks(Fault):
    """Refuses what asks for the holder of a lock."""

    clause = "on_conflict_existing"
    why = "NotImplementedError"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if "queueing_lock" in query:
            raise NotImplementedError
        return super().execute(raw, query, args)


class TellsValues(TellsSecrets):
    """Does so for plain values."""

    clause = "no_secrets_of_values"
