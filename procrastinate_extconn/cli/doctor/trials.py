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


class StillThere(Exception):
    """A job has outlived the transaction that it was deferred in."""


class Failure(NamedTuple):
    """What a driver failed with, and what to do."""

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
        failures: dict[Failure, list[str]] = {}
        for kind in kinds:
            failure = self._try(kind)
            if failure:
                failures.setdefault(failure, []).append(kind.id)
            tried()
        good = len(kinds) - sum(map(len, failures.values()))
        text = f"{good} of {len(kinds)} kinds of connection deferred a job and rolled it back"
        return [
            Finding("drivers", "ok" if good else "problem", text, None if good else "see below"),
            *(
                Finding(
                    "drivers", failure.status, f"{', '.join(names)}: {failure.reason}", failure.fix
                )
                for failure, names in failures.items()
            ),
        ]

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
        except Exception as exc:  # noqa: BLE001 - whatever a driver raises is told, and the others go on
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
                "hint",
                "prepared statements, which these use by default, do not work through this pooler",
                "make sure that your app connects without: statement_cache_size=0 for asyncpg, and with SQLAlchemy "
                "prepared_statement_cache_size=0 besides; or set PgBouncer's max_prepared_statements (1.21 on)",
            )
        if isinstance(exc, ImportError):
            return Failure("problem", reason, "install it again: pip install --force-reinstall ...")
        if sqlstate == "42501":
            fix = (
                "GRANT USAGE ON SCHEMA ..., and SELECT, INSERT, UPDATE, DELETE ON procrastinate_jobs, "
                "procrastinate_events and their sequences, to this role"
            )
        elif sqlstate == "55P03":
            fix = "see in pg_locks who holds procrastinate_jobs: a migration, or a transaction that was forgotten"
        elif not is_open:
            fix = "see what this driver needs to connect where psycopg can: TLS, say, or a host, not a socket"
        else:
            fix = 'see "When something goes wrong" in the documentation, or report it'
        return Failure("problem", reason, fix)

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
