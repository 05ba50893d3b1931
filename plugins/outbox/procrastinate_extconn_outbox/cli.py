"""The command ``procrastinate-extconn-outbox``."""

from __future__ import annotations

import click

from .commands import COMMANDS
from .names import OUTBOX
from .tables import DIALECTS, Tables, inbox_ddl


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(
    package_name="procrastinate-extconn-outbox", message="%(package)s %(version)s"
)
def main() -> None:
    """Rows in another database than Procrastinate's: the tables, the relay, and old marks."""


@main.command()
@click.option(
    "--dialect",
    help=f"The database of your rows: {', '.join(DIALECTS)}, or another of SQLAlchemy's.",
)
@click.option("--table", default=OUTBOX, show_default=True, help="The outbox's name.")
@click.option("--inbox", is_flag=True, help="The table for the queue's database instead.")
def tables(dialect: str | None, table: str, inbox: bool) -> None:
    """Print the statements that create the tables."""
    if inbox == (dialect is not None):
        raise click.UsageError(
            "give either --dialect, for your rows' database, or --inbox, for the queue's"
        )
    try:
        statements = inbox_ddl() if dialect is None else Tables(table=table).ddl(dialect)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    for statement in statements:
        click.echo(f"{statement};\n")


for _command in COMMANDS:
    main.add_command(_command)
