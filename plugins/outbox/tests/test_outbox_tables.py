"""The tables: as the command prints them, and as Alembic makes them from SQLAlchemy's `Table`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
from click.testing import CliRunner
from procrastinate_extconn_outbox import Outbox, Tables
from procrastinate_extconn_outbox.cli import main
from sqlalchemy import URL, MetaData, create_engine, text


def printed(*args: str) -> list[str]:
    """Run the command, and take its statements apart."""
    result = CliRunner().invoke(main, ["tables", *args])
    assert result.exit_code == 0, result.output
    return [statement for statement in result.output.split(";\n") if statement.strip()]


@pytest.fixture
def empty_engine(rows_url: URL) -> Any:
    """Make an engine on a database without the tables."""
    engine = create_engine(rows_url)
    Tables().metadata.drop_all(engine)
    yield engine
    engine.dispose()


def test_printed(empty_engine: Any, ship: Any) -> None:
    """What the command prints for a database creates there what an outbox needs, under any name."""
    with empty_engine.begin() as conn:
        for statement in printed(f"--dialect={empty_engine.dialect.name}", "--table=my_jobs"):
            conn.exec_driver_sql(statement)
        ship.configure(connection=Outbox(conn, table="my_jobs")).defer(n=1)
        assert conn.execute(text("SELECT set_aside FROM my_jobs")).all() == [(None,)]
        conn.execute(text("SELECT * FROM procrastinate_outbox_marks"))


def test_printed_for_others() -> None:
    """MySQL's tables are transactional and hold any text; any dialect of SQLAlchemy's is known."""
    for dialect in ("mysql", "mariadb"):
        for statement in printed("--dialect", dialect):
            assert "InnoDB" in statement
            assert "utf8mb4" in statement
    assert "CLOB" in printed("--dialect=oracle")[0]


def test_inbox(postgresql_url: URL) -> None:
    """``--inbox`` prints the table of the queue's database."""
    engine = create_engine(postgresql_url)
    with engine.begin() as conn:
        for statement in printed("--inbox"):
            conn.exec_driver_sql(statement)
        assert conn.execute(text("SELECT * FROM procrastinate_outbox_inbox")).all() == []
    engine.dispose()


@pytest.mark.parametrize(
    "args", [[], ["--inbox", "--dialect=sqlite"], ["--dialect=dbase"], ["--dialect=a b"]]
)
def test_usage(args: list[str]) -> None:
    """One of the two options is needed, and a dialect that SQLAlchemy knows."""
    result = CliRunner().invoke(main, ["tables", *args])
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_alembic(empty_engine: Any, ship: Any) -> None:
    """From `Tables(Base.metadata)`, Alembic writes a migration that makes the tables, and finds nothing to do then."""
    alembic = pytest.importorskip("alembic")
    for name in ("autogenerate", "migration", "operations"):
        import_module(f"alembic.{name}")
    metadata = MetaData()
    Tables(metadata)
    options = {
        "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
        "target_metadata": metadata,
    }
    with empty_engine.begin() as conn:
        context = alembic.migration.MigrationContext.configure(conn, opts=options)
        operations = alembic.autogenerate.produce_migrations(context, metadata).upgrade_ops
        code = alembic.autogenerate.render_python_code(operations)
        names = {"op": alembic.operations.Operations(context), "sa": import_module("sqlalchemy")}
        body = "\n".join(f"    {line}" for line in code.splitlines())
        if "mysql." in code:
            names["mysql"] = import_module("sqlalchemy.dialects.mysql")
        exec(f"def upgrade():\n{body}\nupgrade()", names)
        ship.configure(connection=Outbox(conn)).defer(n=1)
        assert conn.execute(text("SELECT created_at FROM procrastinate_outbox")).scalar_one()
    with empty_engine.connect() as conn:
        context = alembic.migration.MigrationContext.configure(conn, opts=options)
        assert alembic.autogenerate.compare_metadata(context, metadata) == []
