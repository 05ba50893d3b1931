"""The tables: the outbox and the marks of `once` beside your rows, and the inbox beside Procrastinate's jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CHAR, BigInteger, Column, DateTime, MetaData, String, Table, Text, func
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.functions import FunctionElement

from .names import INBOX, MARKS, OUTBOX, split

DIALECTS = ("postgresql", "sqlite", "mysql", "mariadb")
"""The databases that the tables are tested on."""


class Tables:
    """The tables in the database of your rows, as SQLAlchemy's, for Alembic and for ``metadata.create_all()``.

    :param metadata: where the tables are to be added, such as ``Base.metadata``; a new one if None.
    :param table: the outbox's name, as `Outbox` takes it.
    """

    def __init__(self, metadata: MetaData | None = None, *, table: str = OUTBOX) -> None:
        self.metadata: MetaData = MetaData() if metadata is None else metadata
        self.outbox: Table = _outbox(self.metadata, table)
        self.marks: Table = _marks(self.metadata)

    def ddl(self, dialect: str) -> list[str]:
        """The statements that create the tables.

        :param dialect: SQLAlchemy's name for the database: ``"postgresql"``, ``"sqlite"``, ``"mysql"``, ``"mariadb"``.
        :raises ValueError: for a name that SQLAlchemy does not know.
        """
        return [_create(table, dialect) for table in (self.outbox, self.marks)]


def inbox(metadata: MetaData | None = None) -> Table:
    """The table beside Procrastinate's jobs: which rows were forwarded, and may not be deleted yet.

    It names no outbox, so that no name or address of one has to be right. An id is a UUID.
    """
    return Table(
        INBOX,
        MetaData() if metadata is None else metadata,
        Column("id", CHAR(36), primary_key=True),
        Column("forwarded_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    )


def inbox_ddl() -> list[str]:
    """The statements that create the inbox."""
    return [_create(inbox(), "postgresql")]


class UtcNow(FunctionElement[datetime]):
    """The server's time, in UTC and without a time zone."""

    type = DateTime()
    inherit_cache = True


_UTC_NOW = {
    "postgresql": "(now() AT TIME ZONE 'UTC')",
    "sqlite": "CURRENT_TIMESTAMP",
    "mysql": "(UTC_TIMESTAMP(6))",
    "mariadb": "(UTC_TIMESTAMP(6))",
    "oracle": "SYS_EXTRACT_UTC(SYSTIMESTAMP)",
    "mssql": "SYSUTCDATETIME()",
}


@compiles(UtcNow)
def _utc_now(element: UtcNow, compiler: Any, **how: Any) -> str:
    return _UTC_NOW.get(compiler.dialect.name, "CURRENT_TIMESTAMP")


# Another engine might not roll back, and another character set might lose characters.
_MYSQL: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_LONG_TEXT = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_INSTANT = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def _outbox(metadata: MetaData, table: str) -> Table:
    schema, name = split(table)
    return Table(
        name,
        metadata,
        # A UUID that is made before the INSERT. The order of ids is no order of commits.
        Column("id", CHAR(36), primary_key=True),
        # One call: the array of jobs that Procrastinate's own function takes, as JSON.
        Column("jobs", _LONG_TEXT, nullable=False),
        Column("created_at", _INSTANT, nullable=False, server_default=UtcNow()),
        # Why the relay could not forward this row; NULL while it waits.
        Column("set_aside", _LONG_TEXT),
        schema=schema,
        **_MYSQL,
    )


def _marks(metadata: MetaData) -> Table:
    return Table(
        MARKS,
        metadata,
        Column("namespace", String(191), primary_key=True),
        Column("job_id", BigInteger, primary_key=True, autoincrement=False),
        Column("digest", CHAR(64), primary_key=True),
        Column("created_at", _INSTANT, nullable=False, server_default=UtcNow()),
        **_MYSQL,
    )


def _create(table: Table, dialect: str) -> str:
    try:
        chosen = make_url(f"{dialect}://").get_dialect()()
    except (ArgumentError, NoSuchModuleError) as exc:
        raise ValueError(
            f"SQLAlchemy knows no dialect {dialect!r}: try one of {', '.join(DIALECTS)}"
        ) from exc
    lines = str(CreateTable(table).compile(dialect=chosen)).expandtabs(4).strip().splitlines()
    return "\n".join(line.rstrip() for line in lines)
