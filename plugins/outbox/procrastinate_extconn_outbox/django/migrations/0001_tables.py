"""Creates the outbox and the marks of `once`."""

# pyright: basic

from __future__ import annotations

from typing import Any

from django.db import migrations

from procrastinate_extconn_outbox.tables import Tables


def create(apps: Any, schema_editor: Any) -> None:
    """Create the tables, as the command ``tables`` prints them for this database."""
    for statement in Tables().ddl(schema_editor.connection.vendor):
        schema_editor.execute(statement)


def drop(apps: Any, schema_editor: Any) -> None:
    """Drop the tables, with what waits in them."""
    for table in Tables().metadata.tables.values():
        schema_editor.execute(f"DROP TABLE {table.fullname}")


class Migration(migrations.Migration):  # type: ignore[misc]
    """The tables."""

    # Not a transaction of its own: MariaDB and MySQL have none for DDL.
    operations = [migrations.RunPython(create, drop, atomic=False)]  # noqa: RUF012
