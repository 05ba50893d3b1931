"""Faults of kinds that nobody had thought of when the clauses were written first."""

from __future__ import annotations

import contextlib
import decimal
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Generator
from typing import Any, ClassVar

import psycopg
from procrastinate.exceptions import AlreadyEnqueued

from .base import Fault, Pool
from .pools import AsyncPoolFault, PoolFault


class LogsArguments(Fault):
    """Logs each statement with what it binds."""

    clause = "tells_nobody"
    why = "it tells them: executing"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        logging.getLogger("mydriver").info("executing %s with %s", query[:20], args)
        return super().execute(raw, query, args)


class LogsArgumentsOfErrors(Fault):
    """Does so where a statement fails."""

    clause = "tells_nobody"
    why = "it tells them: failed"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        try:
            return super().execute(raw, query, args)
        except psycopg.Error:
            logging.getLogger("mydriver").error("failed: %s", args)
            raise


class PrintsArguments(Fault):
    """Prints them, left over from a debugging session."""

    clause = "tells_nobody"
    why = "it tells them: {"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        print(args, file=sys.stderr)  # noqa: T201
        return super().execute(raw, query, args)


class SetsTheEnvironment(Fault):
    """Sets libpq's time zone for the process."""

    clause = "process_stays"
    why = "it changes the environment"
    count: ClassVar[int] = 0

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        type(self).count += 1
        os.environ["EXTCONN_COUNT"] = str(self.count)
        return super().execute(raw, query, args)


class SetsPrecision(Fault):
    """Sets the precision of decimals."""

    clause = "process_stays"
    why = "it changes the decimal context"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        decimal.getcontext().prec += 1
        return super().execute(raw, query, args)


class SilencesWarnings(Fault):
    """Silences warnings for good."""

    clause = "process_stays"
    why = "it changes the filters of warnings"
    count: ClassVar[int] = 0

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        type(self).count += 1
        warnings.filterwarnings("ignore", f"mydriver {self.count}")
        return super().execute(raw, query, args)


class LeavesThreads(Fault):
    """Runs each statement in a thread that then waits for more."""

    clause = "opens_nothing"
    why = "after 3 calls, there are 3 more threads"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        threading.Thread(target=threading.Event().wait, args=[20], daemon=True).start()
        return super().execute(raw, query, args)


class LeavesSessions(Fault):
    """Opens a second connection to look at the first, and keeps it."""

    clause = "opens_nothing"
    why = "after 3 calls, there are 3 more connections"
    kept: ClassVar[list[Any]] = []

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        dsn = psycopg.conninfo.make_conninfo(raw.info.dsn, password=raw.info.password)
        self.kept.append(psycopg.connect(dsn))
        return super().execute(raw, query, args)


class ConfusesNames(Fault):
    """Replaces names by position, the short ones first."""

    clause = "placeholders"
    why = ""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        query = re.sub(r"%\((\w+)\)s", r":\1", query)
        for name in sorted(args, key=len):
            query = query.replace(f":{name}", f"%({name})s")
        return super().execute(raw, query, args)


class IgnoresCase(Fault):
    """Keeps arguments under lower names."""

    clause = "placeholders"
    why = "it gives"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        lowered = {name.lower(): value for name, value in args.items()}
        query = re.sub(r"%\((\w+)\)s", lambda match: match[0].lower(), query)
        return super().execute(raw, query, lowered)


class BindsInOrder(Fault):
    """Binds arguments in their own order, once."""

    clause = "placeholders"
    why = ""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        found = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
        if len(found) == len(args) and len(args) > 9:
            args = dict(zip(found, args.values(), strict=True))
        return super().execute(raw, query, args)


class ReplacesSurrogates(Fault):
    """Replaces what cannot be encoded."""

    clause = "half_characters"
    why = "nothing was raised instead of ConnectorException"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        for name, value in args.items():
            if isinstance(value, str):
                args[name] = value.encode("utf-8", "replace").decode()
        return super().execute(raw, query, args)


class SplitsStatements(Fault):
    """Takes a semicolon for the end."""

    clause = "values_come_back"
    why = ""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query.partition(";")[0], args)


class CollapsesSpaces(Fault):
    """Brings a query into one line."""

    clause = "values_come_back"
    why = "literal came back as ':name $1 ? {} ; -- /* %s'"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, " ".join(query.split()), args)


class CutsComments(Fault):
    """Removes comments, also where there are none."""

    clause = "values_come_back"
    why = ""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, re.sub(r"--.*", "", query), args)


class KnowsQueriesByTheirBeginning(Fault):
    """Keeps a translated query under its first characters."""

    clause = "percent_signs"
    why = ""
    kept: ClassVar[dict[str, str]] = {}

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, self.kept.setdefault(query[:25], query), args)


class LocksOut(Fault):
    """Takes turns by a lock that an error leaves locked."""

    clause = "next_call_after_an_error"
    why = "TimeoutError"
    lock: ClassVar[threading.Lock] = threading.Lock()

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if not self.lock.acquire(timeout=1):
            raise TimeoutError("locked")
        rows = super().execute(raw, query, args)
        self.lock.release()
        return rows


class TranslatesItself(Fault):
    """Raises Procrastinate's own error, without the lock."""

    clause = "taken_lock"
    why = "its cause is"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        try:
            return super().execute(raw, query, args)
        except psycopg.errors.UniqueViolation as exc:
            raise AlreadyEnqueued("taken") from exc


class SerializesIdleTransactions(Fault):
    """Raises the isolation level of a transaction that its statement opens."""

    clause = "session_stays_on_an_idle_connection"
    why = "transaction_isolation = serializable"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        if raw.info.transaction_status == 0:
            raw.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        return super().execute(raw, query, args)


class ForbidsWrites(Fault):
    """Protects the caller from a query that should only read."""

    clause = "session_stays"
    why = "transaction_read_only = on"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        rows = super().execute(raw, query, args)
        if "AS one" in query:
            raw.execute("SET TRANSACTION READ ONLY")
        return rows


class GivesRowsOnce(Fault):
    """Gives rows as an iterator."""

    clause = "rows_are_dicts"
    why = "returned"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return iter(super().execute(raw, query, args))


class MovesTheSearchPath(Fault):
    """Sets where Procrastinate's tables are."""

    clause = "session_stays"
    why = "search_path = public"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        raw.execute("SET search_path = public")
        return super().execute(raw, query, args)


class CutsMegabytes(Fault):
    """Gives a megabyte of each text."""

    clause = "all_rows"
    why = "of 2,000,003 characters, 1000000 are"

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return [
            {name: v[:1_000_000] if isinstance(v, str) else v for name, v in row.items()}
            for row in super().execute(raw, query, args)
        ]


class LendsTheSame(PoolFault):
    """Lends one connection to all."""

    clause = "pool_lends_each_its_own"
    why = "both blocks have the same connection"
    lent: ClassVar[list[Any]] = []

    @contextlib.contextmanager
    def lend(self, pool: Pool) -> Generator[Any]:
        if self.lent:
            yield self.lent[0]
            return
        with super().lend(pool) as conn:
            self.lent.append(conn)
            try:
                yield conn
            finally:
                self.lent.clear()


class RepeatsNotifications(AsyncPoolFault):
    """Gives a notification once more where another one is due."""

    clause = "pool_listens"
    why = "a notification comes twice"

    async def notifications(self, raw: Any) -> AsyncIterator[tuple[str, str]]:
        last: tuple[str, str] | None = None
        async for one in super().notifications(raw):
            if one[1] == "once" and last:
                yield last
            yield one
            last = one


class KeepsListenersOnError(AsyncPoolFault):
    """Gives the connection back on a clean exit alone."""

    clause = "listener_is_tidied_up"
    why = "PoolTimeout"
    kept: ClassVar[list[Any]] = []

    @contextlib.asynccontextmanager
    async def listen(self, pool: Pool, channels: Any) -> Any:
        manager = super().listen(pool, channels)
        self.kept.append(manager)
        yield await manager.__aenter__()
        await manager.__aexit__(None, None, None)
