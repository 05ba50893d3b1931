"""The doctor on the drivers: on each kind of connection a job is deferred, in a transaction that is rolled back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import procrastinate
import psycopg

from ... import patching
from ...diagnosis import read
from ...kinds import Held, Kind, done, run
from ...plugins import describe
from ..server_address import ServerAddress
from .findings import Finding, Status

_PREPARED_STATEMENT = ("26000", "42P05")
"""The SQLSTATEs of a prepared statement that is not there, or is there already."""


_MISSING = """
    SELECT privilege || ' ON ' || name
    FROM (VALUES ('procrastinate_jobs', 'SELECT'), ('procrastinate_jobs', 'INSERT'), ('procrastinate_events', 'INSERT'))
        AS needed (name, privilege)
    WHERE NOT has_table_privilege(name, privilege)
    UNION ALL
    SELECT 'USAGE ON SEQUENCE ' || name
    FROM (VALUES ('procrastinate_jobs_id_seq'), ('procrastinate_events_id_seq')) AS needed (name)
    WHERE NOT has_sequence_privilege(name, 'USAGE')
    UNION ALL
    SELECT 'EXECUTE ON FUNCTION ' || oid::regprocedure
    FROM pg_proc
    WHERE proname ~ '^procrastinate_' AND pg_function_is_visible(oid) AND NOT has_function_privilege(oid, 'EXECUTE')
"""
"""The privileges that deferring needs and this role lacks, as GRANT names them."""


class StillThere(Exception):
    """A job has outlived the transaction that it was deferred in."""


class Failure(NamedTuple):
    """What a driver failed with, and what to do."""

    cause: str
    """What drivers with the same cause have in common: what the server said, or else the reason."""
    status: Status
    reason: str
    fix: str


class Trials:
    """Defers jobs and rolls them back.

    :param address: the server, where everything else is in order.
    :param is_pooled: whether a pooler answers for it.
    """

    def __init__(self, address: ServerAddress, *, is_pooled: bool) -> None:
        self._address = address
        self._is_pooled = is_pooled
        self._left_to_themselves: list[str] = []
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=address.dsn))
        # Whether there is a transaction is seen by its rollback.
        self._app = patching.patch(app, outside_transaction="allow")

    def findings(self, kinds: list[Kind], tried: Callable[[], None]) -> list[Finding]:
        """Which kinds of connection can defer.

        :param tried: called after each.
        """
        failures: dict[str, tuple[Failure, list[str]]] = {}
        for kind in kinds:
            failure = self._try(kind)
            if failure:
                failures.setdefault(failure.cause, (failure, []))[1].append(kind.id)
            tried()
        good = len(kinds) - sum(len(names) for _, names in failures.values())
        text = f"{good} of {len(kinds)} kinds of connection deferred a job and rolled it back"
        found = [Finding("drivers", "ok" if good else "skipped", text)]
        for failure, names in failures.values():
            shown = ", ".join(names) if len(names) < len(kinds) else "every kind of connection"
            found.append(
                Finding("drivers", failure.status, f"{shown}: {failure.reason}", failure.fix)
            )
        return found

    def _try(self, kind: Kind) -> Failure | None:
        is_open = False

        async def defer(held: Held) -> int:
            nonlocal is_open
            is_open = True
            # A migration that holds a lock, say, is no reason to wait for ever.
            await done(held.execute("SET LOCAL lock_timeout = '5s'"))
            task = self._app.configure_task("procrastinate_extconn.doctor", connection=held.conn)
            job_id = await task.defer_async() if kind.is_async else task.defer()
            await done(held.rollback())
            if describe(held.conn).state in ("autocommit", "unknown"):
                self._left_to_themselves.append(kind.id)
            return job_id

        try:
            job_id = run(kind, self._address.dsn, defer)
            self._expect_nothing(job_id)
        except Exception as exc:  # noqa: BLE001 - every error of a driver is shown, and the others go on
            return self._explain(exc, kind, is_open=is_open)
        return None

    def _expect_nothing(self, job_id: int) -> None:
        with psycopg.connect(self._address.dsn, prepare_threshold=None) as conn:
            if conn.execute("SELECT FROM procrastinate_jobs WHERE id = %s", [job_id]).fetchone():
                raise StillThere(f"job {job_id} is there although its transaction was rolled back")

    def _explain(self, exc: Exception, kind: Kind, *, is_open: bool) -> Failure:
        reason = " ".join(self._address.harmless(f"{type(exc).__name__}: {exc}").split())
        _, said = read(exc)
        sqlstate = said.sqlstate
        if self._is_pooled and (sqlstate in _PREPARED_STATEMENT or "prepared statement" in reason):
            return Failure(
                "prepared statements",
                "hint",
                "prepared statements, which these use by default, do not work through this pooler",
                "make sure that your app connects without: statement_cache_size=0 for asyncpg, and with SQLAlchemy "
                "prepared_statement_cache_size=0 besides; or set PgBouncer's max_prepared_statements (1.21 on)",
            )
        if isinstance(exc, ImportError):
            return Failure(
                reason, "problem", reason, "install it again: pip install --force-reinstall ..."
            )
        if sqlstate == "42501":
            fix = self._missing_grants()
        elif sqlstate == "55P03":
            fix = "see in pg_locks who holds procrastinate_jobs: a migration, or a transaction that was forgotten"
        elif not is_open:
            fix = "see what this driver needs to connect where psycopg can: TLS, say, or a host, not a socket"
        else:
            fix = 'see "When something goes wrong" in the documentation, or report it'
        return Failure(said.message or sqlstate or reason, "problem", reason, fix)

    def _missing_grants(self) -> str:
        with psycopg.connect(self._address.dsn, prepare_threshold=None) as conn:
            missing = conn.execute(_MISSING).fetchall()
            grants = [f"GRANT {privilege} TO {conn.info.user}" for (privilege,) in missing]
        return "; ".join(grants) or (
            "this role has the privileges on Procrastinate's tables: see what else is in the way, such as a trigger or "
            "row-level security"
        )

    def autocommit(self) -> Iterator[Finding]:
        """Which kinds of connection commit each statement by itself, once their transaction has ended."""
        if self._left_to_themselves:
            yield Finding(
                "autocommit",
                "hint",
                f"{', '.join(self._left_to_themselves)}: outside a transaction, these connections commit each "
                "statement by itself",
                'defer inside one; install(outside_transaction="error") refuses it elsewhere',
            )
