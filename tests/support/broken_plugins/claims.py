"""Faults in what is taken and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from procrastinate_extconn.hookspecs import Description, hookimpl

from .base import Cursor, Fault


class IgnoresSubclasses(Fault):
    """Compares the very class."""

    clause = "subclasses"
    why = "a connection of a derived class is refused"

    def is_mine(self, conn: Any) -> bool:
        return conn.__class__ is self.connection


class IgnoresProxies(Fault):
    """Looks at the type, which a proxy cannot change."""

    clause = "proxies"
    why = "a proxy of the connection is refused"

    def is_mine(self, conn: Any) -> bool:
        return issubclass(type(conn), self.connection)


class ClaimsCursors(Fault):
    """Takes a cursor for a connection."""

    clause = "cursors"
    why = "for a cursor, nothing was raised, not UnsupportedConnection"

    def is_mine(self, conn: Any) -> bool:
        return isinstance(conn, (self.connection, Cursor))


class ClaimsDucks(Fault):
    """Goes by what an object can do."""

    clause = "leaves_others_alone"
    why = "execute_on_external takes <"

    @hookimpl
    def execute_on_external(self, conn: Any, query: str, args: Mapping[str, Any]) -> Any:
        if hasattr(conn, "fetchrow"):
            return []
        return super().execute_on_external(conn, query, args)


class ClaimsErrors(Fault):
    """Reads every exception there is."""

    clause = "leaves_others_alone"
    why = "read_external_error"

    @hookimpl
    def read_external_error(self, error: BaseException) -> Any:
        return str(error.args)


class RaisesForOthers(Fault):
    """Takes it for granted that it is asked about its own."""

    clause = "leaves_others_alone"
    why = "describe_external raises for"

    @hookimpl
    def describe_external(self, conn: Any) -> Description | None:
        return super().describe_external(conn) if conn.raw else None


class ClaimsTheClass(Fault):
    """Takes the class of a connection for a connection."""

    clause = "leaves_others_alone"
    why = "describe_external"

    def is_mine(self, conn: Any) -> bool:
        return self.connection in getattr(conn, "__mro__", type(conn).__mro__)

    def describe(self, raw: Any) -> Description:
        if not hasattr(raw, "pgconn"):
            return Description("psycopg", type(self).__name__, False, "unknown")
        return super().describe(raw)


class ClaimsByState(Fault):
    """Leaves a connection that is closed."""

    clause = "claim_is_for_the_class"
    why = "the connection is left to other plugins once it is closed"

    def is_mine(self, conn: Any) -> bool:
        return super().is_mine(conn) and not conn.raw.closed


class NamesKindsOfOthers(Fault):
    """Names kinds that belong to another plugin."""

    clause = "external_kinds"
    why = "none of the kinds that it names has the plugin"

    @hookimpl
    def external_kinds(self) -> Any:
        return [self.kind()._replace(plugin="nobody")]
