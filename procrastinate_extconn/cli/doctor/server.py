"""The doctor on the server: whether it is reached, takes writes, and has Procrastinate's schema."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from procrastinate import sql
from procrastinate.schema import SchemaManager

from ..server_address import ServerAddress
from .findings import Finding

if TYPE_CHECKING:
    from typing_extensions import LiteralString

_OLDEST = 13


def unreachable(exc: psycopg.Error, address: ServerAddress) -> Finding:
    """Why there is no connection."""
    reason = " ".join(address.harmless(str(exc)).split())
    pgconn = exc.pgconn if isinstance(exc, psycopg.OperationalError) else None
    if "startup parameter" in reason:
        fix = (
            "a pooler refuses what the DSN or PGOPTIONS sets: take it out there, or name it in PgBouncer's "
            "ignore_startup_parameters"
        )
    elif pgconn is not None and pgconn.needs_password:
        fix = "give a password: PGPASSWORD, or a password file"
    elif f'database "{address.get("dbname")}" does not exist' in reason:
        fix = "name the database that your app uses: --dsn, or PGDATABASE; createdb makes a new one"
    elif pgconn is not None and pgconn.used_password:
        fix = "check user, password and database: PGUSER, PGPASSWORD, PGDATABASE, the password file, or --dsn"
    else:
        fix = "see that the server runs and is reached there: --dsn, or PGHOST, PGPORT, PGDATABASE and PGUSER"
    return Finding("server", "problem", f"no connection to {address}: {reason}", fix)


class Server:
    """A server, by what it says of itself.

    :param conn: a connection that commits each statement.
    """

    def __init__(self, conn: psycopg.Connection[Any], address: ServerAddress) -> None:
        self._conn = conn
        self._address = address

    def findings(self) -> Iterator[Finding]:
        """Everything about it."""
        yield self._version()
        yield self._access()
        yield self._search_path()
        yield self._schema()

    def _version(self) -> Finding:
        text = f"PostgreSQL {self._setting('server_version')}: {self._address}"
        if self._conn.info.server_version < _OLDEST * 10_000:
            fix = f"upgrade it: Procrastinate needs PostgreSQL {_OLDEST} or newer"
            return Finding("server", "problem", text, fix)
        return Finding("server", "ok", text)

    def _access(self) -> Finding:
        if self._one("SELECT pg_is_in_recovery()"):
            return Finding(
                "access",
                "problem",
                "the server is a standby, which takes no writes",
                "connect to the primary; with every host in the DSN, target_session_attrs=read-write finds it",
            )
        if self._setting("transaction_read_only") == "on":
            name = "default_transaction_read_only"
            source = self._one("SELECT source FROM pg_settings WHERE name = %s", name)
            return Finding(
                "access",
                "problem",
                f"transactions are read-only: {name} is on, by {source}",
                "turn it off there: ALTER ROLE or ALTER DATABASE, postgresql.conf, or the DSN's options",
            )
        return Finding("access", "ok", "transactions may write")

    def _search_path(self) -> Finding:
        path = self._setting("search_path")
        if not self._one("SELECT current_schemas(false)"):
            return Finding(
                "search_path",
                "problem",
                f"{path}: there is no such schema, or none that this role may use",
                "ALTER ROLE ... SET search_path = ..., or GRANT USAGE ON SCHEMA ... TO ...",
            )
        return Finding("search_path", "ok", path)

    def _schema(self) -> Finding:
        needed, known = _names()
        found = {
            name
            for (name,) in self._conn.execute(
                "SELECT typname FROM pg_type WHERE typname ~ '^procrastinate_' AND pg_type_is_visible(oid) "
                "UNION SELECT proname FROM pg_proc WHERE proname ~ '^procrastinate_' AND pg_function_is_visible(oid)"
            )
        }
        if "procrastinate_jobs" not in found:
            return self._no_schema()
        missing = sorted(needed - found)
        if missing:
            text = f"another version than this Procrastinate needs: it lacks {', '.join(missing)}"
            if found - known:
                fix = f"upgrade Procrastinate: the schema is newer, it has {', '.join(sorted(found - known))}"
            else:
                fix = f"apply Procrastinate's migrations, from {_first_migration(missing)} on"
            return Finding("schema", "problem", text, fix)
        where = self._one(
            "SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'procrastinate_jobs'::regclass"
        )
        return Finding("schema", "ok", f"complete, in {where}")

    def _no_schema(self) -> Finding:
        elsewhere = self._one(
            "SELECT relnamespace::regnamespace FROM pg_class "
            "WHERE relname = 'procrastinate_jobs' AND relkind IN ('r', 'p') LIMIT 1"
        )
        if elsewhere:
            return Finding(
                "schema",
                "problem",
                f"Procrastinate's is in {elsewhere}, which is not on the search_path",
                f"ALTER ROLE ... SET search_path = {elsewhere}, or options=-csearch_path={elsewhere} in the DSN",
            )
        return Finding(
            "schema",
            "problem",
            "Procrastinate's is not in this database",
            "if this is the database it should be in: procrastinate --app=... schema --apply",
        )

    def _setting(self, name: str) -> str:
        return str(self._one("SELECT current_setting(%s)", name))

    def _one(self, query: LiteralString, *args: str) -> Any:
        row = self._conn.execute(query, args or None).fetchone()
        return row[0] if row else None


def _names() -> tuple[set[str], set[str]]:
    """The types, tables and functions that this Procrastinate's queries need, and all names it has ever used."""
    schema = SchemaManager.get_schema()
    created = set(re.findall(r"CREATE (?:TYPE|TABLE|FUNCTION) (procrastinate_\w+)", schema))
    used = set(re.findall(r"procrastinate_\w+", " ".join(sql.queries.values())))
    history = " ".join(path.read_text() for path in _migrations())
    return created & used, created | set(re.findall(r"procrastinate_\w+", history))


def _first_migration(names: list[str]) -> str:
    creates = re.compile(rf"CREATE (?:TYPE|TABLE|FUNCTION) (?:{'|'.join(names)})\b")
    found = [path.name for path in _migrations() if creates.search(path.read_text())]
    return found[0] if found else "the first"


def _migrations() -> list[Path]:
    return sorted(Path(SchemaManager.get_migrations_path()).glob("*.sql"))
