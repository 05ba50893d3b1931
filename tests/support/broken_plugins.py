"""Plugins that break the contract, each in its own way, for connections that each wrap one of psycopg's."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, ClassVar

import psycopg

from procrastinate_extconn.builtin import psycopg as right
from procrastinate_extconn.hookspecs import Description, Rows, hookimpl
from procrastinate_extconn.testing import Held, Kind, PluginContract


class Connection:
    """What a driver of nobody's makes."""

    def __init__(self, raw: psycopg.Connection[Any]) -> None:
        self.raw = raw


class KeepsIt:
    """A plugin that is right, whose subclasses go wrong."""

    connection: ClassVar[type[Connection]]
    plugin: ClassVar[KeepsIt]

    def __init_subclass__(cls) -> None:
        cls.connection = type("Connection", (Connection,), {})
        cls.plugin = cls()

    @hookimpl
    def describe_external(self, conn: Any) -> Description | None:
        return self.describe(conn.raw) if isinstance(conn, self.connection) else None

    @hookimpl
    def execute_on_external(self, conn: Any, query: str, args: Mapping[str, Any]) -> Rows | None:
        return (
            self.execute(conn.raw, query, dict(args)) if isinstance(conn, self.connection) else None
        )

    def describe(self, raw: Any) -> Description:
        return right.describe_external(raw)._replace(plugin=type(self).__name__)

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        return right.execute_on_external(raw, query, args)


class Right(KeepsIt):
    """Shows that it is not the harness that fails."""


class Commits(KeepsIt):
    """Commits what it has sent."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        rows = super().execute(raw, query, args)
        raw.commit()
        return rows


class RollsBack(KeepsIt):
    """Tidies up after an error, and the caller's rows away."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        try:
            return super().execute(raw, query, args)
        except psycopg.Error:
            raw.rollback()
            raise


class Closes(KeepsIt):
    """Takes the connection for its own."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        rows = super().execute(raw, query, args)
        raw.close()
        return rows


class Swallows(KeepsIt):
    """Makes no rows of an error."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        try:
            return super().execute(raw, query, args)
        except psycopg.Error:
            return []


class RunsElsewhere(KeepsIt):
    """Opens a connection of its own."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        dsn = psycopg.conninfo.make_conninfo(raw.info.dsn, password=raw.info.password)
        with psycopg.connect(dsn, autocommit=True) as other:
            return super().execute(other, query, args)


class JsonAsText(KeepsIt):
    """Encodes JSON a second time, as a codec for jsonb does."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        if "jobs" in args:
            jobs = [{**job, "args": json.dumps(job["args"])} for job in json.loads(args["jobs"])]
            args["jobs"] = json.dumps(jobs)
        return super().execute(raw, query, args)


class LosesDigits(KeepsIt):
    """Reads what it should pass on, and makes floats of large numbers."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        if "jobs" in args:
            jobs = json.loads(args["jobs"], parse_int=lambda n: float(n) if len(n) > 15 else int(n))
            args["jobs"] = json.dumps(jobs)
        return super().execute(raw, query, args)


class Reorders(KeepsIt):
    """Gives rows in an order of its own."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        return super().execute(raw, query, args)[::-1]


class ForgetsZones(KeepsIt):
    """Gives instants without a time zone."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        rows = super().execute(raw, query, args)
        for row in rows:
            if row.get("scheduled_at"):
                row["scheduled_at"] = row["scheduled_at"].replace(tzinfo=None)
        return rows


class NoRowsIsNone(KeepsIt):
    """Says "not mine" where there are no rows."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Any:
        return super().execute(raw, query, args) or None


class Meddles(KeepsIt):
    """Sets what it would rather have."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        raw.execute("SET datestyle = 'German'")
        return super().execute(raw, query, args)


class IsAsync(KeepsIt):
    """Is an ``async def``, whose coroutine would claim every connection."""

    @hookimpl
    async def execute_on_external(
        self, conn: Any, query: str, args: Mapping[str, Any]
    ) -> Rows | None:
        return super().execute_on_external(conn, query, args)


class LeavesUnawaited(KeepsIt):
    """Starts something that it does not wait for."""

    def execute(self, raw: Any, query: str, args: dict[str, Any]) -> Rows:
        self.log()
        return super().execute(raw, query, args)

    async def log(self) -> None:
        """Never runs."""


class ClaimsAll(KeepsIt):
    """Goes by what an object can do."""

    @hookimpl
    def execute_on_external(self, conn: Any, query: str, args: Mapping[str, Any]) -> Rows | None:
        if hasattr(conn, "fetchrow"):
            return []
        return super().execute_on_external(conn, query, args)


class Lies(KeepsIt):
    """Always says that there is a transaction."""

    def describe(self, raw: Any) -> Description:
        return super().describe(raw)._replace(state="in_transaction")


class Asks(KeepsIt):
    """Asks the server for the state."""

    def describe(self, raw: Any) -> Description:
        raw.execute("SELECT 1")
        return super().describe(raw)


class Blind(KeepsIt):
    """Does not describe."""

    describe_external = None


PLUGINS = KeepsIt.__subclasses__()


@contextmanager
def _open(dsn: str, connection: type[Connection]) -> Generator[Held]:
    with closing(psycopg.connect(dsn)) as raw:

        def execute(sql: str) -> list[tuple[Any, ...]]:
            cursor = raw.execute(sql)
            return cursor.fetchall() if cursor.description else []

        yield Held(connection(raw), execute, raw.commit, raw.rollback)


class TestBroken(PluginContract):
    """All of them."""

    kinds = tuple(
        Kind(one.__name__, one.__name__, (), False, partial(_open, connection=one.connection))
        for one in PLUGINS
    )
